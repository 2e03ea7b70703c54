"""A new client from a finished run is as one that the run had held out, and needs no other client's file."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import FACTORY, command, edit, outcome, refused, rows
from test_interface import SHORT, alone, tree

from fedbsd_dist import adapt
from fedbsd_dist.commandline import load
from fedbsd_dist.data import sources
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.methods import OPTIONS

NEW = (*SHORT, "data.num_new_clients=2", "evaluate.head_epochs=3", "train.participation=0.75")
RUNS = {
    "fedbsd": ("method.name=fedbsd",),
    "fedavg": ("method.name=fedavg",),
    "ditto": ("method.name=ditto", FACTORY),
    "local": ("method.name=local", "augment.crop=1"),
    "fedbn": ("method.name=fedbn", FACTORY),
    "fedbabu": ("method.name=fedbabu",),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def samples() -> Samples:
    return sources.load(load([], OPTIONS).data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of a finished run, without any client's file; not to be changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert alone(*SHORT, f"run.dir={run}") == 0
    for path in run.glob("checkpoints/*/client-*.pt"):
        path.unlink()
    return run


@pytest.fixture
def run(finished: Path, tmp_path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def shown(out: str) -> dict[int, tuple[int, int]]:
    """Epochs -> (correct, test samples) of the printed table."""
    table = out.partition("epochs of the head")[2].partition("\n\n")[0].splitlines()[1:]
    words = [line.replace("(", "").replace(")", "").split() for line in table]
    return {int(line[0]): (int(line[-3]), int(line[-1])) for line in words}


@pytest.mark.parametrize("name", RUNS)
def test_it_is_as_the_new_client_of_a_run_with_the_very_same_samples(
    name: str, samples: Samples, tmp_path, monkeypatch, capsys
) -> None:
    run = tmp_path / "run"
    options = (*NEW, *RUNS[name])
    assert alone(*options, f"run.dir={run}") == 0
    config = load(options, OPTIONS)
    partition = make_partition(samples, config.data, config.seed)
    train, test = partition.train[4], partition.test[4]
    both = np.concatenate([train, test])
    split = np.repeat(["train", "test"], [len(train), len(test)])
    # other numbers for the same classes: they go by name, and those without a sample are no matter
    names = [*"9876543210", "eleven"]
    np.savez(tmp_path / "mine.npz", x=samples.x[both], y=9 - samples.y[both], split=split, classes=names)
    for path in run.glob("checkpoints/*/client-*.pt"):
        path.unlink()
    monkeypatch.setitem(sources.DIRECT, "digits", lambda _: pytest.fail("the run's data was read"))
    capsys.readouterr()
    assert command(monkeypatch, adapt.main, run, f"--data={tmp_path}/mine.npz") == 0
    table = shown(capsys.readouterr().out)
    expected = rows(run, "new_client")[4]
    assert list(table) == [0, 1, 2, 3]
    assert table[3] == (round(float(expected["accuracy"]) * len(test)), len(test))
    correct, loss = outcome(run / "export/new-client.pt", samples.x[test], samples.y[test])
    assert correct == table[3][0]
    assert loss == pytest.approx(float(expected["loss"]), rel=1e-4)


def photographs(folder: Path, samples: Samples, names: str, count: int) -> Path:
    """`count` images of each class in folder/CLASS, larger than the run's and in colour."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in np.flatnonzero(samples.y == int(name))[:count]:
            image = Image.fromarray(samples.x[number, :, :, 0]).convert("RGB").resize((40, 30))
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [((), (27, 9)), (("--test-fraction=0.5",), (18, 18))],
)
def test_a_folder_of_photographs_is_split(flags, sizes, finished, samples, tmp_path, monkeypatch, capsys) -> None:
    before = tree(finished)
    file = tmp_path / "mine.pt"
    photographs(tmp_path / "photos", samples, "147", 12)
    arguments = (finished, f"--data={tmp_path}/photos", "--epochs=12", f"--out={file}", *flags)
    assert command(monkeypatch, adapt.main, *arguments) == 0
    out = capsys.readouterr().out
    assert f"{sizes[0]} samples to learn from and {sizes[1]} to test on, of 3 classes: 1, 4, 7\n" in out
    table = shown(out)
    assert list(table) == [0, 1, 2, 5, 10, 12]
    assert {count for _, count in table.values()} == {sizes[1]}
    assert table[12][0] > table[0][0]
    assert "saved, after 12 epochs" in out
    assert f"torch.load({str(file)!r}" in out
    facts = json.loads(Path(f"{file}.json").read_text())
    assert (facts["client"], facts["method"], facts["classes"]) == (None, "fedbsd", [*"0123456789"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert tree(finished) == before


def test_what_is_split_stays_so_in_a_folder_and_in_an_archive(finished, samples, tmp_path, monkeypatch, capsys) -> None:
    photographs(tmp_path / "photos/train", samples, "147", 8)
    photographs(tmp_path / "photos/test", samples, "14", 3)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "photos").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    tables = []
    for name in ("photos", "photos.zip"):
        arguments = (finished, f"--data={tmp_path / name}", f"--out={tmp_path}/{name}.pt", "--epochs=2")
        assert command(monkeypatch, adapt.main, *arguments) == 0
        out = capsys.readouterr().out
        assert "24 samples to learn from and 6 to test on, of 3 classes" in out
        tables.append(shown(out))
    assert tables[0] == tables[1]
    # train/ alone is split
    shutil.rmtree(tmp_path / "photos/test")
    arguments = (finished, f"--data={tmp_path}/photos", f"--out={tmp_path}/alone.pt", "--epochs=0")
    assert command(monkeypatch, adapt.main, *arguments) == 0
    out = capsys.readouterr().out
    assert "18 samples to learn from and 6 to test on" in out
    assert list(shown(out)) == [0]


def test_where_the_work_is_done_may_be_said(run: Path, samples, tmp_path, monkeypatch, capsys) -> None:
    """Of a run on GPUs, here without one."""
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("device: auto", "device: cuda"))
    photographs(tmp_path / "photos", samples, "147", 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = (run, f"--data={tmp_path}/photos")
    assert "run.device=auto or cpu" in refused(monkeypatch, capsys, tmp_path, adapt.main, *arguments)
    where = ("run.device=cpu", f"data.cache={tmp_path}/decoded")
    assert command(monkeypatch, adapt.main, *arguments, *where) == 0
    assert (tmp_path / "decoded").is_dir()


def test_the_numbers_of_epochs_that_are_shown() -> None:
    assert adapt.steps(0) == [0]
    assert adapt.steps(1) == [0, 1]
    assert adapt.steps(5) == [0, 1, 2, 5]
    assert adapt.steps(60) == [0, 1, 2, 5, 10, 20, 50, 60]
    assert adapt.steps(100) == [0, 1, 2, 5, 10, 20, 50, 100]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_usage(arguments: list[str], monkeypatch, capsys) -> None:
    assert command(monkeypatch, adapt.main, *arguments) == 0
    assert capsys.readouterr().out.startswith("usage: python -m fedbsd_dist.adapt RUN --data=PATH")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("run", "--data=PATH"),
        ("--data=few", "run directory"),
        ("run --data=nowhere", "--data=nowhere: there is no such"),
        ("nowhere --data=few", "no run directory"),
        ("run --data=few --epochs=-1", "whole number"),
        ("run --data=few --epochs=1.5", "whole number"),
        ("run --data=few --test-fraction=0", "above 0"),
        ("run --data=few --test-fraction=1", "up to 0.9"),
        ("run --data=few --test-fraction=half", "0.25"),
        ("run --data=few seed=3", "run.device"),
        ("run --data=few other", "run.device"),
        ("run --data=few run.device=tpu", "run.device=tpu"),
        ("run --data=few --client=3", "--data=..."),
        ("run --data=few --out=few", "already there"),
        ("run --data=one", "0 samples to learn from and 1 to test on"),
        ("run --data=tests.npz", "0 samples to learn from and 4 to test on, and needs one for each. Add samples, or"),
        ("run --data=unknown", "no class '11'. Did you mean 1?"),
        ("run --data=unknown.npz", "no class '12'"),
        ("run --data=text.txt", "neither a folder nor an archive"),
        ("run --data=bad.npz", "bad.npz"),
        ("run --data=empty", "holds no folder of a class"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: str, hint: str, run: Path, samples: Samples, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "few", samples, "14", 4)
    photographs(tmp_path / "one", samples, "1", 1)
    photographs(tmp_path / "unknown", samples, "14", 4)
    Path("unknown/4").rename("unknown/11")
    Path("empty").mkdir()
    Path("text.txt").write_text("text")
    Path("bad.npz").write_bytes(b"PK")
    np.savez("tests.npz", x=samples.x[:4], y=samples.y[:4], split=["test"] * 4)
    np.savez("unknown.npz", x=samples.x[:4], y=[0, 12, 1, 1])
    assert hint in refused(monkeypatch, capsys, tmp_path, adapt.main, *arguments.split())


def test_what_the_run_took_is_what_is_wanted(run: Path, samples: Samples, tmp_path, monkeypatch, capsys) -> None:
    photographs(tmp_path / "photos", samples, "147", 4)
    found = json.loads((run / "summary.json").read_text())["input"]
    edit(run / "summary.json", input=found | {"shape": [1, 8, 32]})  # not square: nothing is resized
    arguments = (run, f"--data={tmp_path}/photos")
    assert "32x8 (width x height), and these 40x30" in refused(monkeypatch, capsys, tmp_path, adapt.main, *arguments)
    edit(run / "summary.json", input=found | {"shape": [1, 20, 20]})
    assert "shared.pt: holds" in refused(monkeypatch, capsys, tmp_path, adapt.main, *arguments)


def test_a_run_that_cannot_be_taken_up_is_told_before_images_are_read(run: Path, monkeypatch, capsys) -> None:
    (run / "checkpoints/round-000002/shared.pt").unlink()
    monkeypatch.setattr(adapt, "load_alone", lambda *_: pytest.fail("the samples were loaded first"))
    assert "shared.pt: No such file" in refused(monkeypatch, capsys, run, adapt.main, run, f"--data={run}")


def test_batch_norm_needs_two_samples(samples: Samples, tmp_path, monkeypatch, capsys) -> None:
    assert alone(*SHORT, "train.rounds=1", FACTORY, f"run.dir={tmp_path}/run") == 0
    photographs(tmp_path / "photos", samples, "1", 2)
    arguments = (tmp_path / "run", f"--data={tmp_path}/photos")
    assert "batch norm needs 2" in refused(monkeypatch, capsys, tmp_path, adapt.main, *arguments)
