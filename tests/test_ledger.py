"""What the ledger says crossed is what crossed: call by call, and byte by byte as the kernel counted them."""

import json
import statistics
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from test_federation import NORM

from fedbsd_dist.main import run
from fedbsd_dist.wire.channel import Channel
from fedbsd_dist.wire.ledger import Entry, Ledger, ring_bytes
from fedbsd_dist.wire.world import World

SENT = Path("/sys/class/net/lo/statistics/tx_bytes")
"""Bytes that the kernel sent over the loopback interface, headers and acknowledgements included."""
COLLECTIVES = [
    name
    for name in dir(dist)
    if any(
        verb in name for verb in ("reduce", "gather", "scatter", "broadcast", "all_to_all", "send", "recv", "barrier")
    )
    and name.islower()
    and callable(getattr(dist, name))
]


def _run(world: World, arguments: list[str]) -> tuple[dict[str, int], list[tuple[str, int, int]]]:
    """A run's calls of torch.distributed: how many of each, and (dtype, elements, bytes) of every all-reduce."""
    calls: Counter[str] = Counter()
    tensors = []

    def watch(name):
        function = getattr(dist, name)

        def called(*given, **named):
            calls[name] += 1
            if name == "all_reduce":
                tensors.append((str(given[0].dtype), given[0].numel(), given[0].nbytes))
            return function(*given, **named)

        setattr(dist, name, called)

    for name in COLLECTIVES:
        watch(name)
    run(arguments, world)
    return dict(calls), tensors


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("size", "options", "groups"),
    [
        (3, ("method.name=fedbsd", NORM), {"backbone": 9392, "statistics": 8}),
        (3, ("method.name=fedbsd", NORM, "model.norm_stats=local"), {"backbone": 9392}),
        (2, ("method.name=fedavg", NORM, "wire.sum=exact"), {"backbone": 9392, "head": 650, "statistics": 8}),
    ],
)
def test_every_collective_of_a_run_has_its_line(tmp_path, size, options, groups):
    arguments = [
        f"run.dir={tmp_path / 'run'}",
        *("train.rounds=3", "train.local_epochs=1", "train.batch_size=64", "train.participation=0.5"),
        "evaluate.every=2",
        *("evaluate.head_epochs=1", "data.num_clients=6", "checkpoint.every=2", "run.device=cpu", *options),
    ]
    assert {"all_reduce", "broadcast", "all_gather", "reduce_scatter_tensor", "send", "barrier"} <= set(COLLECTIVES)
    by_rank = run_ranks(size, _run, arguments)
    lines = read(tmp_path / "run/ledger.jsonl")
    for calls, tensors in by_rank:
        # barriers, when joining and leaving, carry nothing and have no line
        assert calls == {"all_reduce": len(lines), "barrier": 2}
        assert [(f"torch.{line['dtype']}", line["elements"], line["payload_bytes"]) for line in lines] == tensors
    assert [(line["round"], line["purpose"]) for line in lines] == [
        (1, "aggregate"),
        (2, "aggregate"),
        (2, "evaluation"),
        (3, "aggregate"),
        (3, "evaluation"),
        (3, "state digest"),
    ]
    for line in lines:
        assert line.keys() == Entry.__dataclass_fields__.keys()
        assert sum(line["elements_by_group"].values()) == line["elements"]
        assert line["wire_bytes"] == 2 * (size - 1) * line["payload_bytes"]
        assert line["seconds"] >= 0
        shared = {name: count for name, count in line["elements_by_group"].items() if name != "scalars"}
        assert shared == (groups if line["purpose"] == "aggregate" else {})
        assert line["group"] == ("+".join(shared) or "-")
        # nothing of a model's size hides among the scalars: 6 clients, 3 stages or a digest of 32 numbers
        assert line["elements_by_group"]["scalars"] <= (6 + 1) * 32 + 9 * size

    summary = json.loads((tmp_path / "run/summary.json").read_text())
    rounds = read(tmp_path / "run/metrics.jsonl")
    for kind in ("payload", "wire"):
        assert summary["bytes"][kind] == sum(line[f"{kind}_bytes"] for line in lines)
        for record in rounds:
            of_round = [line for line in lines if line["round"] == record["round"]]
            assert record["bytes"][kind] == sum(
                line[f"{kind}_bytes"] for line in of_round if line["purpose"] in ("aggregate", "evaluation")
            )
    # what clients send and receive does not depend on ranks, nor on how it is represented on the wire
    upload = 4 * sum(groups.values())
    assert [record["bytes"]["federated_up"] for record in rounds] == [3 * upload] * 3
    assert summary["bytes"]["federated_up"] == summary["bytes"]["federated_down"] == 3 * 3 * upload
    assert summary["fedavg_bytes"] == 2 * 3 * 3 * 4 * (9392 + 650 + 8)


def test_drain_takes_every_entry_once():
    ledger = Ledger()
    entries = [
        Entry(
            round=number,
            purpose="aggregate",
            group="-",
            dtype="float32",
            elements=1,
            elements_by_group={"scalars": 1},
            payload_bytes=4,
            wire_bytes=0,
            seconds=0.0,
        )
        for number in range(3)
    ]
    ledger.entries += entries[:2]
    assert ledger.drain() == entries[:2]
    ledger.entries += entries[2:]
    assert ledger.drain() == entries[2:]
    assert ledger.drain() == []


def test_ring_bytes():
    # each of 4 ranks sends 3 of the payload's quarters to be summed, and 3 that are
    assert ring_bytes(100, 4) == 4 * (3 * 25 + 3 * 25)
    assert ring_bytes(100, 1) == 0


REPEATS = {1_000_000: 2, 4_000_000: 1}
"""Parameters -> reductions between two readings."""
ATTEMPTS = 5


def _measure(world: World) -> dict[int, list[tuple[int, int]]]:
    """Parameters -> (bytes by the kernel, bytes by the ledger) of a few reductions, some times over."""
    torch.set_num_threads(1)
    placement = world.place("cpu")
    world.join(placement)

    def sent() -> int:
        # between two barriers: no rank sends again before the server has read
        dist.barrier()
        count = int(SENT.read_text())
        dist.barrier()
        return count

    measured: dict[int, list[tuple[int, int]]] = {numel: [] for numel in REPEATS}
    for numel, pairs in measured.items():
        live, ledger = {"backbone": torch.ones(numel)}, Ledger()
        channel = Channel(world, placement, ledger, shared=live, num_metrics=1, exact=False, weight_bound=1)
        for _ in range(ATTEMPTS):
            before = sent()
            for number in range(REPEATS[numel]):
                channel.add(live, 1.0, torch.ones(1))
                channel.reduce(number)
            pairs.append((sent() - before, sum(entry.wire_bytes for entry in ledger.drain())))
    return measured


@pytest.mark.alone
@pytest.mark.skipif(not SENT.exists(), reason=f"{SENT} is not there: the kernel's count of bytes sent cannot be read")
@pytest.mark.parametrize("size", [2, 4, 8])
def test_wire_bytes_are_what_the_kernel_counts(size):
    for numel, pairs in run_ranks(size, _measure)[0].items():
        counted, said = zip(*pairs, strict=True)
        payload = 4 * (numel + 4 + 9 * size)  # weight, refused, one metric, asked to stop; the clocks of every rank
        assert set(said) == {REPEATS[numel] * 2 * (size - 1) * payload}
        # headers, acknowledgements and the barriers come on top, and are below 1 % at these sizes; so does all
        # else that crosses the loopback meanwhile, hence the median
        assert statistics.median(counted) == pytest.approx(said[0], rel=0.01)
