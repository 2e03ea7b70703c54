"""The round over clients and ranks: who takes part, what each receives and keeps, what evaluation leaves alone."""

import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks, states
from torch import nn

from fedbsd_dist.cohorts import assign, cohort_size
from fedbsd_dist.commandline import load
from fedbsd_dist.errors import UserError
from fedbsd_dist.evaluation import summarize
from fedbsd_dist.federation import Federation
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.plan import make_plan
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World

SHORT = (
    "run.device=cpu",
    "data.num_clients=6",
    "train.rounds=4",
    "train.local_epochs=1",
    "train.participation=1.0",
    "train.batch_size=64",
    "train.lr=0.01",
    "evaluate.every=0",
    "evaluate.head_epochs=1",
)
FEW = "data.classes=[0,1,2,3]"
"""Fewer samples of the embedded digits, less time."""


def build(world: World, *options: str) -> Federation:
    """A federation joined to the other ranks, as a run makes it, without a record."""
    plan = make_plan(load([*SHORT, *options], OPTIONS), world)
    world.join(plan.placement)
    channel = plan.open_channel(world, Ledger())
    sizes = plan.partition.train_sizes[: plan.config.data.num_clients]
    return Federation(plan.config, plan.method, plan.model, channel, plan.load_shards(world.rank), sizes)


def with_norm(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Normalisation in the backbone (its running statistics change whenever it trains) and dropout in the head."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Sequential(nn.Conv2d(shape[0], 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
            fc=nn.Sequential(nn.Linear(4 * 6 * 6, 64), nn.ReLU()),
            classifier=nn.Sequential(nn.Dropout(0.2), nn.Linear(64, num_classes)),
        )
    )


NORM = f"model.factory={__name__}:with_norm"


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def clients_bits(federation: Federation) -> dict[int, dict[str, bytes]]:
    return {client: bits(groups) for client, groups in states(federation).items()}


def _cohorts(world: World) -> list[list[int]]:
    federation = build(world, NORM, "data.num_clients=20", "train.participation=0.4")
    return [federation.cohort(number) for number in range(1, 9)]


def test_cohort_is_the_same_on_every_rank_of_any_world():
    cohorts = [cohorts for size in (1, 3) for cohorts in run_ranks(size, _cohorts)]
    assert all(other == cohorts[0] for other in cohorts)
    assert all(cohort == sorted(set(cohort)) and len(cohort) == 8 for cohort in cohorts[0])
    assert len({tuple(cohort) for cohort in cohorts[0]}) == 8  # another one every round
    assert set().union(*cohorts[0]) == set(range(20))


@pytest.mark.parametrize(
    ("participation", "num_clients", "size"),
    [(1, 20, 20), (0.5, 5, 3), (0.3, 5, 2), (0.1, 5, 1), (0.25, 10, 3), (0.24, 10, 2), (1e-9, 20, 1), (1, 1, 1)],
)
def test_cohort_size_is_the_nearest_whole_number_halves_up_and_at_least_1(participation, num_clients, size):
    assert cohort_size(participation, num_clients) == size


def _rounds(world: World, *options: str) -> list[tuple]:
    """(cohort, hosted clients' state, shared state) after every round; first before any."""
    federation = build(world, "train.participation=0.5", *options)
    seen = [([], clients_bits(federation), bits(federation.shared))]
    for number in (1, 2):
        cohort = federation.round(number).cohort
        seen.append((cohort, clients_bits(federation), bits(federation.shared)))
    return seen


def test_only_the_cohort_changes_and_all_ranks_hold_the_same_shared_state():
    by_rank = run_ranks(3, _rounds, "method.name=fedbsd", "model.norm_stats=local", NORM)
    assert by_rank[0][0][1] == {}  # the server hosts nobody
    initial = [state for rank in by_rank for state in rank[0][1].values()]
    assert len(initial) == 6
    assert all(state == initial[0] and state.keys() == {"head", "statistics"} for state in initial)
    for number in (1, 2):
        cohort = by_rank[0][number][0]
        assert len(cohort) == 3
        assert all(rank[number][2] == by_rank[0][number][2] for rank in by_rank)
        assert by_rank[0][number][2] != by_rank[0][number - 1][2]
        for rank in by_rank:
            for client, state in rank[number][1].items():
                before = rank[number - 1][1][client]
                for group in ("head", "statistics"):
                    assert (state[group] != before[group]) == (client in cohort), (client, group)


def _receive(world: World) -> None:
    federation = build(world, "method.name=fedper", "model.norm_stats=local", NORM)
    for client, row in states(federation).items():
        for group, values in row.items():
            values.fill_(100 * client + len(group))
    federation.shared["backbone"].fill_(-1)
    module = federation.model.module
    for client in (4, 1):
        for buffer in federation.model.buffers.values():
            buffer.fill_(torch.nan)
        turn = federation.receive(client, 3)
        assert (turn.client, turn.round) == (client, 3)
        assert turn.shard is federation.shards[client]
        assert len(turn.images) == len(turn.labels) == len(turn.shard.train_images)
        assert all((parameter == -1).all() for parameter in module.backbone.parameters())
        assert all((parameter == 100 * client + len("head")).all() for parameter in module.head.parameters())
        assert (module.backbone.conv[1].running_var == 100 * client + len("statistics")).all()
        assert turn.private.keys() == {"head", "statistics"}
        # what a client trains is the live model: its row waits for the upload
        federation.model.buffers["head"].fill_(7)
        assert (turn.private["head"] == 100 * client + len("head")).all()
        federation.upload(turn, torch.zeros(2))
        assert (states(federation)[client]["head"] == 7).all()
    assert (states(federation)[0]["head"] == len("head")).all()


def test_a_client_receives_the_shared_state_and_its_own_private_state():
    run_ranks(1, _receive)


def _evaluate(world: World, *options: str) -> tuple[list[str], bool, dict[str, np.ndarray]]:
    """(digests before, after, and after each of seven changes, whether all bits stayed, tables by stage)."""
    federation = build(world, *options)
    federation.round(1)
    digests = [federation.state_sha256(1)]
    before = clients_bits(federation), bits(federation.shared)
    stages = federation._gather(1, federation._testing.last(2))
    digests.append(federation.state_sha256(1))
    same = before == (clients_bits(federation), bits(federation.shared))
    # the digest is of all that is compared: one float of one client, and of the shared state
    for tensor in (*(state["head"] for state in states(federation).values()), federation.shared["backbone"]):
        tensor[0] += 1
        digests.append(federation.state_sha256(1))
    return digests, same, stages


@pytest.mark.parametrize(
    "options", [("method.name=fedbsd", "method.student_start=own"), ("method.name=fedper", "train.momentum=0.9")]
)
def test_evaluation_changes_no_state(options):
    ((digests, same, stages),) = run_ranks(1, _evaluate, NORM, *options)
    assert same
    assert digests[0] == digests[1]
    assert len(set(digests[1:])) == 1 + 6 + 1
    assert stages.keys() == {"received", "trained", "head_tuned"}
    # the same test samples at every stage, and different models
    assert all((table[:, 1] == stages["received"][:, 1]).all() and table[:, 1].all() for table in stages.values())
    assert len({table[:, 2].sum() for table in stages.values()}) == 3


def _diverge(world: World) -> tuple[int, bool]:
    federation = build(world, NORM, "fault.max_diverged_rounds=1")
    federation.round(1)
    before = bits(federation.shared)
    learn = federation.method.learn

    def diverge(turn):
        losses = learn(turn)
        if turn.client == 3:
            turn.model.buffers["backbone"][-1] = torch.nan
        return losses

    federation.method.learn = diverge
    try:
        federation.round(2)
    except SystemExit as leaving:
        return leaving.code, bits(federation.shared) == before
    raise AssertionError("the round went through")


def test_a_client_that_diverges_leaves_the_shared_state_as_it_was():
    assert run_ranks(3, _diverge) == [(2, True)] * 3


def test_summary_of_a_hand_made_table():
    # accuracies 0.0, 0.1 ... 1.0 and one client that was not tested
    table = np.array([[k, 10, 1.0] for k in range(11)] + [[0, 0, 0]], float)
    table[5] = 500, 1000, 1.0  # as accurate as before, on a hundred times the samples
    summary = summarize(table[np.random.default_rng(0).permutation(12)])
    assert summary["mean"] == pytest.approx(0.5)
    assert summary["weighted_mean"] == pytest.approx((55 - 5 + 500) / (100 + 1000))
    assert summary["std"] == pytest.approx(math.sqrt(0.1))  # of the population: 1.1 / 11
    assert summary["worst_10pct"] == pytest.approx(0.05)  # a tenth of 11 is 2, rounded up
    assert summarize(table[1:11])["worst_10pct"] == pytest.approx(0.1)  # of 10 it is 1
    assert summarize(table[3:4]) == pytest.approx({"mean": 0.3, "weighted_mean": 0.3, "std": 0, "worst_10pct": 0.3})


def test_assignment_hosts_every_client_once_and_is_within_4_3_of_the_best():
    rng = np.random.default_rng(0)
    for _ in range(40):
        size = int(rng.integers(1, 4))
        costs = rng.integers(1, int(rng.choice([4, 30, 1000])), int(rng.integers(size, 9))).tolist()
        hosted = assign(costs, 0, range(1, size + 1))
        assert hosted[0] == []
        assert sorted(client for clients in hosted for client in clients) == list(range(len(costs)))
        assert all(clients == sorted(clients) for clients in hosted)
        # Graham 1969: longest first is at most 4/3 - 1/(3m) of the best, which is found here by trying all
        ways = np.array(list(itertools.product(range(size), repeat=len(costs))))
        best = np.max([(ways == rank) @ np.array(costs) for rank in range(size)], axis=0).min()
        longest = max(sum(costs[client] for client in clients) for clients in hosted)
        assert longest <= (4 / 3 - 1 / (3 * size)) * best + 1e-9


def test_every_hosting_rank_has_a_client_or_the_run_is_refused():
    assert assign([5, 5, 5], 0, range(1, 4)) == [[], [0], [1], [2]]
    assert assign([1, 9, 1], 0, range(2)) == [[1], [0, 2]]
    with pytest.raises(UserError, match=r"data\.num_clients=3.*data\.num_clients=4 or more, or 4 ranks or fewer"):
        assign([5, 5, 5], 0, range(1, 5))


@pytest.mark.parametrize(
    ("size", "trains", "hosting"), [(1, "false", [0]), (1, "true", [0]), (3, "false", [1, 2]), (3, "true", [0, 1, 2])]
)
def test_the_server_hosts_clients_when_asked_or_alone(size, trains, hosting):
    world = World(rank=0, size=size, local_rank=0, hosts=((0, size),) * size, store=dist.HashStore())
    plan = make_plan(load(["run.device=cpu", "model.name=mlp", f"server.trains={trains}"], OPTIONS), world)
    assert [rank for rank, clients in enumerate(plan.hosted) if clients] == hosting
