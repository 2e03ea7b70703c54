"""What grows with the number of clients, where a round has always 100 of them?

    python tests/benchmarks/scale_in_clients.py [--quick] [section.field=value ...]

On 2 ranks that both train, with 100, 1,000 and 10,000 clients of 20 training and 4 test samples each (noise, 1 x 16 x
16): whole rounds, recorded, in turn of each number of clients and in the same processes, without evaluation, alone and
with checkpoints as by default (every 10 rounds, written beside them; the time until it is written counts); the
evaluation of all clients with its record, per client; and in processes of their own, for FedBSD and for Ditto, which
keeps a whole model of each client, the memory of a rank that is not mapped from files, when all clients have learned
once, less what it was at its start, for each place of private state (client.store), and that while a checkpoint is
written. A ratio is of one number of clients to 100, round by round.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import ranks
import torch.distributed as dist
from opened import Opened, opened, own_bytes
from ranks import run_ranks
from rows import Row, main, measured
from synthetic import overrides

from fedbsd_dist.wire.world import World

SECONDS = 420, 120
"""It takes, whole and quick."""

ranks.TIMEOUT = 1000
COHORT = 100
FEWEST = COHORT
PERIOD = 10
"""Rounds from one checkpoint to the next."""


def start(world: World, folder: str, clients: int, options: list[str]) -> Opened:
    """A federation of so many clients."""
    of_all = [f"train.participation={COHORT / clients}", "train.local_epochs=1", "server.trains=true"]
    data = overrides(clients, train=20, test=4, height=16, width=16, channels=1)
    return opened(world, Path(folder) / f"{clients}", [*data, *of_all, *options])


def time_rounds(
    world: World, folder: str, numbers: list[int], runs: int, options: list[str]
) -> dict[int, tuple[list[float], float]]:
    """Number of clients -> seconds of each round, and of one evaluation of all clients, with its record."""
    evaluating = [*options, f"evaluate.every={runs + 2}"]
    federations = {clients: start(world, folder, clients, evaluating) for clients in numbers}
    times: dict[int, list[float]] = {clients: [] for clients in numbers}
    for _ in range(runs + 1):
        for clients, federation in federations.items():
            times[clients].append(federation.timed()[0])
    evaluated = {}
    for clients, federation in federations.items():
        report = federation.round()
        evaluated[clients] = report.evaluation_seconds + federation.recording
    return {clients: (of[1:], evaluated[clients]) for clients, of in times.items()}  # the first round warms up


def time_saving(
    world: World, folder: str, numbers: list[int], runs: int, options: list[str]
) -> dict[int, list[tuple[float, float, float]]]:
    """Number of clients -> of each period: seconds a round, seconds that a checkpoint stops the rounds when it begins,
    and seconds until it is written.
    """
    federations = {clients: start(world, folder, clients, options) for clients in numbers}
    for federation in federations.values():
        federation.round()
    times: dict[int, list[tuple[float, float, float]]] = {clients: [] for clients in numbers}
    for _ in range(runs):
        for clients, federation in federations.items():
            saving, state = federation.checkpoints, federation.federation
            before = saving.seconds
            dist.barrier()
            began = time.perf_counter()
            saving.begin(federation.number, state.shared, state.private)
            begun = time.perf_counter() - began
            for _ in range(PERIOD):
                federation.round()
            saving.finish()
            dist.barrier()
            times[clients].append(((time.perf_counter() - began) / PERIOD, begun, saving.seconds - before))
    return times


def measure_memory(world: World, folder: str, clients: int, options: list[str]) -> dict[str, float]:
    """Bytes of this rank."""
    before = own_bytes()
    federation = start(world, folder, clients, options)
    federation.round()
    state = federation.federation
    for client in state.training:
        state.private.room(client)  # as if it had learned
    grown = own_bytes() - before
    federation.checkpoints.begin(federation.number, state.shared, state.private)
    saving = own_bytes() - before
    dist.barrier()
    mine = [state.shards[client] for client in federation.plan.hosted[world.rank]]
    return {
        "grown": grown,
        "saving": saving,
        "private": sum(values.nbytes for of_one in state.private.learned().values() for values in of_one.values()),
        "samples": sum(shard.train_images.nbytes + shard.test_images.nbytes for shard in mine),
    }


def rows(quick: bool, *options: str) -> Iterator[Row]:
    """Rounds, rounds with checkpoints, evaluation, memory."""
    numbers = [FEWEST, 10_000] if quick else [FEWEST, 1_000, 10_000]
    runs = 3 if quick else 9
    with tempfile.TemporaryDirectory() as folder:
        times = run_ranks(2, time_rounds, folder, numbers, runs, [*options])[0]
    for clients, (seconds, _) in times.items():
        what = f"a round of {COHORT} of {clients:,} clients"
        yield measured(6, what, [1000 * of for of in seconds], "ms")
        if clients > FEWEST:
            ratios = [more / fewest for more, fewest in zip(seconds, times[FEWEST][0], strict=True)]
            yield measured(6, f"{what} to one of {FEWEST}", ratios, bound=1.2)
    for clients, (_, evaluation) in times.items():
        yield measured(6, f"evaluation of {clients:,} clients and its record", [1000 * evaluation / clients], "ms each")
    yield from _saving(numbers, 1 if quick else 5, [*options])
    yield from _memory(1_000 if quick else 10_000, [*options])


def _saving(numbers: list[int], periods: int, options: list[str]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        saving = run_ranks(2, time_saving, folder, numbers, periods, options)[0]
    for clients, of_periods in saving.items():
        each, begun, written = zip(*of_periods, strict=True)
        what = f"{clients:,} clients, a checkpoint every {PERIOD} rounds"
        yield measured(6, f"{what}: a round", [1000 * seconds for seconds in each], "ms")
        yield measured(6, f"{what}: rounds stand still", [1000 * seconds for seconds in begun], "ms")
        yield measured(6, f"{what}: until it is written", written, "s")
        if clients > FEWEST:
            ratios = [more[0] / fewest[0] for more, fewest in zip(of_periods, saving[FEWEST], strict=True)]
            yield measured(6, f"{what}: a round to one with {FEWEST}", ratios, bound=1.2)


def _memory(most: int, options: list[str]) -> Iterator[Row]:
    for method in ("fedbsd", "ditto"):
        for store in ("device", "mmap"):
            found = {}
            for clients in (FEWEST, most):
                with tempfile.TemporaryDirectory() as folder:
                    chosen = [f"method.name={method}", f"client.store={store}", *options]
                    found[clients] = run_ranks(2, measure_memory, folder, clients, chosen)[1]
            what = f"{method}, client.store={store}"
            private = found[most]["private"] / 1e6
            yield measured(6, f"{what}, {most:,} clients: memory of a rank", [found[most]["grown"] / 1e6], "MB")
            yield measured(6, f"{what}, {most:,} clients: while saving", [found[most]["saving"] / 1e6], "MB")
            yield measured(6, f"{what}, {most:,} clients: private state of a rank", [private], "MB")
            in_memory = ["samples", *(["private"] if store == "device" else [])]
            rest = [found[clients]["grown"] - sum(found[clients][of] for of in in_memory) for clients in (FEWEST, most)]
            each = (rest[1] - rest[0]) / (most - FEWEST) / 1e3
            yield measured(6, f"{what}: memory beyond {' and '.join(in_memory)}", [each], "kB a client more")


if __name__ == "__main__":
    main(rows)
