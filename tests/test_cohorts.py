"""Clients that learn in the same rounds are put on different ranks, where that can be known."""

import numpy as np
import pytest

from fedbsd_dist.cohorts import FORESEEN, FORESEEN_TURNS, assign, foresee
from fedbsd_dist.commandline import load
from fedbsd_dist.methods import OPTIONS


def config(*options: str):
    return load([*options], OPTIONS)


def busiest(hosted: list[list[int]], costs: list[int], cohorts: list[list[int]]) -> int:
    """Sum over rounds of the busiest rank's load."""
    return sum(max(sum(costs[client] for client in {*clients} & {*cohort}) for clients in hosted) for cohort in cohorts)


def test_clients_of_one_cohort_are_apart() -> None:
    """Without cohorts, the costliest (0) and the cheapest (3) are together; in round 1 these two learn alone."""
    costs = [40, 30, 30, 20]
    assert assign(costs, 0, range(2)) == [[0, 3], [1, 2]]
    assert assign(costs, 0, range(2), [[0, 3], [1, 2]]) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(("num_ranks", "gain"), [(2, 0.98), (4, 0.95), (8, 0.93)])
def test_rounds_end_sooner_and_all_clients_stay_balanced(num_ranks: int, gain: float) -> None:
    """Sizes as of 10 classes from a Dirichlet(0.1), in the 40 rounds of a run by default."""
    costs = [2 + int(size) for size in 450 * np.random.default_rng(0).dirichlet([0.1] * 100, 10).sum(0)]
    foreseen = foresee(config("data.num_clients=100"))
    blind, seeing = assign(costs, 0, range(num_ranks)), assign(costs, 0, range(num_ranks), foreseen)
    cohorts = foreseen[:40]
    assert sorted(client for clients in seeing for client in clients) == list(range(100))
    assert busiest(seeing, costs, cohorts) < gain * busiest(blind, costs, cohorts)
    assert busiest(seeing, costs, [[*range(100)]]) < 1.1 * busiest(blind, costs, [[*range(100)]])


def test_every_rank_has_a_client_even_where_a_cohort_is_one_client() -> None:
    cohorts = [[number % 5] for number in range(30)]
    for num_ranks in range(1, 6):
        assert all(assign([9, 5, 5, 1, 1], 0, range(num_ranks), cohorts))


def test_a_run_that_goes_on_with_more_rounds_finds_its_clients_where_they_were() -> None:
    """A checkpoint's private state may not move to other ranks unasked."""
    assert foresee(config("train.rounds=3")) == foresee(config("train.rounds=300"))


@pytest.mark.parametrize(
    ("participation", "clients", "rounds"), [(1, 20, 0), (0.2, 20, FORESEEN), (0.5, 10_000, FORESEEN_TURNS // 5000)]
)
def test_what_is_looked_at_beforehand_is_bounded(participation: float, clients: int, rounds: int) -> None:
    cohorts = foresee(config(f"train.participation={participation}", f"data.num_clients={clients}"))
    assert len(cohorts) == rounds
