"""A method and the baseline compared client by client: who gains, who loses, and whether that may be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedbsd_dist.record.compare import Pair
from fedbsd_dist.record.curves import History

TIE = 1e-9
"""Accuracies nearer than that are equal: the same fraction, written twice."""


@dataclass(frozen=True)
class Gains:
    """Accuracy of a method minus the baseline's, of every client of every seed that both have."""

    mean: float
    better: int
    worse: int
    equal: int
    p: float
    """Of Wilcoxon's signed-rank test, two-sided, of those that are not equal; 1 where all are."""


def gains(pair: Pair, histories: Mapping[Path, History], stage: str) -> Gains | None:
    """At a stage, in the last evaluation; None where no client was tested by both. `histories`: by run directory."""
    found = [
        accuracy - base[client]
        for run, other in pair.runs
        if (base := histories[other.path].clients.get(stage, {}))
        for client, accuracy in histories[run.path].clients.get(stage, {}).items()
        if client in base
    ]
    if not found:
        return None
    apart = [value for value in found if abs(value) > TIE]
    better = sum(value > 0 for value in apart)
    return Gains(fmean(found), better, len(apart) - better, len(found) - len(apart), _p(apart))


def _p(differences: Sequence[float]) -> float:
    if not differences:
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)


def rows(found: Sequence[Pair], histories: Mapping[Path, History], stages: Sequence[str]) -> list[list[str]]:
    """A table: a row a pair, a column a stage."""
    return [
        ["difference", *stages],
        *([pair.label, *(_cell(gains(pair, histories, stage)) for stage in stages)] for pair in found),
    ]


def _cell(of: Gains | None) -> str:
    if of is None:
        return "-"
    p = "p < 0.0001" if of.p < 0.0001 else f"p = {of.p:.4f}"
    return f"{100 * of.mean:+.2f} ({of.better} : {of.worse} : {of.equal}), {p}"
