"""Runs side by side: mean and deviation over seeds, and paired differences from FedBSD."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedbsd_dist.record.console import table
from fedbsd_dist.record.runs import STAGES, Group, load
from fedbsd_dist.units import size

BASELINE = "fedbsd"
BY = "head_tuned"
"""Stage by which methods are ranked: the same step for every method after the newest shared state."""
CONFIDENCE = 0.95

ACCURACIES = (
    "Accuracy in percent, mean over clients; over seeds mean ± standard deviation. The worst tenth of the clients, and "
    f"the order, are of {BY}: the same step for every method."
)
DIFFERENCES = (
    f"Difference from {BASELINE} in points, paired by seed: mean and {CONFIDENCE:.0%} confidence interval (Student's "
    f"t). Above 0: better than {BASELINE}."
)

Rows = list[list[str]]
"""The first is the heading."""


def comparison(run_dirs: Sequence[Path]) -> str:
    """What a sweep ends with, for a console. Raises UserError for a run that cannot be read."""
    groups = ranked(load(run_dirs))
    parts = [ACCURACIES, table(accuracies(groups))]
    rows = differences(groups)
    if len(rows) > 1:
        parts += [DIFFERENCES, table(rows)]
    return "\n\n".join(parts)


def ranked(groups: Sequence[Group]) -> list[Group]:
    """Best first; equals by their labels."""
    return sorted(groups, key=lambda group: (-statistics.fmean(group.accuracy(BY).values()), group.label))


def stages_of(groups: Sequence[Group]) -> list[str]:
    """Those that any run was evaluated at."""
    return [stage for stage in STAGES if any(group.accuracy(stage) for group in groups)]


def accuracies(groups: Sequence[Group]) -> Rows:
    """A row a group: accuracy at every stage, its worst tenth of clients at `head_tuned`, seeds, bytes."""
    stages = stages_of(groups)
    rows = [["", *stages, "worst 10 %", "seeds", "sent, received"]]
    for group in groups:
        sent = group.first.summary["bytes"]
        rows.append(
            [
                group.label,
                *(plus_minus(group.accuracy(stage)) for stage in stages),
                plus_minus(group.accuracy(BY, "worst_10pct")),
                str(len(group.runs)),
                size(sent["federated_up"] + sent["federated_down"]),
            ]
        )
    return rows


def selections(groups: Sequence[Group]) -> Rows:
    """A row a group: `received` after the last round, the mean of the last rounds, and of the round that validation
    chose.
    """
    rows = [["", "last", "mean of last rounds", "best by validation"]]
    for group in groups:
        summaries = {seed: run.summary for seed, run in group.runs.items()}
        means = {
            seed: summary["accuracy_last_rounds"]["received"]["mean"]
            for seed, summary in summaries.items()
            if "accuracy_last_rounds" in summary
        }
        best = {seed: summary["best"]["received"]["mean"] for seed, summary in summaries.items() if "best" in summary}
        rows.append([group.label, *map(plus_minus, (group.accuracy("received"), means, best))])
    return rows if any(row[2] or row[3] for row in rows[1:]) else rows[:1]


def differences(groups: Sequence[Group]) -> Rows:
    """A row a group: its accuracy less the baseline's with the same other settings, paired by seed, in points."""
    stages = stages_of([group for group in groups if group.method == BASELINE])
    rows = [["", *stages, "pairs"]]
    for group in groups:
        base = next((other for other in groups if other.method == BASELINE and _alike(group, other)), None)
        if base is None or base is group:
            continue
        cells = []
        for stage in stages:
            ours, theirs = group.accuracy(stage), base.accuracy(stage)
            cells.append(interval([100 * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]))
        rows.append([group.label, *cells, str(len(group.runs.keys() & base.runs.keys()))])
    return rows


def _alike(one: Group, other: Group) -> bool:
    """The same but for the method."""
    mine, theirs = (
        {name: value for name, value in group.first.settings.items() if name != "seed" and name[:7] != "method."}
        for group in (one, other)
    )
    return mine == theirs


def plus_minus(values: Mapping[int, float]) -> str:
    """Fractions by seed, as percent: mean ± sample standard deviation; without a deviation of one."""
    if not values:
        return ""
    mean = 100 * statistics.fmean(values.values())
    return f"{mean:.2f}" + (f" ± {100 * statistics.stdev(values.values()):.2f}" if len(values) > 1 else "")


def interval(differences: Sequence[float]) -> str:
    """Mean and the half width of its confidence interval; of one difference there is none."""
    if not differences:
        return ""
    mean = statistics.fmean(differences)
    return f"{mean:+.2f}" + (f" ± {half_width(differences):.2f}" if len(differences) > 1 else "")


def half_width(values: Sequence[float]) -> float:
    """Of the confidence interval of the mean of two values or more, by Student's t."""
    from scipy.stats import t  # a second of import, for whoever compares

    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
