"""The files of benchmarks: each is valid with the files that go with it, plans, and says what data is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from ranks import run_ranks
from test_interface import alone, tree

from fedbsd_dist.main import planned
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.sweep import Point, expand
from fedbsd_dist.wire.world import World

CONFIGS = Path(__file__).parents[1] / "configs"
EVERY = sorted(CONFIGS.glob("*.yaml"))
BESIDE = [CONFIGS / name for name in ("methods.yaml", "grid.yaml", "fedbsd_choices.yaml", "figure4_fashion.yaml")]
"""They go with a benchmark."""
ALONE = {"cifar10": (32, 3, 10), "cifar100": (32, 3, 100), "folder": (32, 3, 10), "fashion_mnist": (28, 1, 10)}
"""Sources of which an array file can take the place: pixels a side, channels, classes."""
WITHOUT_NORM = OPTIONS.keys() - {"fedbn"}
NORM = ("domainnet", "five_digits")
"""Benchmarks whose networks have batch norm, which fedbn needs."""
SOME = {"figure4": {"fedbsd", "fedavg"}, "fedrep": {"fedrep", "fedper", "fedavg_ft", "fedbsd"}}
"""Beginnings of names -> the methods of benchmarks that do not compare all."""
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def is_sweep_of_methods(path: Path) -> bool:
    return "method" in yaml.safe_load(path.read_text())


def points_of(path: Path) -> list[Point]:
    with_it = [] if is_sweep_of_methods(path) else [str(CONFIGS / "methods.yaml")]
    return expand([str(path), *with_it], OPTIONS)


def sources(path: Path) -> set[str]:
    return {point.config.data.source for point in points_of(path)}


BENCHMARKS = [path for path in EVERY if path not in BESIDE]


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_each_names_its_command_and_no_place_of_ours(path: Path) -> None:
    text = path.read_text()
    said = [line for line in text.splitlines() if line.startswith("#   ")]
    assert any(f"configs/{path.name}" in line for line in said)
    for line in said:
        named = [word for word in line.split() if word.startswith("configs/")]
        assert all((CONFIGS.parent / name).exists() for name in named)
    given = yaml.safe_load(text)
    assert not {"root", "cache", "download"} & given.get("data", {}).keys()
    assert not {"run", "sweep"} & given.keys()
    assert path.name in (CONFIGS / "README.md").read_text()


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_each_benchmark_compares_methods_and_seeds(path: Path) -> None:
    points = points_of(path)
    methods = {point.config.method.name for point in points}
    assert methods == SOME.get(path.stem.partition("_")[0], WITHOUT_NORM)
    if path.stem != "digits_domains":
        assert len({point.config.seed for point in points}) >= 3


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if not is_sweep_of_methods(path)], ids=lambda p: p.stem)
def test_each_benchmark_can_be_tuned(path: Path) -> None:
    """All methods have the same learning rates."""
    points = expand([str(path), str(CONFIGS / "grid.yaml"), "seed=[100]"], OPTIONS)
    rates: dict[str, set[float]] = {}
    for point in points:
        method = point.config.method
        own = {"per_fedavg": "beta", "pfedme": "lr"}.get(method.name)
        rate = getattr(method, own) if own else point.config.train.lr
        rates.setdefault(method.name, set()).add(rate)
    assert rates == {name: {0.01, 0.03, 0.1} for name in WITHOUT_NORM}


def _plans(world: World, every: list[list[str]]) -> list[str]:
    found = []
    for number, arguments in enumerate(every):
        (point,) = expand(arguments, OPTIONS)
        found.append(planned(point.config, world.within(str(number)), 1).text)
    return found


def arrays(path: Path, pixels: int, channels: int, classes: int, each: int) -> None:
    """`each` training samples of every class, and a fifth as many to test."""
    draws = np.random.default_rng(0)
    count = classes * (each + each // 5)
    x = draws.integers(0, 256, (count, pixels, pixels, channels), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    split = np.repeat(["train", "test"], [classes * each, classes * (each // 5)])
    np.savez(path, x=x, y=np.arange(count) % classes, split=split)


def letters(path: Path) -> None:
    """LEAF's JSON: writers with the classes 36 to 45, a to j."""
    draws = np.random.default_rng(0)
    for part, each in (("train", 30), ("test", 6)):
        users = [f"writer{number}" for number in range(40)]
        labels = [36 + number % 10 for number in range(10 * each // 5)]
        data = {user: {"x": draws.random((len(labels), 784)).round(2).tolist(), "y": labels} for user in users}
        whole = {"users": users, "num_samples": [len(labels)] * len(users), "user_data": data}
        (path / part).mkdir(parents=True)
        (path / part / "all_data_0.json").write_text(json.dumps(whole))


def standing_in(path: Path, source: str, folder: Path) -> list[str]:
    """Options by which made-up samples of the same shape take the place of a benchmark's data."""
    if source == "digits":
        return []
    if source in ALONE:
        arrays(folder / "all.npz", *ALONE[source], each=100 if source == "cifar100" else 1000)
        return ["data.source=npz", f"data.root={folder / 'all.npz'}"]
    if source == "femnist":
        letters(folder)
    elif path.stem == "domainnet":
        for domain in DOMAINS:
            arrays(folder / f"{domain}.npz", 64, 3, 10, each=20)
        return [f"data.root={folder}", "data.classes=[]"]
    else:
        for domain, pixels, channels in (("MNIST", 28, 1), ("USPS", 16, 1), ("SVHN", 32, 3)):
            arrays(folder / f"{domain}.npz", pixels, channels, 10, each=200)
    return [f"data.root={folder}"]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_each_benchmark_plans_on_data_of_its_shape(path: Path, tmp_path: Path) -> None:
    """One run of each source and partition that the file asks for."""
    one_each = {
        (data.source, data.alpha, data.classes_per_client, data.num_clients): data
        for data in (point.config.data for point in points_of(path))
    }
    instead = {source: standing_in(path, source, tmp_path / source) for source in sources(path)}
    # which the networks with batch norm alone can have
    method = "fedbn" if path.stem in NORM else "fedbsd"
    every = [
        [
            *(str(path), "seed=0", f"method.name={method}", f"data.cache={tmp_path}", "train.local_epochs=1"),
            "train.batch_size=2",  # of the rehearsal, which is quicker so
            *(f"data.source={data.source}", f"data.alpha={data.alpha}", f"data.num_clients={data.num_clients}"),
            *(f"data.classes_per_client={data.classes_per_client}", *instead[data.source]),
        ]
        for data in one_each.values()
    ]
    (texts,) = run_ranks(1, _plans, every)
    for text, data in zip(texts, one_each.values(), strict=True):
        assert f"\nclients        {data.num_clients}, " in text


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if "digits" not in sources(path)], ids=lambda p: p.stem)
def test_data_that_is_not_there_is_told_of_and_where_it_belongs(path: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """All but that of the digits, which come with the package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with_it = [] if is_sweep_of_methods(path) else [str(CONFIGS / "methods.yaml")]
    assert alone(str(path), *with_it, "data.root=data", f"data.cache={tmp_path / 'cache'}", "sweep.dir=runs") == 2
    out, err = capfd.readouterr()
    assert err.startswith("fedbsd_dist: ")
    assert "data" in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()
    assert tree(tmp_path / "data") == {}
