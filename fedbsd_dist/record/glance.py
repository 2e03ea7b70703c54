"""Several benchmarks beside each other: a row a method, a column a benchmark."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from fedbsd_dist.record import charts
from fedbsd_dist.record.charts import Picture
from fedbsd_dist.record.compare import Difference, percent, points
from fedbsd_dist.record.grouping import Group, Spread

Cells = dict[str, dict[str, list[Spread]]]
"""By name and benchmark; several where rows differ in what each method has for itself. The best mean comes first, and
names that are in more benchmarks before others; those that are in one alone are not here."""


def accuracies(groups: Sequence[Group], stage: str) -> Cells:
    """At a stage, mean over clients."""
    return _cells((group, group.accuracy(stage)) for group in groups)


def differences(found: Sequence[Difference], stage: str) -> Cells:
    """At a stage, to the baseline."""
    return _cells((of.group, of.by_stage.get(stage)) for of in found)


def _cells(values: Iterable[tuple[Group, Spread | None]]) -> Cells:
    cells: Cells = {}
    for group, value in values:
        if value:
            cells.setdefault(group.name, {}).setdefault(group.benchmark, []).append(value)

    def order(name: str) -> tuple[int, float, str]:
        return -len(cells[name]), -fmean(value.mean for of in cells[name].values() for value in of), name

    return {name: cells[name] for name in sorted(cells, key=order) if len(cells[name]) > 1}


def accuracy_rows(cells: Cells) -> list[list[str]]:
    """In percent, mean and deviation over seeds."""
    return _rows(cells, "method", lambda value: percent(value, "±"))


def difference_rows(cells: Cells) -> list[list[str]]:
    """In percentage points, with intervals."""
    return _rows(cells, "difference", points)


def _rows(cells: Cells, head: str, text: Callable[[Spread], str]) -> list[list[str]]:
    rows = [[head, *_benchmarks(cells)]]
    for name, of in cells.items():
        rows.append([name, *(" or ".join(map(text, of.get(one, []))) or "-" for one in _benchmarks(cells))])
    return rows


def picture(cells: Cells, x_label: str) -> Picture:
    """Differences in percentage points, with intervals where there are several seeds."""
    panels = {
        one: [[(100 * value.mean, 100 * (value.half or 0)) for value in of.get(one, [])] for of in cells.values()]
        for one in _benchmarks(cells)
    }
    return charts.intervals(list(cells), panels, x_label)


def _benchmarks(cells: Cells) -> list[str]:
    return sorted({one for of in cells.values() for one in of})
