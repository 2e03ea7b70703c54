"""What does the round's reduction cost beyond a bare all-reduce of the same bytes?

    python tests/benchmarks/reduction.py [--quick] [RANKS ...]

Times, in turn and on the same ranks, (a) the channel's reduction of one shared group: the all-reduce with its clocks
and ledger, the mean, and the sum left empty for the next round; and (b) `dist.all_reduce` of a tensor of as many bytes
and of the same kind. Both begin at a barrier; a figure is that of the rank that takes longest. Sizes are those of the
digits' model, of the 582,026-parameter CNN, and of a ResNet-18, as float32 and as exact int64, which is twice as large.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import ranks
import torch
import torch.distributed as dist
from ranks import run_ranks
from rows import Row, main, measured

from fedbsd_dist.wire.channel import Channel
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World

SECONDS = 120, 30
"""It takes, whole and quick."""

ranks.TIMEOUT = 600
PARAMETERS = (85_376, 582_026, 11_181_642)


def measure(world: World, parameters: int, exact: bool, runs: int) -> list[tuple[float, float]]:
    """(seconds of the channel's reduction, seconds of the bare one) on this rank, run by run."""
    torch.set_num_threads(1)
    placement = world.place("cpu")
    world.join(placement)
    group = torch.rand(parameters)
    shared, ledger = {"backbone": group}, Ledger()
    channel = Channel(world, placement, ledger, shared=shared, num_metrics=2, exact=exact, weight_bound=world.size)
    channel.start()
    losses, times = torch.zeros(2), []
    bare: torch.Tensor | None = None
    for number in range(runs + 2):
        channel.add(shared, 1.0, losses)
        dist.barrier()
        start = time.perf_counter()
        channel.reduce(number)
        ours = time.perf_counter() - start
        if bare is None:
            entry = ledger.drain()[0]
            bare = torch.zeros(entry.elements, dtype=torch.int64 if exact else torch.float32)
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(bare)
        times.append((ours, time.perf_counter() - start))
    return times[2:]  # the first ones warm up


def rows(quick: bool, *arguments: str) -> Iterator[Row]:
    """A row for each number of ranks, kind and size."""
    for size in map(int, arguments or ("2", "3")):
        for exact in (False, True):
            for parameters in PARAMETERS[:2] if quick else PARAMETERS:
                of_ranks = run_ranks(size, measure, parameters, exact, 7 if quick else 25)
                slowest = [[max(kind) for kind in zip(*run, strict=True)] for run in zip(*of_ranks, strict=True)]
                megabytes = (8 if exact else 4) * parameters / 1e6
                what = f"{size} ranks, {megabytes:.3g} MB of {'int64' if exact else 'float32'}"
                yield measured(8, f"{what}, bare", [1000 * bare for _, bare in slowest], "ms")
                yield measured(8, f"{what}, ours to bare", [ours / bare for ours, bare in slowest], bound=1.1)


if __name__ == "__main__":
    main(rows)
