"""What more ranks bring: client-updates a second, what of a round is not local training, and how even the work is.

    python tests/benchmarks/scale_in_ranks.py [--quick] [section.field=value ...]

Speed: 40 clients of the digits, Dirichlet(0.1), all in every round, on 1, 2, 4 and 8 ranks that all train, started in
turn and again; a figure is the median of a start's rounds, without evaluation and checkpoints. Shares are of a round's
wall time, the mean over ranks, by phase as the record has them; the record is the server's alone. Balance: 100 clients,
all of a round or a fifth of them; CPU seconds that the busiest rank spends on local training, over the mean of the
ranks, which does not depend on how many cores they share.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import ranks
from opened import opened
from ranks import run_ranks
from rows import Row, cannot, main, measured

from fedbsd_dist.wire.world import World

SECONDS = 400, 80
"""It takes, whole and quick."""

ranks.TIMEOUT = 600
LEARNING = ("train", "distil")
"""Phases that are local training."""


def measure(world: World, folder: str, rounds: int, options: list[str]) -> list[tuple[float, float, dict[str, float]]]:
    """Of every round: its seconds, this rank's CPU seconds of local training, and the share of each phase in percent,
    the mean over ranks.
    """
    of_all = ["server.trains=true", "train.local_epochs=1", "data.partition=dirichlet", "data.alpha=0.1"]
    federation = opened(world, Path(folder), [*of_all, *options])
    method, spent = federation.federation.method, [0.0]
    learn = method.learn

    def timed(turn: Any) -> Any:
        start = time.thread_time()
        result = learn(turn)
        spent.append(time.thread_time() - start)
        return result

    method.learn = timed  # type: ignore[method-assign]
    found = []
    for _ in range(rounds + 1):
        spent.clear()
        seconds, report = federation.timed()
        shares = {phase: 100 * float(of_ranks.mean()) / seconds for phase, of_ranks in report.phases.items()}
        found.append((seconds, sum(spent), shares))
    return found[1:]  # the first round warms up


def rows(quick: bool, *options: str) -> Iterator[Row]:
    """Speed, phases of a round, balance."""
    cores = len(os.sched_getaffinity(0))
    sizes = [1, 2, 4] if quick else [1, 2, 4, 8]
    starts = 2 if quick else 5
    yield from _speed(sizes, starts, cores, [*options])
    for size in (2, 4) if quick else (2, 4, 8):
        for participation in (1.0, 0.2):
            everybody = [f"train.participation={participation}", "data.num_clients=100", "data.min_samples=2"]
            # cohorts of early rounds weigh more in who is on which rank, so that as many as a run has by default count
            rounds = 5 if participation == 1 else 10 if quick else 39
            with tempfile.TemporaryDirectory() as folder:
                of_ranks = run_ranks(size, measure, folder, rounds, [*everybody, *options])
            training = [[cpu for _, cpu, _ in of_rank] for of_rank in of_ranks]
            uneven = [max(of_round) / statistics.mean(of_round) for of_round in zip(*training, strict=True)]
            what = f"{size} ranks, participation {participation:g}: busiest rank's training over the mean"
            yield measured(7, what, uneven, bound=1.1)


def _speed(sizes: list[int], starts: int, cores: int, options: list[str]) -> Iterator[Row]:
    clients = 40
    everybody = ["train.participation=1.0", f"data.num_clients={clients}", "data.min_samples=2"]
    speeds: dict[int, list[float]] = {size: [] for size in sizes}
    shares: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(starts):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                of_ranks = run_ranks(size, measure, folder, 2, [*everybody, *options])
            speeds[size].append(clients / statistics.median(seconds for seconds, _, _ in of_ranks[0]))
            of_rounds = [shares_of_round for _, _, shares_of_round in of_ranks[0]]
            shares[size].append({phase: statistics.mean(of[phase] for of in of_rounds) for phase in of_rounds[0]})
    for size in sizes:
        where = f"{size} rank{'s' if size > 1 else ''} on {cores} cores"
        yield measured(7, f"{where}: client-updates a second", speeds[size], "a second")
        if size > 1:
            ratios = [more / one for more, one in zip(speeds[size], speeds[1], strict=True)]
            yield measured(7, f"{where}: the same, to one rank", ratios)
        if size > cores:
            why = f"{size} ranks share {cores} cores. Run it on a machine with {size} cores."
            yield cannot(7, f"{where}: phases of a round", why)
            continue
        apart = [100 - sum(of[phase] for phase in LEARNING) for of in shares[size]]
        yield measured(7, f"{where}: not local training", apart, "% of a round")
        for phase in shares[size][0]:
            if phase not in (*LEARNING, "evaluate", "checkpoint"):
                yield measured(7, f"{where}: {phase}", [of[phase] for of in shares[size]], "% of a round")


if __name__ == "__main__":
    main(rows)
