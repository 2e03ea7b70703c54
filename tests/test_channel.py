"""The round's reduction: the weighted mean it computes, what it refuses, and that it is one collective."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from fedbsd_dist.wire.channel import METRIC_BITS, RANGE_BITS, SCALAR_BITS, Aggregate, Channel
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import Placement, World

SIZES = {"backbone": 1500, "head": 37}
NUMEL = sum(SIZES.values())
NUM_METRICS = 2
LIMIT = 2.0**RANGE_BITS

Grouping = Sequence[Sequence[int]]
"""The uploads of every rank, in the order in which it adds them."""


@dataclass(frozen=True)
class Upload:
    """What one client hands in."""

    values: np.ndarray
    weight: float
    metrics: np.ndarray


def make_uploads(num: int, magnitudes: tuple[float, float], seed: int = 0) -> list[Upload]:
    """Values of both signs, log-uniform between two magnitudes, so that sums in float32 round often."""
    rng = np.random.default_rng(seed)
    low, high = np.log(magnitudes)
    return [
        Upload(
            values=(np.exp(rng.uniform(low, high, NUMEL)) * rng.choice([-1, 1], NUMEL)).astype(np.float32),
            weight=float(rng.integers(1, 500)),
            metrics=np.append(rng.uniform(0, 1000), rng.integers(1, 5000)),
        )
        for _ in range(num)
    ]


def join(world: World) -> Placement:
    torch.set_num_threads(1)
    placement = world.place("cpu")
    world.join(placement)
    return placement


def open_channel(
    world: World, placement: Placement, exact: bool, uploads: Sequence[Upload]
) -> tuple[Channel, dict[str, torch.Tensor]]:
    """A channel and the buffers registered with it."""
    groups = {name: torch.zeros(size) for name, size in SIZES.items()}
    channel = Channel(
        world,
        placement,
        Ledger(),
        shared=groups,
        num_metrics=NUM_METRICS,
        exact=exact,
        weight_bound=sum(upload.weight for upload in uploads),
    )
    return channel, groups


def add(channel: Channel, groups: dict[str, torch.Tensor], upload: Upload, sound: bool = True) -> bool:
    parts = torch.from_numpy(upload.values).split(list(SIZES.values()))
    for buffer, part in zip(groups.values(), parts, strict=True):
        buffer.copy_(part)
    metrics = torch.from_numpy(upload.metrics)
    return bool(channel.add(groups, upload.weight, metrics, torch.tensor(sound)))


def _reduce(world: World, uploads: list[Upload], rounds: list[Grouping]) -> dict[bool, list[tuple]]:
    """Exact or not -> (mean, weight, metrics) of a reduction for every grouping."""
    placement = join(world)
    results: dict[bool, list[tuple]] = {False: [], True: []}
    for exact, found in results.items():
        channel, groups = open_channel(world, placement, exact, uploads)
        for number, grouping in enumerate(rounds, 1):
            for index in grouping[world.rank]:
                add(channel, groups, uploads[index])
            aggregate = channel.reduce(number)
            assert list(aggregate.groups) == list(SIZES)
            mean = torch.cat(list(aggregate.groups.values())).numpy()
            found.append((mean, aggregate.weight, aggregate.metrics))
    return results


def plain_mean(uploads: Sequence[Upload]) -> np.ndarray:
    """sum_k w_k x_k / sum_k w_k in float64."""
    weights = np.array([upload.weight for upload in uploads])
    return weights @ np.stack([upload.values.astype(np.float64) for upload in uploads]) / weights.sum()


def scale_of(all_uploads: Sequence[Upload]) -> float:
    """Units in 1 of an exact sum: the largest power of two with which the largest sum stays within 2**62 units."""
    return 2.0 ** (62 - RANGE_BITS - math.ceil(math.log2(sum(upload.weight for upload in all_uploads))))


def exact_bound(uploads: Sequence[Upload], all_uploads: Sequence[Upload]) -> np.ndarray:
    """How far the mean of an exact sum may be from the real number, element by element.

    An upload is rounded to whole units, half a unit at most; a unit of the sum is 1/scale, and the mean
    is the sum over the total weight. The mean then becomes a float32. The products and quotients in
    float64 are a thousand times finer than either: the last factor covers them.
    """
    weight = sum(upload.weight for upload in uploads)
    return (len(uploads) / 2 / scale_of(all_uploads) / weight + np.abs(plain_mean(uploads)) * 2.0**-24) * 1.001


# the first round: a server without uploads, a rank with four and a rank with none; the second adds on
# other ranks, and would show what the first left behind
ROUNDS: list[Grouping] = [[[], [0, 1, 2, 3], []], [[4], [], [5, 0, 6]], [[], [2], []]]


def test_mean_is_the_plain_formula_on_uneven_ranks_and_rounds_do_not_leak():
    uploads = make_uploads(7, (1e-4, 10))
    by_rank = run_ranks(3, _reduce, uploads, ROUNDS)
    for exact, number in itertools.product((False, True), range(len(ROUNDS))):
        chosen = [uploads[index] for rank in ROUNDS[number] for index in rank]
        mean, weight, metrics = by_rank[1][exact][number]
        assert all(other[exact][number][0].tobytes() == mean.tobytes() for other in by_rank)
        if exact:
            bound = exact_bound(chosen, uploads)
        else:
            # each of the n products and additions rounds a number no larger than sum w |x|
            magnitudes = [Upload(np.abs(upload.values), upload.weight, upload.metrics) for upload in chosen]
            bound = 2 * len(chosen) * 2.0**-24 * plain_mean(magnitudes)
        assert (np.abs(mean - plain_mean(chosen)) <= bound).all()
        assert weight == sum(upload.weight for upload in chosen)
        total = sum(upload.metrics for upload in chosen)
        # exact: half a unit of 2**-SCALAR_BITS an upload; float32: 24 bits of the sum
        bound = len(chosen) * (2.0**-SCALAR_BITS / 2 if exact else total * 2.0**-23)
        assert (np.abs(metrics - total) <= bound).all()


def test_exact_sums_have_the_same_bits_for_every_grouping_of_the_same_uploads():
    uploads = make_uploads(24, (1e-12, LIMIT))
    uploads[3].values[:4] = LIMIT, -LIMIT, 0.0, -0.0
    for upload in uploads:
        # 1.9 units of the sum each: rounding to nearest shows, where cutting off would be beyond the bound
        upload.values[4:8] = 1.9 / scale_of(uploads) / upload.weight
    rng = np.random.default_rng(1)
    bits: dict[bool, set[tuple[bytes, ...]]] = {True: set(), False: set()}
    for size in (1, 2, 3, 8):
        groupings = [_split(rng.permutation(24), np.sort(rng.integers(0, 25, size - 1))) for _ in range(3)]
        groupings.append(_split(np.arange(24), np.zeros(size - 1, int)))  # all on the last rank
        for results in run_ranks(size, _reduce, uploads, groupings):
            for exact, found in results.items():
                bits[exact] |= {(mean.tobytes(), str(weight), metrics.tobytes()) for mean, weight, metrics in found}
            for mean, _, _ in results[True]:
                assert (np.abs(mean - plain_mean(uploads)) <= exact_bound(uploads, uploads)).all()
    assert len(bits[True]) == 1
    assert len(bits[False]) > 1  # groupings that do tell apart sums which depend on them


def _split(order: np.ndarray, cuts: np.ndarray) -> Grouping:
    return [part.tolist() for part in np.split(order, cuts)]


Plain = tuple[int, float, list[float], dict[str, list[float]]]


def plain(aggregate: Aggregate) -> Plain:
    """(number that diverged, weight, metrics, means), to be sent by the process that has it."""
    groups = {name: values.tolist() for name, values in aggregate.groups.items()}
    return aggregate.diverged, aggregate.weight, aggregate.metrics.tolist(), groups


def _diverge(world: World, exact: bool, where: str, bad: float) -> tuple[list[bool], Plain, Plain]:
    """Whether each upload of this rank counts, the sum with the bad one of rank 2, and the sum without it."""
    uploads = make_uploads(4, (0.1, 1))
    channel, groups = open_channel(world, join(world), exact, uploads)
    mine = {0: [], 1: [0, 1], 2: [2, 3]}[world.rank]
    spoilt = Upload(uploads[3].values.copy(), uploads[3].weight, uploads[3].metrics.copy())
    if where == "parameter":
        spoilt.values[NUMEL - 5] = bad  # in the second group
    elif where == "metric":
        spoilt.metrics[0] = bad
    counts = [add(channel, groups, {3: spoilt}.get(index, uploads[index]), where != "" or index != 3) for index in mine]
    aggregate = plain(channel.reduce(1))
    for index in set(mine) - {3}:
        add(channel, groups, uploads[index])
    return counts, aggregate, plain(channel.reduce(2))


LARGEST = float(torch.finfo(torch.float32).max)


@pytest.mark.parametrize(
    ("exact", "where", "bad"),
    [
        (False, "parameter", math.nan),
        (False, "parameter", -math.inf),
        (False, "parameter", LARGEST / 100),  # finite, but its weight times it is not
        (False, "metric", math.nan),
        (False, "", 0.0),
        (True, "parameter", math.nan),
        (True, "parameter", math.inf),
        (True, "parameter", -LIMIT * (1 + 2**-20)),
        (True, "metric", -math.inf),
        (True, "metric", 2.0**METRIC_BITS * 1.001),
        (True, "", 0.0),  # the client says so itself, of what it keeps
    ],
)
def test_an_upload_that_diverged_counts_for_nothing_but_itself(exact, where, bad):
    for counts, found, expected in run_ranks(3, _diverge, exact, where, bad):
        assert counts in ([], [True, True], [True, False])
        assert (found[0], expected[0]) == (1, 0)
        assert found[1:] == expected[1:]
        assert found[1] > 0
        assert found[3].keys() == SIZES.keys()


def _nobody(world: World, exact: bool) -> tuple[Plain, Plain]:
    """Sums in which no upload counts, and to which there is none."""
    uploads = make_uploads(1, (0.1, 1))
    channel, groups = open_channel(world, join(world), exact, uploads)
    add(channel, groups, uploads[0], sound=False)
    return plain(channel.reduce(1)), plain(channel.reduce(2))


@pytest.mark.parametrize("exact", [False, True])
def test_of_nobody_there_is_no_mean(exact):
    for diverged, none in run_ranks(2, _nobody, exact):
        assert diverged == (2, 0.0, [0.0] * NUM_METRICS, {})
        assert none == (0, 0.0, [0.0] * NUM_METRICS, {})


def test_the_largest_value_in_range_does_not_diverge():
    uploads = make_uploads(2, (1, 2))
    for upload in uploads:
        upload.values[:2] = LIMIT, -LIMIT
    mean, _, _ = run_ranks(2, _reduce, uploads, [[[0], [1]]])[0][True][0]
    assert mean[:2].tolist() == [LIMIT, -LIMIT]


def _gather(world: World) -> tuple[np.ndarray, np.ndarray]:
    channel, _ = open_channel(world, join(world), True, [])
    numbers = {2: [1 / 3, -1e300, 5e-324]} if world.rank == 1 else {}
    own = {world.rank: [world.rank, 2**53]}
    return (
        channel.gather(numbers, 3, 3, round=1, purpose="one rank's"),
        channel.gather(own, world.size + 1, 2, round=1, purpose="a row each"),
    )


def test_gather_is_a_table_of_what_each_rank_gave_to_the_bit():
    for first, second in run_ranks(3, _gather):
        assert first.dtype == second.dtype == np.float64
        assert first.tolist() == [[0, 0, 0], [0, 0, 0], [1 / 3, -1e300, 5e-324]]
        assert second.tolist() == [[0, 2**53], [1, 2**53], [2, 2**53], [0, 0]]


def _count(world: World) -> tuple[list[tuple[int, int]], list[tuple]]:
    """(all-reduces, ledger entries) before and after the reduction of every round, and the entries."""
    uploads = make_uploads(4, (0.1, 1))
    channel, groups = open_channel(world, join(world), False, uploads)
    calls: list[torch.Tensor] = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, **options: calls.append(tensor) or all_reduce(tensor, **options)
    counts = []
    for number in range(1, 4):
        for upload in uploads[: number + world.rank]:
            add(channel, groups, upload)
        counts.append((len(calls), len(channel._ledger.entries)))
        channel.reduce(number)
        counts.append((len(calls), len(channel._ledger.entries)))
    fields = ("round", "purpose", "group", "dtype", "elements", "elements_by_group")
    return counts, [tuple(getattr(entry, field) for field in fields) for entry in channel._ledger.drain()]


def test_a_round_is_one_all_reduce_however_many_clients_upload():
    for counts, entries in run_ranks(3, _count):
        assert counts == [(0, 0), (1, 1), (1, 1), (2, 2), (2, 2), (3, 3)]  # adding sends nothing
        elements = NUMEL + 2 + NUM_METRICS + 1 + 9 * 3  # weight, refused, asked to stop, each rank's clocks
        by_group = {**SIZES, "scalars": elements - NUMEL}
        assert entries == [(n, "aggregate", "backbone+head", "float32", elements, by_group) for n in (1, 2, 3)]


def _late(world: World) -> tuple[float, float, float]:
    """(communication, training, evaluation seconds) where rank 1 trains half a second more than the others."""
    channel, groups = open_channel(world, join(world), False, make_uploads(1, (0.1, 1)))
    channel.gather({}, 1, 1, round=0, purpose="start")
    time.sleep(0.5 if world.rank == 1 else 0)
    add(channel, groups, make_uploads(1, (0.1, 1))[0])
    aggregate = channel.reduce(1, 0.125 if world.rank == 2 else 0.0)
    return channel._ledger.entries[-1].seconds, aggregate.training_seconds, aggregate.evaluation_seconds


def test_waiting_for_a_slow_rank_is_its_training_and_not_communication():
    for communication, training, evaluation in run_ranks(3, _late):
        assert 0 <= communication < 0.4 < 0.5 <= training
        assert evaluation == 0.125


def _held(world: World, exact: bool) -> list[tuple[list[float], list[float]]]:
    """(what was kept of the first mean, and has not been replaced since; the newest) after each of four rounds, of
    which nobody uploads in the third.
    """
    channel, groups = open_channel(world, join(world), exact, make_uploads(1, (0.1, 1)))
    state, found = {}, []
    for number in range(1, 5):
        if number != 3 and world.rank == 1:
            for buffer in groups.values():
                buffer.fill_(number)
            channel.add(groups, 2.0, torch.ones(NUM_METRICS))
        means = channel.reduce(number).groups
        if means:
            state = channel.kept({"backbone": state.get("backbone", means["backbone"]), "head": means["head"]})
        found.append((state["backbone"].unique().tolist(), state["head"].unique().tolist()))
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_a_state_outlives_the_sums_that_follow(exact):
    for found in run_ranks(2, _held, exact):
        assert found == [([1.0], [1.0]), ([1.0], [2.0]), ([1.0], [2.0]), ([1.0], [4.0])]


def test_zeros_of_either_sign_add_up_to_the_positive_one():
    upload = Upload(np.full(NUMEL, -0.0, np.float32), 3.0, np.ones(NUM_METRICS))
    for ((mean, _, _),) in run_ranks(1, _reduce, [upload], [[[0]]])[0].values():
        assert not np.signbit(mean).any()
