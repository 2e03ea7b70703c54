"""What a user gets wrong is told in one message, once, before anything is trained or written; exit code 2."""

import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from test_interface import SHORT, alone, tree

from fedbsd_dist import main
from fedbsd_dist.commandline import fields, load
from fedbsd_dist.data import digits
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS


def refused(capsys, directory: Path, *arguments: str) -> str:
    """The one message of a run of one rank that must be refused, leaving `directory` as it was."""
    before = tree(directory)
    assert alone(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedbsd_dist: ")
    assert "Traceback" not in err
    assert tree(directory) == before
    return err


IMPOSSIBLE = {
    # a word that the message must have, besides the key
    "train.rounds=0": "1",
    "train.rounds=many": "integer",
    "train.rounds=2.5": "integer",
    "train.rounds='3'": "integer",
    "train.rounds=[3]": "integer",
    "train.rounds=": "integer",
    "train.local_epochs=0": "1",
    "train.batch_size=0": "1",
    "train.lr=0": "0",
    "train.lr=fast": "number",
    "train.momentum=1": "1",
    "train.participation=0": "0",
    "train.participation=1.5": "1",
    "data.num_clients=-3": "0",
    "data.min_samples=0": "1",
    "data.source=cifar": "digits",
    "data.partition=random": "dirichlet",
    "model.head_layers=0": "1",
    "evaluate.every=-1": "0",
    "checkpoint.every=-1": "0",
    "checkpoint.keep=0": "1",
    "wire.sum=float16": "exact",
    "wire.codec=zip": "none",
    "wire.timeout=0": "0",
    "run.device=tpu": "cpu",
    "run.resume=always": "auto",
    "run.overwrite=maybe": "boolean",
    "run.dir=2026": "string",
    "run.threads=0": "1",
    "seed=-1": "0",
    "seed=one": "integer",
    "method.name=fedsgd": "fedbsd",
    "method.distillation=none": "logits_kl",
    "method.temperature=0": "0",
    "method=fedavg": "method.name=fedavg",
    "train=5": "section",
}


@pytest.mark.parametrize(("argument", "hint"), IMPOSSIBLE.items(), ids=str)
def test_an_impossible_value_is_told_with_its_key_and_what_would_do(argument: str, hint: str) -> None:
    with pytest.raises(UserError) as refusal:
        load([argument], OPTIONS)
    message = str(refusal.value)
    key, _, _ = argument.partition("=")
    assert key in message
    assert hint in message.partition("=")[2]  # not merely in the key
    assert "\n" not in message


FLOATS = sorted({key for key, field in fields(OPTIONS) if field.annotation is float})


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "1e999"])
@pytest.mark.parametrize("key", FLOATS)
def test_no_option_takes_nan_or_infinity(key: str, value: str) -> None:
    with pytest.raises(UserError, match=key):
        load([f"{key}={value}"], OPTIONS)


@pytest.mark.parametrize("flag", ["--rounds=3", "-x", "--check=0", "--check=-1", "--check=many", "--Check"])
def test_an_unknown_flag_is_refused(flag: str, tmp_path, capsys) -> None:
    assert "--check" in refused(capsys, tmp_path, flag)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (None, "No such file"),
        ("train: [1\n", "not valid YAML"),
        ("train:\n\trounds: 3\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("- train\n- 3\n", "section"),
        ("just text", "section"),
        ("3: 4\n", "section"),
        ("train: 3\n", "train"),
        ("train:\n  roundz: 3\n", "train.rounds"),
        ("train:\n  rounds: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        # YAML forbids a key given twice: one of the two would be lost in silence
        ("train:\n  rounds: 3\ntrain:\n  lr: 0.1\n", "train"),
    ],
)
def test_a_file_of_options_that_cannot_be_used(content: str | None, hint: str, tmp_path, capsys) -> None:
    if content is not None:
        (tmp_path / "mine.yaml").write_text(content)
    message = refused(capsys, tmp_path, str(tmp_path / "mine.yaml"), "--check")
    assert hint in message
    assert message.count("\n") == 1


def test_a_file_of_options_in_another_encoding_or_a_directory(tmp_path, capsys) -> None:
    (tmp_path / "latin.yaml").write_bytes("run:\n  dir: \xe9t\xe9\n".encode("latin-1"))
    assert "latin.yaml" in refused(capsys, tmp_path, str(tmp_path / "latin.yaml"), "--check")
    assert "directory" in refused(capsys, tmp_path, str(tmp_path), "--check").lower()


def test_a_distillation_of_features_teaches_no_head(tmp_path, capsys) -> None:
    options = ("method.distillation=features_mse", "method.distillation_teaches=backbone_and_head")
    message = refused(capsys, tmp_path, *options)
    assert message.startswith("fedbsd_dist: method.distillation_teaches=backbone_and_head: no head is part of")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("data.num_clients=0", "data.num_clients to 1.."),
        ("data.num_clients=100000", "data.num_clients to"),
        ("data.num_clients=2000", "data.min_samples to"),
        ("data.num_clients=1 data.partition=domain", "domain"),
        ("data.alpha=1e9", "data.alpha"),
        ("model.name=resnet", "resnet18"),
        ("model.name=mobilenet_v2", "data.channels=3"),
        ("model.head_layers=9", "1 to 3"),
        ("model.head_from=clasifier", "Did you mean classifier?"),
        ("model.factory=nowhere:model", "package.module:function"),
        ("model.factory=math", "function"),
        ("model.factory=math:sqrt", "math:sqrt"),
        ("model.factory=fedbsd_dist.randomness:generator", "nn.Sequential"),
        pytest.param(
            "run.device=cuda", "GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
        ),
        ("run.overwrite=true run.resume=auto", "run.resume"),
        ("--check=9 data.num_clients=7", "data.num_clients=8 or more"),
        # more than any machine has: PyTorch itself would crash
        ("run.threads=100000000000000000000", "run.threads"),
    ],
)
def test_what_only_the_plan_can_see(arguments: str, hint: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert hint in refused(capsys, tmp_path, *arguments.split())


def test_a_run_directory_that_cannot_be_one(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    options = (*SHORT, "checkpoint.every=0")
    for directory in ("file", "file/run", "file/a/b/c"):
        assert "not a directory" in refused(capsys, tmp_path, *options, f"run.dir={tmp_path / directory}")
    assert "name" in refused(capsys, tmp_path, *options, f"run.dir={tmp_path / ('x' * 300)}").lower()
    assert "run.dir" in refused(capsys, tmp_path, *options, f'run.dir="{tmp_path}/a\\0b"')


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that refuses even root")
def test_a_run_directory_that_cannot_be_written(tmp_path, capsys) -> None:
    for directory in ("/proc/runs/mine", "/proc/self/fd"):
        message = refused(capsys, tmp_path, *SHORT, f"run.dir={directory}")
        assert "cannot write" in message
        assert directory in message


def test_a_damaged_data_file(tmp_path, monkeypatch, capsys) -> None:
    content = digits.DIGITS_PATH.read_bytes()
    path = tmp_path / "digits.npz"
    monkeypatch.setattr(digits, "DIGITS_PATH", path)
    for damaged in (content[:-1], content[:1000] + b"x" + content[1001:], b"", None):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        assert str(path) in refused(capsys, tmp_path, *SHORT, f"run.dir={tmp_path / 'run'}")


def test_packages_that_do_not_fit_together(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(metadata, "version", {"torch": "2.10.0", "torchvision": "0.24.1"}.__getitem__)
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch==2.9.1"])
    message = refused(capsys, tmp_path, *SHORT, f"run.dir={tmp_path / 'run'}")
    assert "pip install" in message
    assert message.count("\n") == 1


def overheard(world, arguments: list[str], folder: Path, damaged: bool = False) -> None:
    """A run whose rank's words go to a file of its own; `damaged`: the last rank finds its data file missing."""
    if damaged and world.rank == world.size - 1:
        digits.DIGITS_PATH = Path("/nowhere/digits.npz")
    with (folder / f"{world.rank}.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main.run(arguments, world)


@pytest.mark.parametrize(
    ("size", "arguments", "damaged", "hint"),
    [
        (8, ["train.roundz=3"], False, "train.rounds"),
        (8, ["data.num_clients=6"], False, "data.num_clients=7 or more"),
        (8, ["data.num_clients=7", "server.trains=true"], False, "data.num_clients=8 or more"),
        # found by one rank that is not the one to speak
        (2, [], True, "/nowhere/digits.npz"),
        # found by the server alone, when all others have nothing to say
        (2, ["run.dir=/proc/runs/mine"], False, "cannot write"),
        # found while training
        (3, ["train.lr=1e30", "fault.max_diverged_rounds=1"], False, "train.lr"),
    ],
)
def test_many_ranks_tell_it_once_and_all_exit_with_2(
    size: int, arguments: list[str], damaged: bool, hint: str, tmp_path
) -> None:
    options = [*SHORT, f"run.dir={tmp_path / 'run'}", *arguments]
    assert run_ranks(size, overheard, options, tmp_path, damaged) == [("exit", 2)] * size
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(size)]
    assert said[0].count("fedbsd_dist: ") == 1
    assert hint in said[0]
    assert set(said[1:]) == {""}
    assert "lr" in hint or not (tmp_path / "run").exists()


def launched(tmp_path: Path, launcher: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", *launcher, "fedbsd_dist.main", *arguments]
    return subprocess.run(
        command, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_process_of_its_own_exits_with_2(tmp_path) -> None:
    done = launched(tmp_path, [], "train.participation=1.5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"fedbsd_dist: train\.participation=1\.5: .+\n", done.stderr)
    assert tree(tmp_path) == {}


def test_many_ranks_under_torchrun_tell_it_once(tmp_path) -> None:
    done = launched(
        tmp_path,
        ["torch.distributed.run", "--standalone", "--nproc_per_node=4", "-m"],
        "data.num_clients=2",
    )
    assert done.returncode == 1  # torchrun's own, whatever its ranks'
    assert done.stdout == ""
    assert done.stderr.count("fedbsd_dist: ") == 1
    assert "data.num_clients=3 or more" in done.stderr
    # torchrun's report comes after: the exit code of every rank, and its own traceback but none of ours
    assert re.findall(r"^  exitcode\s*: (-?\d+)", done.stderr, re.M) == ["2"] * 4
    assert "fedbsd_dist/" not in done.stderr.partition("Traceback")[2]
    assert "UserError" not in done.stderr
    assert tree(tmp_path) == {}


def test_nothing_of_a_finished_run_is_lost_to_a_mistake(tmp_path, capsys) -> None:
    """Asked to overwrite, the program checks everything else first."""
    directory = tmp_path / "run"
    (directory / "checkpoints").mkdir(parents=True)
    for name in ("summary.json", "metrics.jsonl", "checkpoints/mine"):
        (directory / name).write_text("not to be lost")
    for mistake in ("train.rounds=x", "data.num_clients=100000", "model.head_layers=9"):
        refused(capsys, tmp_path, *SHORT, f"run.dir={directory}", "run.overwrite=true", mistake)
