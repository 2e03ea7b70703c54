"""Who takes part in which round, and on which rank: both follow from the configuration, before the first round.

A client stays on one rank, and a round ends with its busiest rank. As cohorts are known, clients that learn in the same
rounds can be put on different ranks.
"""

import math
from collections.abc import Sequence

import numpy as np

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.randomness import generator

FORESEEN = 1000
"""Rounds at most whose cohorts are looked at beforehand."""
FORESEEN_TURNS = 100_000
"""Clients' turns at most in these rounds: a third of a second for 10,000 clients and 64 ranks."""
UNIT = 2**16
"""A sample's weight in the first round. Integers, for ranks on unlike machines must come to the same."""


def cohort_size(participation: float, num_clients: int) -> int:
    """Clients in a round: the nearest whole number, halves up, at least 1."""
    return max(1, int(participation * num_clients + 0.5))


def draw_cohort(config: RunConfig, round: int) -> list[int]:
    """The clients of a round, ascending; drawn by (seed, round), whatever the ranks."""
    clients = config.data.num_clients
    size = cohort_size(config.train.participation, clients)
    return sorted(generator(config.seed, "cohort", round).choice(clients, size, replace=False).tolist())


def foresee(config: RunConfig) -> list[list[int]]:
    """The cohorts of rounds 1, 2, ..., as many as are looked at; none where everybody is in all of them.

    Not those of `train.rounds` alone: a run may go on with more rounds, and no client may change its rank for it.
    """
    clients = config.data.num_clients
    size = cohort_size(config.train.participation, clients)
    rounds = min(FORESEEN, FORESEEN_TURNS // size) if size < clients else 0
    return [draw_cohort(config, round) for round in range(1, rounds + 1)]


def assign(costs: Sequence[int], num_new: int, ranks: range, cohorts: Sequence[Sequence[int]] = ()) -> list[list[int]]:
    """Clients of every rank, balanced by cost in each of `cohorts` (of rounds 1, 2, ...) and over all clients.

    The last `num_new`, which cost nothing in a round, are balanced by themselves. Raises UserError when there are
    fewer clients that train than ranks to host them.
    """
    num_clients = len(costs) - num_new
    if num_clients < len(ranks):
        raise UserError(
            f"data.num_clients={num_clients}: fewer clients than the {len(ranks)} ranks that host them. "
            f"Use data.num_clients={len(ranks)} or more, or {ranks.start + num_clients} ranks or fewer."
        )
    homes = _homes(costs[:num_clients], len(ranks), cohorts) + _homes(costs[num_clients:], len(ranks), ())
    hosted: list[list[int]] = [[] for _ in range(ranks.stop)]
    for client, home in enumerate(homes):
        hosted[ranks[home]].append(client)
    return hosted


def _homes(costs: Sequence[int], num_ranks: int, cohorts: Sequence[Sequence[int]]) -> list[int]:
    """The rank of each client, from 0. The costliest is first to get one: that with which the sum over rounds of the
    busiest rank's load grows least, and of equal ones the least loaded. (To try clients elsewhere afterwards brought
    3 % in one setting of seven, and less in the others.)

    Round 0 is everybody's, as the last evaluation is, and a rank's memory. Round r weighs 1 / sqrt(r), so that runs of
    few rounds and of many gain by it.
    """
    turns: dict[int, list[int]] = {client: [0] for cohort in cohorts for client in cohort}
    for number, cohort in enumerate(cohorts, 1):
        for client in cohort:
            turns[client].append(number)
    weights = np.array([int(UNIT / math.sqrt(max(1, number))) for number in range(len(cohorts) + 1)])
    loads = np.zeros((len(cohorts) + 1, num_ranks), np.int64)
    homes = [0] * len(costs)
    for client in sorted(range(len(costs)), key=lambda client: (-costs[client], client)):
        if client in turns:
            rounds = turns[client]
            mine = costs[client] * weights[rounds]
            before = loads[rounds]
            busiest = np.maximum(before.max(1)[:, None], before + mine[:, None])
            home = np.lexsort((loads[0], busiest.sum(0)))[0]
            loads[rounds, home] += mine
        else:
            home = loads[0].argmin()
            loads[0, home] += costs[client] * weights[0]
        homes[client] = int(home)
    return homes
