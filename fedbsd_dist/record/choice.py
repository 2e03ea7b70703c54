"""Each method's settings chosen on validation samples, among the groups of runs that tried some."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedbsd_dist import dialect
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import curves
from fedbsd_dist.record.curves import History
from fedbsd_dist.record.grouping import Group, defaults, differing, is_method

TRIED = ("method.", "train.")
"""Beginnings of options that may be chosen; runs that differ in others had other data, clients or models."""
EVALUATION = "evaluate."
"""Of options on which no accuracy on validation samples after the last round depends: a search may leave tests out."""


@dataclass(frozen=True)
class Choice:
    """Of one method."""

    method: str
    settings: dict[str, str]
    """Dotted key -> value as YAML: what was tried, and what else is not as usual or not as with other methods."""
    validation: float
    """Accuracy on validation samples after the last round, at the better of the stages, mean over seeds."""
    num_tried: int
    at_edge: list[str]
    """Keys whose values are ordered, of which the smallest or the largest was chosen: more might be better."""


def choose(groups: Sequence[Group], histories: Sequence[Sequence[History]]) -> list[Choice]:
    """For every method, by `curves.validation`.

    Groups that lack a seed, for it diverged, are no choice. Raises UserError for runs without validation samples, and
    for runs of a method that differ in more than what can be chosen.
    """
    apart = [key for key in _learned([group.settings for group in groups]) if not is_method(key)]
    tried: dict[str, list[tuple[float, Group]]] = {}
    for group, of in zip(groups, histories, strict=True):
        tried.setdefault(group.method, []).append((_validation(group, of), group))
    return [_choice(method, found, apart) for method, found in tried.items()]


def _learned(settings: Sequence[dict[str, str]]) -> list[str]:
    """Keys that differ, and with them what is learned."""
    return [key for key in differing(settings) if not key.startswith(EVALUATION)]


def _validation(group: Group, histories: Sequence[History]) -> float:
    for run, history in zip(group.runs, histories, strict=True):
        if not history.validation:
            raise UserError(
                f"--best: {run.path} held no validation samples out, and test samples choose nothing. Run the sweep "
                "with data.val_fraction=0.1."
            )
    return fmean(curves.validation(history) for history in histories)


def _choice(method: str, found: Sequence[tuple[float, Group]], apart: Sequence[str]) -> Choice:
    """`apart`: what not all methods have alike, which goes with each."""
    settings = [group.settings for _, group in found]
    keys = _learned(settings)
    if others := [key for key in keys if not key.startswith(TRIED)]:
        raise UserError(
            f"--best: runs of {method} differ in {', '.join(others)}, which is no choice of a method's. Choose within "
            "runs that have that in common: name their folders."
        )
    # what diverged with some seed is no choice
    most = max(len(group.runs) for _, group in found)
    found = [(accuracy, group) for accuracy, group in found if len(group.runs) == most]
    if len({tuple((run.seed, run.clients) for run in group.runs) for _, group in found}) > 1:
        raise UserError(f"--best: runs of {method} have not all the same seeds and clients. Finish the sweep first.")
    accuracy, best = max(found, key=lambda pair: pair[0])
    usual = defaults(method)
    chosen = {
        key: value
        for key, value in best.settings.items()
        if key in keys or key in apart or (is_method(key) and value != usual.get(key))
    }
    del chosen["method.name"]
    return Choice(method, chosen, accuracy, len(found), [key for key in keys if _at_edge(key, best.settings, settings)])


def _at_edge(key: str, best: dict[str, str], settings: Sequence[dict[str, str]]) -> bool:
    values = [dialect.parse(of[key]) for of in settings]
    numbers = {value for value in values if isinstance(value, float | int) and not isinstance(value, bool)}
    return len(numbers) > 2 and dialect.parse(best[key]) in (min(numbers), max(numbers))


def as_options(choices: Sequence[Choice]) -> str:
    """YAML of the axis `method`, each method with what was chosen: a further file of a sweep's command line."""
    return dialect.write({"method": [_element(choice) for choice in choices]})


def _element(choice: Choice) -> dict[str, Any]:
    chosen = {key.removeprefix("method."): dialect.parse(value) for key, value in choice.settings.items()}
    return {"name": choice.method, **chosen}


def rows(choices: Sequence[Choice]) -> list[list[str]]:
    """A table: a row a method."""
    return [
        ["method", "chosen", "validation", "tried"],
        *([of.method, _said(of), f"{100 * of.validation:.2f}", str(of.num_tried)] for of in choices),
    ]


def _said(choice: Choice) -> str:
    parts = (f"{key}={value}{' (at the edge)' * (key in choice.at_edge)}" for key, value in choice.settings.items())
    return ", ".join(parts) or "-"
