"""What more ranks bring: client-updates a second, what of a round is not local training, and how even the work is.

    python tests/benchmarks/scale_in_ranks.py [--quick] [section.field=value ...]

Speed: 40 clients of the digits, Dirichlet(0.1), all in every round, on 1, 2, 4 and 8 ranks that all train, started in
turn and again; a figure is the median of a start's rounds, without evaluation and checkpoints. The share of each part
of a round is of its wall time, the mean over ranks; that of the reduction holds the waiting for slower ranks, and the
record is the server's. Balance: 100 clients, all of a round or a fifth of them; CPU seconds that the busiest rank
spends on local training, over the mean of the ranks, which does not depend on how many cores they share.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import ranks
import torch.distributed as dist
from opened import opened
from ranks import run_ranks
from rows import Row, cannot, main, measured

from fedbsd_dist.wire.world import World

SECONDS = 300, 70
"""It takes, whole and quick."""

ranks.TIMEOUT = 600
TRAINING = "local training"


class Parts:
    """Wall and CPU seconds of the calls of some functions, since they were last taken."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count the calls of owner.method as `name`."""
        called: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            result = called(*arguments, **named)
            self.wall[name] += time.perf_counter() - wall
            self.cpu[name] += time.thread_time() - cpu
            return result

        self.wall[name] = self.cpu[name] = 0.0
        setattr(owner, method, timed)

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """Wall and CPU seconds by name; from here on anew."""
        taken = self.wall, self.cpu
        self.wall, self.cpu = dict.fromkeys(self.wall, 0.0), dict.fromkeys(self.cpu, 0.0)
        return taken


def measure(world: World, folder: str, rounds: int, options: list[str]) -> list[tuple[float, float, dict[str, float]]]:
    """Of every round: its seconds, this rank's CPU seconds of local training, and wall seconds of the round's parts."""
    of_all = ["server.trains=true", "train.local_epochs=1", "data.partition=dirichlet", "data.alpha=0.1"]
    federation = opened(world, Path(folder), [*of_all, *options])
    state, parts = federation.federation, Parts()
    parts.watch(state, "receive", "loading clients")
    parts.watch(state.method, "learn", TRAINING)
    parts.watch(state, "upload", "uploading")
    parts.watch(state.channel, "reduce", "reduction and waiting")
    parts.watch(federation.recorder, "round", "record")
    dist.barrier()
    found = []
    for _ in range(rounds + 1):
        seconds, _ = federation.timed()
        wall, cpu = parts.take()
        found.append((seconds, cpu[TRAINING], wall))
    return found[1:]  # the first round warms up


def rows(quick: bool, *options: str) -> Iterator[Row]:
    """Speed, parts of a round, balance."""
    cores = len(os.sched_getaffinity(0))
    sizes = [1, 2, 4] if quick else [1, 2, 4, 8]
    starts = 2 if quick else 5
    yield from _speed(sizes, starts, cores, [*options])
    for size in (2, 4) if quick else (2, 4, 8):
        for participation in (1.0, 0.2):
            everybody = [f"train.participation={participation}", "data.num_clients=100", "data.min_samples=2"]
            with tempfile.TemporaryDirectory() as folder:
                of_ranks = run_ranks(size, measure, folder, 5, [*everybody, *options])
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
            rounds = [one for of_rank in of_ranks for one in of_rank]
            total = sum(seconds for seconds, _, _ in rounds)
            shares[size].append({part: sum(wall[part] for _, _, wall in rounds) / total for part in rounds[0][2]})
    for size in sizes:
        where = f"{size} rank{'s' if size > 1 else ''} on {cores} cores"
        yield measured(7, f"{where}: client-updates a second", speeds[size], "a second")
        if size > 1:
            ratios = [more / one for more, one in zip(speeds[size], speeds[1], strict=True)]
            yield measured(7, f"{where}: the same, to one rank", ratios)
        if size > cores:
            why = f"{size} ranks share {cores} cores. Run it on a machine with {size} cores."
            yield cannot(7, f"{where}: parts of a round", why)
            continue
        apart = [1 - of[TRAINING] for of in shares[size]]
        yield measured(7, f"{where}: not local training", [100 * share for share in apart], "% of a round")
        for part in shares[size][0]:
            if part != TRAINING:
                yield measured(7, f"{where}: {part}", [100 * of[part] for of in shares[size]], "% of a round")


if __name__ == "__main__":
    main(rows)
