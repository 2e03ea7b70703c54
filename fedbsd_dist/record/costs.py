"""What accuracy costs: bytes that cross by method, and rounds and bytes to a target accuracy."""

import statistics
from collections.abc import Sequence

from fedbsd_dist.record.compare import Rows
from fedbsd_dist.record.runs import FLOAT, Group, Run
from fedbsd_dist.units import size

SHARE = 0.95
"""Of the best method's last accuracy, the target where none is asked for."""


def crossing(groups: Sequence[Group]) -> Rows:
    """A row a group: what a participating client sends in a round, by the ledger; as much comes back."""
    rows = [["", "crosses", "per client and round, one way", "of the model", "all rounds, both ways"]]
    for group in groups:
        run = group.first
        model = sum(run.summary["parameters"].values())
        numbers, sent = sum(run.crossing.values()), run.summary["bytes"]
        rows.append(
            [
                group.label,
                " + ".join(f"{name} {count:,}" for name, count in run.crossing.items()) or "nothing",
                size(FLOAT * numbers),
                f"{100 * numbers / model:.1f} %",
                size(sent["federated_up"] + sent["federated_down"]),
            ]
        )
    return rows


def default_target(groups: Sequence[Group]) -> float:
    """A share of the best group's last accuracy `received`, in whole percent."""
    return round(SHARE * max(statistics.fmean(group.accuracy("received").values()) for group in groups), 2)


def to_target(groups: Sequence[Group], target: float) -> Rows:
    """A row a group: rounds and bytes until `received` first reached the target; means over the seeds that did."""
    rows = [["", "rounds", "sent and received", "seeds that reached it"]]
    for group in groups:
        reached = [found for run in group.runs.values() if (found := first_at(run, target))]
        rounds, spent = (statistics.fmean(column) for column in zip(*reached, strict=True)) if reached else (0.0, 0.0)
        words = [f"{rounds:.1f}", size(spent)] if reached else ["not reached", ""]
        rows.append([group.label, *words, f"{len(reached)} of {len(group.runs)}"])
    return rows


def first_at(run: Run, target: float) -> tuple[float, float] | None:
    """(round, bytes so far) of the first evaluation at which the target was reached."""
    (rounds, accuracy), (spent, _) = run.curve("rounds"), run.curve("bytes")
    return next(((at, cost) for at, cost, value in zip(rounds, spent, accuracy, strict=True) if value >= target), None)
