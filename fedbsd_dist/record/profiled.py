"""The methods of a profile of the communication, each with FedAvg beside it."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedbsd_dist.record import compare, curves, grouping
from fedbsd_dist.record.curves import RECEIVED, Point
from fedbsd_dist.record.exchange import Exchange, read
from fedbsd_dist.record.grouping import Group
from fedbsd_dist.record.reading import Damaged, Problem

BASELINE = "fedavg"
"""The method that others are compared with."""
SHARE = 0.95
"""Of FedAvg's last accuracy, to be reached."""


@dataclass(frozen=True)
class Profiled:
    """The runs of a method that differ in the seed alone, and FedAvg's with all else the same."""

    group: Group
    exchanges: list[Exchange]
    baseline: "Profiled | None"
    """None where no run of FedAvg's has the same settings. FedAvg has itself."""

    @property
    def label(self) -> str:
        """Of its rows."""
        return self.group.label

    def mean(self, of: Callable[[Exchange], float | None]) -> float | None:
        """Over seeds; None where one has none."""
        values = [value for exchange in self.exchanges if (value := of(exchange)) is not None]
        return fmean(values) if len(values) == len(self.exchanges) else None

    @property
    def federated(self) -> float:
        """Bytes up and down."""
        return fmean(exchange.federated for exchange in self.exchanges)

    @property
    def of_fedavg(self) -> float | None:
        """Federated bytes over FedAvg's."""
        return self.federated / self.baseline.federated if self.baseline and self.baseline.federated else None

    @property
    def upload(self) -> dict[str, float]:
        """Bytes of a client in a round, by group."""
        return curves.upload([exchange.history for exchange in self.exchanges])

    def to_target(self, target: float) -> curves.Reached:
        """The way there."""
        return curves.reached([exchange.history for exchange in self.exchanges], target)

    def target(self, asked: float) -> float | None:
        """`asked`, or for 0 by FedAvg's accuracy; None where that is not known."""
        last = self.baseline.group.accuracy(RECEIVED) if self.baseline else None
        return asked or (SHARE * last.mean if last else None)

    def there(self, target: float) -> list[Point]:
        """Where each seed got there, if all did and were evaluated on the way."""
        way = self.to_target(target)
        return way.points if way.evaluations > 1 and len(way.points) == way.num_seeds else []


def load(runs: Sequence[Path]) -> tuple[list[Profiled], list[Problem]]:
    """FedAvg first, then by accuracy as everywhere."""
    found, problems = grouping.load(runs)
    exchanges = {}
    for run in found:
        try:
            exchanges[run.path] = read(run.path)
        except Damaged as damage:
            problems.append((run.path, str(damage)))
    sound = [run for run in found if run.path in exchanges]
    grouping.check_any(sound, problems)
    groups, doubles = grouping.group(sound)
    groups.sort(key=lambda group: group.method != BASELINE)
    profiled: list[Profiled] = []
    for group in groups:
        own = Profiled(group, [exchanges[run.path] for run in group.runs], None)
        baseline = own if group.method == BASELINE else None
        alike = (of for of in profiled if of.group.method == BASELINE and compare.alike(of.group, group))
        profiled.append(dataclasses.replace(own, baseline=next(alike, baseline)))
    return profiled, [*problems, *doubles]
