"""What a person does with the program: launch it, look into the run directory, launch it again."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import federate

from fedbsd_dist.commandline import load
from fedbsd_dist.main import run
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.record import checkpoint
from fedbsd_dist.record.claim import LOCK
from fedbsd_dist.wire.world import meet

SHORT = (
    "train.rounds=2",
    "train.local_epochs=1",
    "train.batch_size=64",
    "train.participation=0.5",
    "model.name=mlp",
    "data.num_clients=4",
    "evaluate.head_epochs=1",
)
LEFT = {
    *("config.yaml", "partition.json", "metrics.jsonl", "clients.csv", "ledger.jsonl", "summary.json", "tensorboard"),
    "checkpoints",
}
"""What every finished run leaves."""


def alone(*arguments: str) -> int:
    """A run of one rank in this process; its exit code."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        run(arguments, meet())
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        for thread in threading.enumerate():
            if thread.name == checkpoint.WRITER:  # would end with its process
                thread.join()
        signal.signal(signal.SIGTERM, handler)
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def tree(path: Path) -> dict[str, bytes | None]:
    """Every file below `path` with its content; None for a directory. A lock says nothing of the run."""
    files = (found for found in path.rglob("*") if found.name != LOCK)
    return {str(found.relative_to(path)): found.read_bytes() if found.is_file() else None for found in files}


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of a finished run; not to be changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert alone(*SHORT, f"run.dir={run}", "checkpoint.every=1") == 0
    return run


def test_a_launch_by_torchrun_from_a_file_and_overrides(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 5\ntrain:\n  rounds: 2\n  batch_size: 64\nmodel:\n  name: mlp\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["mine.yaml", "data.num_clients=4", "evaluate.head_epochs=1", "seed=6"]
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*launch, "-m", "fedbsd_dist.main", *options],
        cwd=tmp_path,
        env=os.environ | path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs").iterdir()  # the name that run.dir=auto chose
    assert directory.name.startswith("fedbsd-digits-s6-")
    assert {path.name for path in directory.iterdir()} == {*LEFT, LOCK}
    facts = summary(directory)
    assert (facts["seed"], facts["rounds"], facts["num_clients"], facts["world_size"]) == (6, 2, 4, 2)
    # rank 0 alone speaks: one line a round, then a table with every stage
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("round ")] == ["1/2", "2/2"]
    assert all(done.stdout.count(f"  {stage} ") == 2 for stage in ("received", "trained", "head_tuned"))
    assert str(directory.relative_to(tmp_path)) in done.stdout


def test_a_finished_run_leaves_its_files_and_nothing_else(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {*LEFT, LOCK}
    assert [path.name for path in finished.rglob(".*")] == [LOCK]


def test_config_yaml_gives_the_same_run(finished: Path, tmp_path) -> None:
    config = load([str(finished / "config.yaml")], OPTIONS)
    assert config == load([*SHORT, f"run.dir={finished}", "checkpoint.every=1"], OPTIONS)
    assert alone(str(finished / "config.yaml"), f"run.dir={tmp_path / 'again'}") == 0
    first, again = summary(finished), summary(tmp_path / "again")
    assert {**again, "seconds": None} == {**first, "seconds": None}


@pytest.mark.parametrize("asked", [["--check"], ["--check=8", "data.num_clients=8"], ["--check", "run.resume=auto"]])
def test_check_prints_the_plan_and_leaves_nothing(asked: list[str], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert alone(*SHORT, *asked) == 0
    out, err = capsys.readouterr()
    assert all(row in out for row in ("ranks", "clients", "memory", "bytes a round"))
    assert "round 1" not in out
    assert err == ""
    assert tree(tmp_path) == {}


def test_check_refuses_what_the_run_would_refuse(finished: Path, capsys) -> None:
    before = tree(finished)
    assert alone(*SHORT, f"run.dir={finished}", "--check") == 2
    assert "overwrite" in capsys.readouterr().err
    assert tree(finished) == before


def test_a_finished_run_is_not_overwritten_unasked(finished: Path, capsys) -> None:
    before = tree(finished)
    assert alone(*SHORT, f"run.dir={finished}") == 2
    out, err = capsys.readouterr()
    assert "run.overwrite=true" in err
    assert "run.resume" not in err  # there is nothing to go on with
    assert err.count("\n") == 1
    assert out == ""
    assert tree(finished) == before


def test_overwriting_deletes_the_old_run_and_nothing_of_the_users(tmp_path) -> None:
    directory = tmp_path / "run"
    alone(*SHORT, f"run.dir={directory}")
    before = summary(directory)
    mine = {"notes.md": b"mine", "plots": None, "plots/a.png": b"\x89", "summary.json.bak": b"{}"}
    for name, content in mine.items():
        (directory / name).mkdir() if content is None else (directory / name).write_bytes(content)
    assert alone(*SHORT, f"run.dir={directory}", "run.overwrite=true", "seed=1", "checkpoint.every=0") == 0
    after = tree(directory)
    assert {name: after[name] for name in mine} == mine
    assert summary(directory)["state_sha256"] != before["state_sha256"]
    assert "checkpoints" not in after  # the old run's, which this one would not go on from
    assert len(after["metrics.jsonl"].splitlines()) == 2
    assert len(list((directory / "tensorboard").iterdir())) == 1


def test_an_unfinished_run_is_refused_without_resume(finished: Path, tmp_path, capsys) -> None:
    for name in sorted(LEFT - {"summary.json", "partition.json"}):  # a preview leaves the latter as well
        directory = tmp_path / name
        directory.mkdir()
        (directory / LOCK).touch()
        if (finished / name).is_dir():
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes((finished / name).read_bytes())
        before = tree(directory)
        assert alone(*SHORT, f"run.dir={directory}") == 2
        assert "run.resume=auto" in capsys.readouterr().err
        assert tree(directory) == before


@pytest.mark.parametrize("option", ["run.overwrite=false", "run.overwrite=true", "run.resume=auto"])
def test_what_was_never_a_run_is_not_touched(option: str, tmp_path, capsys) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/mine.pt").write_text("mine")
    (tmp_path / "config.yaml").write_text("mine: 1")
    before = tree(tmp_path)
    assert alone(*SHORT, f"run.dir={tmp_path}", option) == 2
    assert "is of no run. Choose another run.dir." in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_directory_with_only_other_files_is_free(tmp_path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    assert federate(tmp_path, 2, *SHORT) == [None, None]
    assert {path.name for path in tmp_path.iterdir()} == {*LEFT, LOCK, "notes.md"}


def test_runs_of_the_same_second_get_directories_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "20260131-120000")
    assert alone(*SHORT) == alone(*SHORT) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
