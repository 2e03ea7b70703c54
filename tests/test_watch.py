"""A rank that is dead or stuck, in whatever phase, ends the run on all ranks, with one message that names it."""

import functools
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from pkgutil import resolve_name

import pytest
import ranks
import torch.distributed as dist
from test_interface import SHORT

from fedbsd_dist import main
from fedbsd_dist.wire import world
from fedbsd_dist.wire.watch import BEAT
from fedbsd_dist.wire.world import World

SILENCE, PATIENCE = 8, 10
"""Seconds."""
MARGIN = 12
"""Seconds above those, on a busy machine: beats, and giving the first who knows the time to say it."""
HOSTED = {0: "", 1: ", clients 2, 3", 2: ", clients 0, 1"}


@dataclass
class Case:
    """A rank that gets no further than some call of a function."""

    victim: int
    owner: str
    name: str
    call: int
    """Of which call of the function, from 1."""
    at: str
    """What the message says that it was doing."""
    how: str = "stop"
    """`stop`: SIGSTOP. `kill`: SIGKILL. `hang`: its main thread alone does not go on."""
    options: list[str] = field(default_factory=list)


MAIN, FEDERATION, RECORDER = "main", "federation:Federation", "record.recorder:Recorder"
TESTING = "testing:Testing"
LEARNS = r"round \d: client \d learns"
CASES = {
    "options": Case(1, MAIN, "expand", 1, "starting"),
    "plan": Case(1, MAIN, "make_plan", 1, "data, each host's"),
    "claiming the directory": Case(2, "record.claim", "check_shared", 1, "start"),
    "joining": Case(0, MAIN, "Federation", 1, "making the process group"),
    "learning": Case(1, FEDERATION, "receive", 1, LEARNS),
    "the sum": Case(2, "wire.channel:Channel", "_sum", 2, LEARNS),
    "evaluation": Case(1, TESTING, "received", 1, "round 1: after the sum", options=["evaluate.every=1"]),
    "last evaluation": Case(2, TESTING, "of", 1, r"client \d is tested, trained"),
    "checkpoint": Case(1, "record.checkpoint", "_save", 1, ".*", options=["checkpoint.every=1"]),
    "the digest": Case(1, FEDERATION, "state_sha256", 1, "round 2: evaluation"),
    "the record": Case(0, RECORDER, "round", 1, "round 1: after the sum"),
    "the end": Case(1, "wire.world:World", "leave", 1, "(round 2: state digest|writing the checkpoint)"),
    "killed, learning": Case(1, FEDERATION, "receive", 1, LEARNS, how="kill"),
    "killed, server": Case(0, RECORDER, "round", 2, ".*", how="kill"),
    "hanging, learning": Case(2, FEDERATION, "receive", 1, LEARNS, how="hang"),
    "hanging, plan": Case(1, MAIN, "make_plan", 1, "data, each host's", how="hang"),
    "hanging, server": Case(0, RECORDER, "round", 1, "round 1: after the sum", how="hang"),
}


def _play(here: World, case: Case, folder: Path) -> None:
    """One rank of a case; what it says goes to a file."""
    import torch

    torch.set_num_threads(1)
    with (folder / f"{here.rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    here.watch.silence = SILENCE
    if here.rank == case.victim:
        _trap(case, folder)
    patience = PATIENCE if case.how == "hang" else 1000
    options = [*SHORT, f"run.dir={folder / 'run'}", f"wire.silence={SILENCE}", f"wire.timeout={patience}"]
    main.run([*options, *case.options], here)


def _trap(case: Case, folder: Path) -> None:
    owner = resolve_name(f"fedbsd_dist.{case.owner}")
    original, calls = getattr(owner, case.name), 0

    def trap(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == case.call:
            time.sleep(2 * BEAT)  # long enough to say where it is
            (folder / "trapped").touch()
            if case.how == "hang":
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGSTOP if case.how == "stop" else signal.SIGKILL)
        return original(*arguments, **options)

    functools.update_wrapper(trap, original)
    setattr(owner, case.name, trap)


@dataclass
class Outcome:
    seconds: float
    """From the trap to the end of the last other rank."""
    codes: dict[int, int | None]
    """Of the other ranks."""
    said: list[str]
    """By all ranks, of what is ours."""


def _outcome(case: Case, folder: Path) -> Outcome:
    processes = ranks.start_ranks(3, _play, case, folder)
    others = {rank: process for rank, process in enumerate(processes) if rank != case.victim}
    while not (folder / "trapped").exists() and processes[case.victim].is_alive():
        time.sleep(0.05)
    start = time.monotonic()
    for process in others.values():
        process.join(start + 60 - time.monotonic())
    seconds = time.monotonic() - start
    codes = {rank: process.exitcode for rank, process in others.items()}
    for process in processes:
        process.kill()
    texts = (path.read_text() for path in sorted(folder.glob("*.txt")))
    return Outcome(seconds, codes, [line for text in texts for line in text.split("fedbsd_dist: ")[1:]])


def _come(rank: int, port: int, folder: Path) -> None:
    """One of two ranks of three, whose store is torchrun's."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    with (folder / f"{rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 2)
    world.ARRIVAL = timedelta(seconds=4)
    world.meet()


def test_a_rank_that_does_not_come_is_named(tmp_path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [ranks._CONTEXT.Process(target=_come, args=(rank, store.port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [1, 1]
    said = (tmp_path / "0.txt").read_text() + (tmp_path / "1.txt").read_text()
    assert said.count("fedbsd_dist: ") == 1
    assert "rank 2 of 3 did not come within 4 s" in said


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    """Of all cases: several at once, for they do little but wait."""
    folders = {name: tmp_path_factory.mktemp("case") for name in CASES}
    with ThreadPoolExecutor(6) as pool:
        futures = {name: pool.submit(_outcome, case, folders[name]) for name, case in CASES.items()}
        return {name: future.result() for name, future in futures.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_lost_rank_ends_the_run_and_is_named(name: str, outcomes: dict[str, Outcome]) -> None:
    case, outcome = CASES[name], outcomes[name]
    assert outcome.codes == dict.fromkeys({0, 1, 2} - {case.victim}, 1)
    assert outcome.seconds < max(SILENCE, PATIENCE) + MARGIN
    assert len(outcome.said) == 1
    hosted = HOSTED[case.victim] if case.name not in ("expand", "make_plan") else ""
    assert re.match(rf"rank {case.victim} \(host [^,)]+{hosted}\) .*at: {case.at}\.", outcome.said[0])
    assert "run.resume=auto" in outcome.said[0]
