"""Asked to stop, on other ranks, out of room, or launched twice: a run is saved, goes on, or says why not."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from ranks import federate, run_ranks
from test_interface import alone, tree
from test_resume import OPTIONS, Stopped, outcome, resume, stop_in_round
from test_resume import whole as whole  # the same run that was never stopped

from fedbsd_dist import environment, main, plan
from fedbsd_dist.record import claim
from fedbsd_dist.record.recorder import Recorder
from fedbsd_dist.record.saved import verified
from fedbsd_dist.wire.world import World


@pytest.fixture
def signals():
    """As they were, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(round: int, *numbers: int) -> None:
    """The server gets signals while it records a round, before its checkpoint."""
    recorded = Recorder.round

    def record(self, report, entries) -> None:
        recorded(self, report, entries)
        if report.round == round:
            for number in numbers:
                os.kill(os.getpid(), number)

    Recorder.round = record


def _signalled(world: World, run: Path, rank: int, number: int, *options: str) -> str:
    """One rank of a run gets a signal in round 1; how its process ends, and what it says."""
    if world.rank == rank:
        reduce = main.Federation.round

        def round(self, number_of_round):
            if number_of_round == 1:
                os.kill(os.getpid(), number)
            return reduce(self, number_of_round)

        main.Federation.round = round
    with (run.parent / f"{world.rank}.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main.run([*OPTIONS, f"run.dir={run}", *options], world)
    return (run.parent / f"{world.rank}.txt").read_text()


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGUSR2], [signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM]]
)
def test_a_signal_ends_the_run_after_the_round_that_agrees_on_it(
    numbers: list[int], whole: Path, tmp_path, monkeypatch, signals, capsys
) -> None:
    """Also several signals, and where no checkpoint was due."""
    path = tmp_path / "run"
    monkeypatch.setattr(Recorder, "round", Recorder.round)
    signalled(1, *numbers)
    assert alone(*OPTIONS, f"run.dir={path}", "checkpoint.every=0") == 0
    monkeypatch.undo()
    assert "asked to stop: saved after round 2 of 4" in capsys.readouterr().out
    assert (path / "PREEMPTED").read_text() == "after round 2\n"
    assert verified(path / "checkpoints/round-000002").round == 2
    assert not (path / "summary.json").exists()
    assert resume(path) == 0
    assert not (path / "PREEMPTED").exists()
    assert outcome(path) == outcome(whole)


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (2, signal.SIGUSR2)])
def test_a_signal_to_any_rank_ends_all_of_them(rank: int, number: int, tmp_path) -> None:
    said = run_ranks(3, _signalled, tmp_path / "run", rank, number)
    assert "asked to stop: saved after round 1 of 4" in said[0]
    assert said[1:] == ["", ""]
    verified(tmp_path / "run/checkpoints/round-000001")
    federate(tmp_path / "run", 3, *OPTIONS, "run.resume=auto")
    federate(tmp_path / "whole", 3, *OPTIONS)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_signal_in_the_last_round_changes_nothing(whole: Path, tmp_path, monkeypatch, signals) -> None:
    monkeypatch.setattr(Recorder, "round", Recorder.round)
    signalled(3, signal.SIGTERM)  # heard in round 4
    assert alone(*OPTIONS, f"run.dir={tmp_path / 'run'}") == 0
    assert outcome(tmp_path / "run") == outcome(whole)


def test_an_interrupt_is_one_line_and_the_run_goes_on_from_its_checkpoint(whole: Path, tmp_path, monkeypatch, capsys):
    recorded = Recorder.round

    def interrupted(self, report, entries) -> None:
        if report.round == 4:
            raise KeyboardInterrupt
        recorded(self, report, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "round", interrupted)
        assert alone(*OPTIONS, f"run.dir={tmp_path / 'run'}") == 130
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert alone(*OPTIONS, f"run.dir={tmp_path / 'run'}", "run.resume=auto") == 0
    assert outcome(tmp_path / "run") == outcome(whole)


def test_two_sweeps_of_the_same_second_do_not_share_a_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("runs/sweep-20260131-120000")
    monkeypatch.setattr(claim, "new_name", lambda *_: name)
    name.mkdir(parents=True)
    (name / claim.LOCK).write_text("host a, process 7")
    assert alone(*OPTIONS, "seed=[0,1]") == 2
    assert "another launch has just begun there. Start this one again." in capsys.readouterr().err
    assert {path.name for path in name.iterdir()} == {claim.LOCK}


def test_a_signal_ends_a_sweep(tmp_path, monkeypatch, signals, capsys) -> None:
    monkeypatch.setattr(Recorder, "round", Recorder.round)
    signalled(1, signal.SIGTERM)
    sweep = (*OPTIONS, f"sweep.dir={tmp_path}", "seed=[0,1]", "run.resume=auto")
    assert alone(*sweep) == 0
    monkeypatch.undo()
    first, second = (tmp_path / f"seed{seed}" for seed in (0, 1))
    assert (first / "PREEMPTED").exists()
    assert not second.exists()
    assert alone(*sweep) == 0
    assert "resumed      after round 2" in capsys.readouterr().out
    assert (first / "summary.json").exists()
    assert (second / "summary.json").exists()


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    """A run on 3 ranks stopped after round 2, and `whole`, the same one never stopped."""
    path = tmp_path_factory.mktemp("exact")
    federate(path / "whole", 3, *OPTIONS, "wire.sum=exact")
    run_ranks(3, _signalled, path / "run", 1, signal.SIGTERM, "wire.sum=exact")
    return path


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_run_goes_on_with_another_number_of_ranks_if_told_to(size: int, exact: Path, tmp_path) -> None:
    path = Path(shutil.copytree(exact / "run", tmp_path / "run"))
    options = (*OPTIONS, "wire.sum=exact", "run.resume=auto")
    before = tree(path)
    assert run_ranks(size, _overheard, tmp_path, [*options, f"run.dir={path}"]) == [("exit", 2)] * size
    message = (tmp_path / "0.txt").read_text()
    assert f"is of 3 ranks (server.trains=false), this launch has {size} (false). With run.rehost=true" in message
    assert tree(path) == before
    assert federate(path, size, *options, "run.rehost=true") == [None] * size
    assert json.loads((path / "summary.json").read_text())["world_size"] == size
    found, expected = outcome(path), outcome(exact / "whole")
    for name in ("metrics.jsonl", "summary"):  # but for the bytes between ranks
        for line in [found[name], expected[name]]:
            for entry in line if isinstance(line, list) else [line]:
                del entry["bytes"]
                entry.pop("world_size", None)
    assert found["summary"] == expected["summary"]
    assert found["metrics.jsonl"] == expected["metrics.jsonl"]
    assert found["clients.csv"] == expected["clients.csv"]


def _checked(world: World, folder: Path, other: str) -> str:
    """`--check` on ranks of which the last is in some way not like the others."""
    folder.joinpath("elsewhere").mkdir(exist_ok=True)
    os.chdir(folder)
    if world.rank == world.size - 1:
        if other == "code":
            plan.code_sha256 = lambda: "0" * 64
        if other == "directory":
            os.chdir(folder / "elsewhere")
    options = [*OPTIONS, "train.lr=0.1" if other == "options" and world.rank == world.size - 1 else "train.lr=0.2"]
    with (folder / f"{world.rank}.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main.run([*options, "run.dir=runs/here", "--check"], world)
    return (folder / f"{world.rank}.txt").read_text()


def test_a_check_compares_the_ranks_and_measures_the_wire(tmp_path) -> None:
    said = run_ranks(3, _checked, tmp_path, "nothing")
    assert "agreed         all 3 ranks, on 1 host: code, packages, options, data, partition, model" in said[0]
    assert "all ranks see it and can write" in said[0]
    assert "a second from each rank by the ring model" in said[0]
    assert said[1:] == ["", ""]
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "0.txt", "1.txt", "2.txt"}


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        ("code", "has other code than rank 0"),
        ("options", "has other options than rank 0"),
        ("directory", "rank 2 does not see what rank 0 writes there"),
    ],
)
def test_a_check_finds_the_rank_that_is_not_like_the_others(other: str, hint: str, tmp_path) -> None:
    assert run_ranks(3, _checked, tmp_path, other) == [("exit", 2)] * 3
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)]
    assert said[0].count("fedbsd_dist: ") == 1
    assert hint in said[0]
    assert "rank 2" in said[0]
    assert said[1:] == ["", ""]


def test_the_code_is_all_source_files_of_the_package(monkeypatch, tmp_path) -> None:
    package = Path(environment.__file__).parent
    copy = Path(shutil.copytree(package, tmp_path / "fedbsd_dist", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(environment, "__file__", str(copy / "environment.py"))
    same = environment.code_sha256()
    (copy / "wire/ledger.py").write_text((copy / "wire/ledger.py").read_text() + "\n")
    assert environment.code_sha256() != same
    monkeypatch.undo()
    assert environment.code_sha256() == same


def test_two_launches_do_not_write_in_one_directory(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.5)
    path = tmp_path / "run"
    path.mkdir()
    with (path / claim.LOCK).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("host a, process 7")
        lock.flush()
        assert alone(*OPTIONS, f"run.dir={path}") == 2
        assert "another launch (host a, process 7) is writing there" in capsys.readouterr().err
        assert tree(path) == {}
    assert alone(*OPTIONS, f"run.dir={path}", "train.rounds=1") == 0


@pytest.mark.parametrize("mine", [True, False])
def test_started_again_by_torchrun_a_run_is_not_overwritten_but_goes_on(
    mine: bool, whole: Path, tmp_path, monkeypatch, capsys
) -> None:
    """What the same launch has made; another launch's run is overwritten, as asked for."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    stop_in_round(4, tmp_path / "run", "run.overwrite=true")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a" if mine else "b")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    capsys.readouterr()
    assert alone(*OPTIONS, f"run.dir={tmp_path / 'run'}", "run.overwrite=true") == 0
    assert ("resumed      after round 3" in capsys.readouterr().out) == mine
    assert outcome(tmp_path / "run") == outcome(whole)


def test_started_again_by_torchrun_a_sweep_is_found_and_goes_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    stopped = Recorder.round

    def stop(self, report, entries) -> None:
        if self._config.seed == 1 and report.round == 3:
            raise Stopped
        stopped(self, report, entries)

    monkeypatch.setattr(Recorder, "round", stop)
    sweep = (*OPTIONS, "seed=[0,1]", "run.overwrite=true")
    with pytest.raises(Stopped):
        alone(*sweep)
    monkeypatch.setattr(Recorder, "round", stopped)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    capsys.readouterr()
    assert alone(*sweep) == 0
    out = capsys.readouterr().out
    assert "seed0  finished already" in out
    assert "resumed      after round 2" in out
    assert len([*(tmp_path / "runs").iterdir()]) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system on a folder, with options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"needs a small file system to fill, and may not mount one: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _overheard(world: World, folder: Path, arguments: list[str]) -> None:
    with (folder / f"{world.rank}.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main.run(arguments, world)


def test_a_full_disk_is_told_once_and_nothing_is_lost(small_disk, whole: Path, tmp_path) -> None:
    """It fills up while the server or a client rank writes, whichever comes first; with room the run goes on."""
    disk = small_disk("size=2500k")
    arguments = [*OPTIONS, f"run.dir={disk / 'run'}", "run.resume=auto"]
    assert run_ranks(3, _overheard, tmp_path, arguments) == [("exit", 2)] * 3
    said = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(3))
    assert said.count("fedbsd_dist: ") == 1
    assert "cannot be written (No space left on device)" in said
    assert "Traceback" not in said
    done = [path.name for path in (disk / "run/checkpoints").iterdir() if (path / "manifest.json").exists()]
    assert done  # some round was saved before
    for name in done:
        verified(disk / "run/checkpoints" / name)
    small_disk("remount,size=100m")
    assert run_ranks(3, _overheard, tmp_path, arguments) == [None] * 3
    federate(tmp_path / "whole", 3, *OPTIONS)
    assert outcome(disk / "run") == outcome(tmp_path / "whole")


def test_a_disk_that_has_become_read_only(small_disk, tmp_path, capsys) -> None:
    disk = small_disk("size=100m")
    stop_in_round(3, disk / "run")
    before = tree(disk)
    small_disk("remount,ro")
    capsys.readouterr()
    assert resume(disk / "run") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "cannot write there (Read-only file system)" in err
    assert tree(disk) == before
