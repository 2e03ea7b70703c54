"""What the record says of phases: seconds of a round, their sums over a run, and shares for a person."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SUMMED = ("total", "training", "communication", "evaluation")
LOCAL = ("train", "distil")
"""Phases of local learning, which the assignment of clients to ranks is to balance."""
OF_THE_SERVER = ("record", "checkpoint")

Line = Mapping[str, Any]


def of_round(phases: Mapping[str, np.ndarray], hosted: Sequence[Sequence[int]]) -> dict[str, Any]:
    """`phases`: the mean over the ranks that host clients. `balance`: the busiest of them in local learning, over the
    mean; 1 where nobody learns. `server`: the server's own, beside the others' work where it hosts nobody.

    `phases` given: seconds of every rank [ranks]. `hosted`: the clients of every rank.
    """
    hosting = [rank for rank, clients in enumerate(hosted) if clients]
    local = np.sum([phases[name][hosting] for name in LOCAL], axis=0)
    return {
        "phases": {name: float(of[hosting].mean()) for name, of in phases.items()},
        "balance": float(local.max() / local.mean()) if local.any() else 1.0,
        "server": {name: float(phases[name][0]) for name in OF_THE_SERVER},
    }


def of_run(seconds: Sequence[Line]) -> dict[str, Any]:
    """Sums over the rounds; `balance` is that of the busiest ranks over that of the means. A run that an older version
    began has phases of its later rounds alone.
    """
    plain = {name: sum(line[name] for line in seconds) for name in SUMMED}
    seconds = [line for line in seconds if "phases" in line]
    busiest = sum(line["balance"] * _local(line) for line in seconds)
    mean = sum(map(_local, seconds))
    return {
        **plain,
        "phases": {name: sum(line["phases"][name] for line in seconds) for name in seconds[-1]["phases"]},
        "balance": busiest / mean if mean else 1.0,
        "server": {name: sum(line["server"][name] for line in seconds) for name in OF_THE_SERVER},
    }


def _local(seconds: Line) -> float:
    return float(sum(seconds["phases"][name] for name in LOCAL))


def shares(seconds: Mapping[str, float], total: float) -> str:
    """`train 71 %, load 0.3 %`: of each that is there to be seen."""
    parts = {name: 100 * of / total for name, of in seconds.items()}
    return ", ".join(f"{name} {share:.{int(share < 0.95)}f} %" for name, share in parts.items() if share >= 0.05)
