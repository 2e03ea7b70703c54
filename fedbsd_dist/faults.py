"""Who of a round's cohort is there and in time: a simulation, and a function of the seed, the round and the client.

No clock is read, so the same clients are missing on any machine, from any number of ranks, and after a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedbsd_dist.config import Fault
from fedbsd_dist.randomness import generator

MOST = 10
"""Of a list, what a message names."""


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """A cohort, each client in one of three lists, ascending."""

    present: list[int]
    """Receive and train."""
    late: list[int]
    """Receive, and are not waited for: nothing comes of their work, so nobody need do it."""
    unavailable: list[int]
    """Do not even receive."""
    duration: float
    """Simulated, from the start of the round to the last of `present`, or to the deadline where somebody is late.
    In multiples of the mean client's local training.
    """


def attend(fault: Fault, seed: int, round: int, cohort: Sequence[int], train_sizes: Sequence[int]) -> Attendance:
    """`train_sizes`: training samples of all clients that train, to which their local training takes time in
    proportion, for all have as many epochs.
    """

    def drawn(purpose: str, client: int, probability: float) -> bool:
        # a draw of its own each: one option does not change what another one does
        return probability > 0 and generator(seed, purpose, round, client).random() < probability

    unavailable = [client for client in cohort if drawn("unavailable", client, fault.dropout)]
    mean = sum(train_sizes) / len(train_sizes)
    times = {
        client: train_sizes[client] / mean * (fault.slowdown if drawn("slow", client, fault.slow) else 1.0)
        for client in cohort
        if client not in unavailable
    }
    late = [client for client, time in times.items() if 0 < fault.deadline < time]
    present = [client for client in times if client not in late]
    duration = fault.deadline if late else max(times.values(), default=0.0)
    return Attendance(present=present, late=late, unavailable=unavailable, duration=duration)


def named(clients: Sequence[int]) -> str:
    """`client 7` or `clients 3, 7`."""
    return f"client{'s' if len(clients) > 1 else ''} {', '.join(shortened([*map(str, clients)]))}"


def shortened(names: Sequence[str]) -> list[str]:
    """The first `MOST`, and how many more there are."""
    return [*names[:MOST], *([f"and {len(names) - MOST} more"] if len(names) > MOST else [])]
