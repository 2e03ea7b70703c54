"""Several benchmarks beside each other: a row a method, a column a benchmark."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from fedbsd_dist.record.compare import Difference, percent, points
from fedbsd_dist.record.grouping import Group, Spread

Cells = dict[str, dict[str, list[Spread]]]
"""By name and benchmark; several where rows differ in what each method has for itself."""


def accuracies(groups: Sequence[Group], stage: str) -> list[list[str]]:
    """In percent, mean and deviation over seeds; the best mean first, those that are in all benchmarks before others.
    Nothing where no method is in two benchmarks.
    """
    found = _cells((group, group.accuracy(stage)) for group in groups)
    return _rows(found, "method", groups, lambda value: percent(value, "±"))


def differences(found: Sequence[Difference], groups: Sequence[Group], stage: str) -> list[list[str]]:
    """To the baseline in percentage points, with intervals; otherwise as `accuracies`."""
    return _rows(_cells((of.group, of.by_stage.get(stage)) for of in found), "difference", groups, points)


def _cells(values: Iterable[tuple[Group, Spread | None]]) -> Cells:
    cells: Cells = {}
    for group, value in values:
        if value:
            cells.setdefault(group.name, {}).setdefault(group.benchmark, []).append(value)
    return cells


def _rows(cells: Cells, head: str, groups: Sequence[Group], text: Callable[[Spread], str]) -> list[list[str]]:
    if all(len(of) < 2 for of in cells.values()):
        return []
    benchmarks = sorted({group.benchmark for group in groups})

    def order(name: str) -> tuple[int, float, str]:
        return -len(cells[name]), -fmean(value.mean for of in cells[name].values() for value in of), name

    rows = [[head, *benchmarks]]
    for name in sorted(cells, key=order):
        rows.append([name, *(" or ".join(map(text, cells[name].get(one, []))) or "-" for one in benchmarks)])
    return rows
