"""What the plan foretells is what the run then does."""

import json
import re

import pytest
from ranks import federate
from test_interface import SHORT, alone

from fedbsd_dist.cohorts import assign
from fedbsd_dist.commandline import load
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.plan import make_plan
from fedbsd_dist.wire.world import meet


def plan_for(size: int, *options: str):
    return make_plan(load([*SHORT, *options], OPTIONS), meet().imagined(size))


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1, ["method.name=fedavg"]),
        (2, ["wire.sum=exact", "train.participation=0.3"]),
        (3, ["method.name=fedper", "server.trains=true"]),
        (3, ["method.name=fedavg", "data.num_clients=5", "model.head_layers=2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_bytes_are_those_of_the_ledger_and_of_the_metrics(size: int, options: list[str], tmp_path) -> None:
    plan = plan_for(size, *options)
    federate(tmp_path / "run", size, *SHORT, *options)
    aggregates = [entry for entry in lines(tmp_path / "run/ledger.jsonl") if entry["purpose"] == "aggregate"]
    assert [entry["payload_bytes"] for entry in aggregates] == [plan.payload_bytes] * plan.config.train.rounds
    assert all(entry["wire_bytes"] == 2 * (size - 1) * plan.payload_bytes for entry in aggregates)
    for line in lines(tmp_path / "run/metrics.jsonl"):
        assert line["bytes"]["federated_up"] == line["bytes"]["federated_down"] == line["cohort"] * plan.upload_bytes
    facts = json.loads((tmp_path / "run/summary.json").read_text())
    assert facts["fedavg_bytes"] == sum(2 * line["cohort"] for line in lines(tmp_path / "run/metrics.jsonl")) * (
        plan.model_bytes
    )


def test_sizes_are_counted_by_hand() -> None:
    """The MLP's layers at 256 pixels: 512, 256, 64, 10; 4 bytes a parameter."""
    backbone, head = 256 * 512 + 512 + 512 * 256 + 256 + 256 * 64 + 64, 64 * 10 + 10
    fedbsd, fedavg = plan_for(2, "method.name=fedbsd"), plan_for(2, "method.name=fedavg")
    assert fedbsd.upload_bytes == 4 * backbone
    assert fedavg.upload_bytes == fedbsd.model_bytes == 4 * (backbone + head)
    assert plan_for(2, "wire.sum=exact").payload_bytes == 2 * fedbsd.payload_bytes


def test_memory_of_the_fullest_rank_shrinks_with_more_of_them() -> None:
    """Samples and private state; what every rank has of its own does not."""
    fullest = []
    for size in (2, 11):
        memory = plan_for(size, "data.num_clients=20").memory
        assert not isinstance(memory, str), memory
        parts = [memory.of(rank)[0] for rank in range(size)]
        fullest.append(max(part["samples"] + part["private state"] for part in parts))
    assert fullest[0] > 4 * fullest[1] > 0


def test_the_text_says_what_was_worked_out(capsys) -> None:
    alone(*SHORT, "--check=5", "data.num_clients=10", "train.participation=0.35", "seed=1")
    shown = capsys.readouterr().out
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in shown.splitlines())
    assert rows["ranks"].startswith("5: ")
    assert re.search(r"\b4 host clients, \d to \d each", rows["ranks"])
    assert rows["clients"].startswith("10, 4 of them")  # 3.5 is rounded up
    assert "7823 training" in rows["data"]
    assert "1.1 MB" in rows["on the wire"]
    assert "4.5 MB up" in rows["bytes a round"]  # 4 uploads of 1,117,440 bytes
    assert "backbone" in rows["crosses"].partition("stays")[0]
    assert "head" in rows["crosses"].partition("stays")[2]
    assert re.search(r"\d MB", rows["memory"])


@pytest.mark.parametrize("ranks", [range(0, 1), range(1, 2), range(0, 3), range(1, 8), range(1, 6)])
def test_every_client_has_one_host_and_hosts_are_balanced(ranks: range) -> None:
    costs = [7, 300, 12, 12, 95, 41, 8, 64, 30, 5, 88, 17]
    hosted = assign(costs, 0, ranks)
    assert sorted(client for clients in hosted for client in clients) == list(range(len(costs)))
    assert all(clients == sorted(clients) for clients in hosted)
    assert [bool(clients) for clients in hosted] == [rank in ranks for rank in range(ranks.stop)]
    loads = [sum(costs[client] for client in hosted[rank]) for rank in ranks]
    # greedy, the costliest first: no rank exceeds the mean by more than the last client that it took
    assert max(loads) <= sum(costs) / len(ranks) + max(costs)
    if len(ranks) == 3:
        assert sorted(loads) == [188, 191, 300]


def test_fewer_clients_than_hosts_are_refused_with_both_ways_out() -> None:
    assert assign([5, 5], 0, range(1, 3)) == [[], [0], [1]]
    with pytest.raises(UserError, match=r"data\.num_clients=2.*data\.num_clients=3 or more.* 3 ranks or fewer"):
        assign([5, 5], 0, range(1, 4))


def test_new_clients_are_balanced_by_themselves_and_fill_no_rank() -> None:
    assert assign([9, 1, 1, 9, 9], 2, range(0, 2)) == [[0, 3], [1, 2, 4]]
    with pytest.raises(UserError, match=r"data\.num_clients=2"):
        assign([5, 5, 5], 1, range(1, 4))
