"""A client's exported model is the one that was tested, loads without this package, and is told wrong in one line."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
import yaml
from test_interface import SHORT, alone, tree
from torch import Tensor, nn
from torch.nn import functional as F

from fedbsd_dist import export
from fedbsd_dist.commandline import load
from fedbsd_dist.data import sources
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.zoo import find_network
from fedbsd_dist.record.saved import verified

FACTORY = "model.factory=test_export:Photographic"
RUNS = {
    "fedbsd": ("method.name=fedbsd",),
    "fedavg": ("method.name=fedavg", "model.head_layers=2"),
    "ditto": ("method.name=ditto",),
    "fedrod": ("method.name=fedrod", FACTORY),
    "local": ("method.name=local",),
    "fedper": ("method.name=fedper", FACTORY, "model.norm_stats=local"),
    "fedbn": ("method.name=fedbn", FACTORY, "model.head_from=classifier"),
}


class Photographic(nn.Module):
    """Laid out as torchvision's: no nn.Sequential, batch norm, and the last linear layer inside another module."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        )
        self.classifier = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, num_classes))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def command(monkeypatch, main, *arguments: object) -> int:
    """A command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedbsd_dist", *map(str, arguments)])
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def network_of(facts: dict) -> nn.Module:
    """As a user makes it: untrained, in evaluation mode."""
    factory = resolve_name(facts["model"]) if ":" in facts["model"] else find_network(facts["model"])
    return factory(tuple(facts["shape"]), len(facts["classes"])).eval()


def outcome(file: Path, x: np.ndarray, y: np.ndarray) -> tuple[int, float]:
    """(correct, mean cross-entropy) of an exported model on images uint8 [n, h, w, c], as its FILE.json says."""
    facts = json.loads(Path(f"{file}.json").read_text())
    network = network_of(facts)
    network.load_state_dict(torch.load(file, weights_only=True), strict=True)
    mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
    labels = torch.from_numpy(y)
    with torch.no_grad():
        logits = network((torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - mean) / std)
    return int((logits.argmax(1) == labels).sum()), float(F.cross_entropy(logits, labels))


def rows(run: Path, stage: str) -> dict[int, dict[str, str]]:
    """Of the last round, by client."""
    found = csv.DictReader((run / "clients.csv").read_text().splitlines())
    return {int(row["client"]): row for row in found if row["stage"] == stage and row["round"] == "2"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of a finished run; not to be changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert alone(*SHORT, f"run.dir={run}") == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("name", RUNS)
def test_the_exported_model_is_the_one_that_was_tested(name: str, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    options = (*SHORT, *RUNS[name], "train.participation=0.75")
    assert alone(*options, f"run.dir={run}") == 0
    config = load(options, OPTIONS)
    samples = sources.load(config.data)
    partition = make_partition(samples, config.data, config.seed)
    expected = rows(run, "received")
    # the run's data is not read, nor the files of others
    monkeypatch.setitem(sources.DIRECT, "digits", lambda _: pytest.fail("the data was read"))
    states = []
    for client in range(4):
        own = run / f"checkpoints/round-000002/client-{client:06d}.pt"
        others = [path for path in run.glob("checkpoints/*/client-*.pt") if path != own]
        aside = [path.rename(path.with_suffix(".aside")) for path in others]
        assert command(monkeypatch, export.main, run, f"--client={client}") == 0
        for path in aside:
            path.rename(path.with_suffix(".pt"))
        file = run / f"export/client-{client:06d}.pt"
        test = partition.test[client]
        correct, loss = outcome(file, samples.x[test], samples.y[test])
        assert correct == round(float(expected[client]["accuracy"]) * len(test))
        assert loss == pytest.approx(float(expected[client]["loss"]), rel=1e-4)
        states.append(torch.load(file, weights_only=True))
    alike = all(torch.equal(states[0][key], state[key]) for state in states for key in state)
    assert alike == (name == "fedavg")  # the others' are personal
    assert list(network_of(json.loads(Path(f"{file}.json").read_text())).state_dict()) == list(states[0])


def test_what_is_written_is_whole_and_for_its_owners_eyes(finished: Path, tmp_path, monkeypatch, capsys) -> None:
    before = tree(finished)
    file = tmp_path / "new" / "one.pt"
    assert command(monkeypatch, export.main, finished, "--client=2", f"--out={file}") == 0
    assert f"client 2 of {finished}, fedbsd after round 2: {file}\n" in capsys.readouterr().out
    assert {path.name for path in file.parent.iterdir()} == {"one.pt", "one.pt.json"}
    assert {path.stat().st_mode & 0o777 for path in file.parent.iterdir()} == {0o600}
    state = torch.load(file, weights_only=True)
    for tensor in state.values():  # nothing of a group's buffer comes with it
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.is_contiguous()
    facts = json.loads(Path(f"{file}.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    assert {key: facts[key] for key in ("method", "client", "round", "model")} == {
        **{"method": "fedbsd", "client": 2, "round": 2, "model": "mlp"}
    }
    assert {key: facts[key] for key in summary["input"]} == summary["input"]
    assert facts["shape"] == [1, 16, 16]
    assert facts["classes"] == [*"0123456789"]
    assert tree(finished) == before


def test_the_input_in_the_summary_is_that_of_the_clients_who_train(finished: Path) -> None:
    config = load([str(finished / "config.yaml")], OPTIONS)
    samples = sources.load(config.data)
    pixels = samples.x[make_partition(samples, config.data, config.seed).learned_from] / 255
    found = json.loads((finished / "summary.json").read_text())["input"]
    assert found["mean"] == pytest.approx([pixels.mean()])
    assert found["std"] == pytest.approx([pixels.std()])


@pytest.mark.parametrize("options", [(), (FACTORY,)], ids=["named", "factory"])
def test_the_printed_example_runs_as_it_is(options: tuple[str, ...], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert alone(*SHORT, *options, "train.rounds=1", "run.dir=it's a run") == 0
    capsys.readouterr()
    assert command(monkeypatch, export.main, "it's a run", "--client=0") == 0
    example = capsys.readouterr().out.partition("\n\n")[2]
    paths = os.pathsep.join(str(path) for path in (Path(__file__).parent, Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = yaml.safe_load(done.stdout)
    assert first == second
    assert first in [*"0123456789"]


def test_a_method_with_a_step_at_test_time_says_that_it_is_not_in(tmp_path, monkeypatch, capsys) -> None:
    assert alone(*SHORT, "train.rounds=1", "method.name=fedavg_ft", f"run.dir={tmp_path}/run") == 0
    assert command(monkeypatch, export.main, tmp_path / "run", "--client=0") == 0
    assert "at test time" in capsys.readouterr().out


def test_the_last_round_has_a_checkpoint_whatever_its_number(tmp_path) -> None:
    options = (*SHORT, "train.rounds=3", "checkpoint.every=2", f"run.dir={tmp_path}/run")
    assert alone(*options) == 0
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["round-000002", "round-000003"]
    assert alone(*options, "run.overwrite=true", "checkpoint.every=0") == 0
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "-h"]])
def test_the_usage(arguments: list[str], monkeypatch, capsys) -> None:
    assert command(monkeypatch, export.main, *arguments) == 0
    assert capsys.readouterr().out.startswith("usage: python -m fedbsd_dist.export RUN --client=K")


def refused(monkeypatch, capsys, folder: Path, main, *arguments: object) -> str:
    """The one message of a command that must be refused, leaving `folder` as it was."""
    before = tree(folder)
    capsys.readouterr()
    assert command(monkeypatch, main, *arguments) == 2
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if not line.startswith("decoding ")] == []
    assert err.startswith("fedbsd_dist: ")
    assert err.count("\n") == 1
    assert tree(folder) == before
    return err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("run", "--client=K"),
        ("--client=1", "one run directory"),
        ("run run --client=1", "one run directory"),
        ("run --client=4", "0 to 3"),
        ("run --client=-1", "whole number"),
        ("run --client=x", "whole number"),
        ("run --client=1 --client=2", "once"),
        ("run --client", "--client=..."),
        ("run --klient=1", "--client=..."),
        ("nowhere --client=1", "no run directory"),
        (f"{'x' * 300} --client=1", "no run directory"),
        ("run --client=1 --out=taken", "already there"),
        ("run --client=1 --out=half", "half.json: is already there"),
        ("run --client=1 --out=run", "already there"),
        ("run --client=1 --out=taken/below/it.pt", "taken is no folder"),
        (f"run --client=1 --out={'x' * 300}", "--out"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: str, hint: str, run: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "half.json").write_text("mine")
    assert hint in refused(monkeypatch, capsys, tmp_path, export.main, *arguments.split())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


LAST = "checkpoints/round-000002"
AGAIN = "python -m fedbsd_dist.main"
INPUT = {"shape": [1, 16, 16], "classes": [*"0123456789"], "mean": [0.1], "std": [0.2]}
DAMAGES = {
    "unfinished": (lambda run: (run / "summary.json").unlink(), "run.resume=auto"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoint.every=10"),
    "an older one alone": (lambda run: (run / LAST).rename(run / "checkpoints/round-000001"), AGAIN),
    "of another round": (lambda run: shutil.copy(run / "old.json", run / LAST / "manifest.json"), AGAIN),
    "no manifest": (lambda run: (run / LAST / "manifest.json").unlink(), AGAIN),
    "no such file": (lambda run: (run / LAST / "client-000001.pt").unlink(), AGAIN),
    "cut": (lambda run: cut(run / LAST / "client-000001.pt"), AGAIN),
    "shared cut": (lambda run: cut(run / LAST / "shared.pt"), AGAIN),
    "another model": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("mlp", "cnn")),
        "the model of",
    ),
    "no config": (lambda run: (run / "config.yaml").unlink(), "no run directory"),
    "bad config": (lambda run: (run / "config.yaml").write_text("train: [1"), "YAML"),
    "no input": (lambda run: (run / "summary.json").write_text("{}"), "`input`"),
    "no JSON": (lambda run: (run / "summary.json").write_text("{"), "`input`"),
    **{
        f"{key}={value}": (
            lambda run, key=key, value=value: edit(run / "summary.json", input=INPUT | {key: value}),
            "`input`",
        )
        for key, value in [
            ("shape", [1, 16]),
            ("shape", [2, 16, 16]),
            ("shape", [1, 16, 10**9]),
            ("shape", [1, "16", 16]),
            ("mean", [0.1, 0.1]),
            ("mean", [float("nan")]),
            ("std", [0.0]),
            ("std", ["0.2"]),
            ("classes", []),
            ("classes", ["a", "a"]),
            ("classes", [1, 2]),
            ("classes", None),
        ]
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_cannot_be_taken_up(damage: str, run: Path, monkeypatch, capsys) -> None:
    change, hint = DAMAGES[damage]
    manifest = verified(run / LAST)
    manifest.round = 1
    manifest.own_sha256 = manifest.digest()
    (run / "old.json").write_text(manifest.model_dump_json())
    change(run)
    assert hint in refused(monkeypatch, capsys, run.parent, export.main, run, "--client=1")


class Code:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("saved", "hint"),
    [
        ({"head": Code()}, "something else"),
        (["head"], "something else"),
        ({"head": 1.0}, "something else"),
        ({}, "[650]"),
        ({"head": torch.zeros(649)}, "[649]"),
        ({"head": torch.zeros(650, dtype=torch.float64)}, "torch.float64"),
        ({"head": torch.zeros(650), "backbone": torch.zeros(650)}, "'backbone': "),
        ({"head": torch.zeros(650, dtype=torch.complex64)}, "torch.complex64"),
    ],
)
def test_a_file_of_anothers_making_is_not_run_and_must_fit(saved, hint, run: Path, monkeypatch, capsys) -> None:
    """Even under a manifest that vouches for it."""
    monkeypatch.chdir(run)
    file = run / LAST / "client-000001.pt"
    torch.save(saved, file)
    manifest = verified(run / LAST, ["shared.pt"])
    manifest.files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.own_sha256 = manifest.digest()
    (run / LAST / "manifest.json").write_text(manifest.model_dump_json())
    err = refused(monkeypatch, capsys, run, export.main, run, "--client=1")
    assert hint in err
    assert str(file) in err


def test_a_disk_that_fills_up_is_told(run: Path, monkeypatch, capsys) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedbsd_dist.record.personal.write_atomically", full)
    assert command(monkeypatch, export.main, run, "--client=1") == 2
    assert "No space left" in capsys.readouterr().err
