"""Under the real torchrun: processes killed at random instants, by files and processes alone. More of them, for every
method: tests/benchmarks/kills.py.
"""

import random
import time
from pathlib import Path

import pytest
from killing import CLIENT, OPTIONS, SERVER, VICTIMS, Killed, Launch, differing, left_over

ROUNDS = 9
RUN = (*OPTIONS, f"train.rounds={ROUNDS}", "checkpoint.every=2", "wire.sum=exact")
METRICS = "runs/*/metrics.jsonl"
Whole = tuple[Path, float]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    """The directory of the run that nobody disturbs, and the seconds from its launch to its end."""
    run, start = Killed(tmp_path_factory.mktemp("whole") / "whole", RUN, random.Random()), time.monotonic()
    run.finish()
    return run.run, time.monotonic() - start


def test_killed_and_launched_again(whole: Whole, tmp_path: Path) -> None:
    """torchrun, the server and a rank of clients, in random order; then nobody."""
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    run = Killed(tmp_path / "killed", RUN, draw)
    for number, victim in enumerate(draw.sample(VICTIMS, 3)):
        # the first one in any case before the end, though the machine may be less busy than it was
        after = draw.uniform(0, (0.9 if number else 0.5) * whole[1])
        phase = run.kill(victim, after)
        print(f"seed {seed}: {victim}, after {after:.2f} s: {phase or 'too late'}")  # shown where the test fails
        assert phase or number
    run.finish()
    assert differing(run.run, whole[0]) == []
    assert left_over(run.launches) == []


def test_torchrun_starts_the_ranks_again(whole: Whole, tmp_path: Path) -> None:
    """It goes on from its last checkpoint by itself: nobody told it to resume, or where the run is."""
    draw = random.Random()
    launch = Launch(tmp_path / "launch.txt", RUN, ["--max-restarts=2"], tmp_path)
    while not launch.ended(0.01) and sum(path.read_text().count("\n") for path in tmp_path.glob(METRICS)) < 5:
        pass  # the checkpoint of round 4 is being written, or there, and round 5 is to be made again
    assert launch.kill(draw.choice((SERVER, CLIENT)), draw)
    assert launch.code() == 0, launch.log.read_text()
    (run,) = (tmp_path / "runs").iterdir()
    after = launch.log.read_text().partition("\nresumed      after round ")[2]
    assert f"round {ROUNDS}/{ROUNDS} " in after
    assert f"round 2/{ROUNDS} " not in after
    assert differing(run, whole[0]) == []
    assert left_over([launch]) == []
