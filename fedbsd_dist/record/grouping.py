"""Runs put together by all settings but the seed, and numbers over the seeds of a group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from fedbsd_dist import dialect
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.record import reading
from fedbsd_dist.record.reading import Problem, Run

STAGES = ("received", "trained", "head_tuned", "finetuned", "new_client")
"""In this order; others follow."""
FAIR = "head_tuned"
"""The stage that is the same step for every method: by it methods are ordered."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    label: str
    """The method, and what differs between groups."""
    name: str
    """The method, and its options that differ, but for what every method has for itself."""
    benchmark: str
    """What differs between groups otherwise: `folder alpha=0.5`; of the data alone, where that tells them apart."""
    settings: dict[str, str]
    runs: list[Run]
    """By seed."""

    @property
    def method(self) -> str:
        """Its name."""
        return self.settings["method.name"]

    def is_called(self, name: str) -> bool:
        """Whether a row was named so; a method's name is that of many rows."""
        return name in (self.label, self.name) and name != self.method

    @property
    def is_usual(self) -> bool:
        """Whether the method has its defaults."""
        options = {key: value for key, value in self.settings.items() if is_method(key)}
        return options.items() <= {"method.name": self.method, **defaults(self.method)}.items()

    def accuracy(self, stage: str) -> "Spread | None":
        """Over the seeds that have the stage."""
        of = [run.summary.accuracy[stage].mean for run in self.runs if stage in run.summary.accuracy]
        return spread(of) if of else None

    def worst(self, stage: str) -> float | None:
        """Of a tenth of the clients, mean over seeds."""
        of = [run.summary.accuracy[stage].worst_10pct for run in self.runs if stage in run.summary.accuracy]
        return fmean(of) if of else None

    @property
    def exchanged(self) -> float:
        """Bytes that clients sent and received, mean over seeds."""
        return fmean(run.summary.bytes.federated_up + run.summary.bytes.federated_down for run in self.runs)


@dataclass(frozen=True)
class Spread:
    """Over seeds."""

    mean: float
    std: float | None
    """Of the sample (n - 1); None of one seed."""
    num: int

    @property
    def half(self) -> float | None:
        """Half the width of the confidence interval of the mean, by Student's t; None of one seed."""
        if self.std is None:
            return None
        from scipy.stats import t

        return float(t.ppf((1 + CONFIDENCE) / 2, self.num - 1)) * self.std / math.sqrt(self.num)


def spread(values: Sequence[float]) -> Spread:
    """Of one or more values, one a seed."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def load(run_dirs: Sequence[Path]) -> tuple[list[Run], list[Problem]]:
    """The runs to compare and the directories left out. Raises UserError where no run is left."""
    runs, problems = reading.read_all(run_dirs)
    check_any(runs, problems)
    return runs, problems


def check_any(runs: Sequence[Run], problems: Sequence[Problem]) -> None:
    """Raises UserError where no run is left."""
    if not runs:
        raise UserError("\n".join(["no finished run to compare.", *reading.told(problems)]))


def group(runs: Sequence[Run], own: Sequence[str] = ()) -> tuple[list[Group], list[Problem]]:
    """Groups, the best first; and runs left out because an equal one is there already. `own`: dotted keys of what every
    method has for itself, such as a learning rate.
    """
    apart: dict[tuple[tuple[str, str], ...], dict[int, Run]] = {}
    problems = []
    for run in runs:
        seeds = apart.setdefault(tuple(sorted(run.settings.items())), {})
        if run.seed in seeds:
            problems.append((run.path, f"settings and seed are those of {seeds[run.seed].path}"))
        seeds.setdefault(run.seed, run)
    alike = [dict(settings) for settings in apart]
    names = [{key: value for key, value in of.items() if is_method(key) and key not in own} for of in alike]
    places = [{key: value for key, value in of.items() if not is_method(key) and key not in own} for of in alike]
    swept, of_methods = differing(alike), differing(names)
    groups = [
        Group(_label(settings, swept), _label(name, of_methods), _benchmark(place, places), settings, _by_seed(seeds))
        for settings, name, place, seeds in zip(alike, names, places, apart.values(), strict=True)
    ]
    return sorted(groups, key=_order), problems


def _by_seed(seeds: dict[int, Run]) -> list[Run]:
    return [seeds[seed] for seed in sorted(seeds)]


def is_method(key: str) -> bool:
    """Whether a dotted key is an option of the method."""
    return key.startswith("method.")


def _benchmark(place: dict[str, str], places: Sequence[dict[str, str]]) -> str:
    """Words, the source first; then, with the name of their option, such numbers as tell it from others with these."""
    keys = differing(places)
    of_data = [key for key in keys if key.startswith("data.")]
    if _kinds(places, of_data) == _kinds(places, keys):
        keys = of_data
    words = [key for key in keys if isinstance(dialect.parse(place.get(key, "0")), str)]
    shown = sorted(words, key=lambda key: key != "data.source")
    others = [of for of in places if all(of.get(key) == place.get(key) for key in words)]
    for key in keys:
        if key in place and key not in words and _kinds(others, [*shown, key]) > _kinds(others, shown):
            shown.append(key)
    return " ".join(place[key] if key in words else f"{key.rpartition('.')[2]}={place[key]}" for key in shown)


def _kinds(settings: Sequence[dict[str, str]], keys: Sequence[str]) -> int:
    """How many the keys tell apart."""
    return len({tuple(of.get(key) for key in keys) for of in settings})


def _order(group: Group) -> tuple[float, str]:
    fair = group.accuracy(FAIR)
    return -fair.mean if fair else 0.0, group.label


def differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """Dotted keys whose values are not the same in all; options of methods among those of the same method."""
    keys = dict.fromkeys(key for of in settings for key in of if key != "method.name")
    found = []
    for key in keys:
        values: dict[str, set[str | None]] = {}
        for of in settings:
            values.setdefault(of["method.name"] if is_method(key) else "", set()).add(of.get(key))
        if any(len(these) > 1 for these in values.values()):
            found.append(key)
    return found


def defaults(method: str) -> dict[str, str]:
    """Dotted key -> value of the options of a method that comes with the package; of others none."""
    known = OPTIONS[method].model_fields if method in OPTIONS else {}
    return {f"method.{key}": dialect.inline(field.default) for key, field in known.items() if key != "name"}


def against(groups: Sequence[Group], key: str, stage: str) -> list[tuple[str, list[tuple[float, Spread]]]]:
    """For groups that differ in nothing but `key`: what they have in common, and (its value, accuracy of the stage),
    ascending. Values that are no positive numbers are left out.
    """
    found: dict[str, dict[float, Spread]] = {}
    rest = [{name: value for name, value in group.settings.items() if name != key} for group in groups]
    swept = differing(rest)
    for group, others in zip(groups, rest, strict=True):
        value, accuracy = dialect.parse(group.settings.get(key, "")), group.accuracy(stage)
        if type(value) in (int, float) and value > 0 and accuracy:
            found.setdefault(_label(others, swept), {})[value] = accuracy
    return [(label, sorted(of.items())) for label, of in found.items()]


def _label(own: dict[str, str], swept: Sequence[str]) -> str:
    """Values of the keys `swept`. What is as usual with the method goes without saying; its options come first."""
    usual = defaults(own["method.name"])
    keys = [key for key in swept if key in own and own[key] != usual.get(key)]
    keys.sort(key=lambda key: (not is_method(key), key))
    names = [key.rpartition(".")[2] for key in keys]
    parts = [f"{name if names.count(name) == 1 else key}={own[key]}" for name, key in zip(names, keys, strict=True)]
    return " ".join([own["method.name"], *parts])


def stages(groups: Sequence[Group]) -> list[str]:
    """Those that any run has, in the order of STAGES."""
    found = dict.fromkeys(stage for group in groups for run in group.runs for stage in run.summary.accuracy)
    return [*(stage for stage in STAGES if stage in found), *(stage for stage in found if stage not in STAGES)]
