"""Several benchmarks beside each other: a row a method, a column a benchmark."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedbsd_dist.record import charts
from fedbsd_dist.record.charts import Picture
from fedbsd_dist.record.compare import Difference, percent, points
from fedbsd_dist.record.grouping import Group, Spread


@dataclass(frozen=True)
class Cell:
    """Of one method in one benchmark."""

    value: Spread
    difference: Spread | None = None
    """To the baseline, where `value` is an accuracy."""


Cells = dict[str, dict[str, list[Cell]]]
"""By name and benchmark; several where rows differ in what each method has for itself. The best mean comes first, and
names that are in more benchmarks before others; those that are in one alone are not here."""
MARKS = "▲", "▼"


def accuracies(groups: Sequence[Group], stage: str, found: Sequence[Difference]) -> Cells:
    """At a stage, mean over clients; with the differences to the baseline that were found."""
    to_baseline: dict[str, list[Spread | None]] = {}
    for of in found:
        to_baseline.setdefault(of.group.label, []).append(of.by_stage.get(stage))
    cells = []
    for group in groups:
        if value := group.accuracy(stage):
            mine = to_baseline.get(group.label, [])
            # with several baselines it would not be clear which is meant
            cells.append((group, Cell(value, mine[0] if len(mine) == 1 else None)))
    return _cells(cells)


def differences(found: Sequence[Difference], stage: str) -> Cells:
    """At a stage, to the baseline."""
    return _cells((of.group, Cell(of.by_stage[stage])) for of in found if stage in of.by_stage)


def _cells(found: Iterable[tuple[Group, Cell]]) -> Cells:
    cells: Cells = {}
    for group, cell in found:
        cells.setdefault(group.name, {}).setdefault(group.benchmark, []).append(cell)

    def order(name: str) -> tuple[int, float, str]:
        return -len(cells[name]), -fmean(cell.value.mean for of in cells[name].values() for cell in of), name

    return {name: cells[name] for name in sorted(cells, key=order) if len(cells[name]) > 1}


def accuracy_rows(cells: Cells) -> list[list[str]]:
    """In percent, mean and deviation over seeds; marked where the interval of the difference does not have 0 in it."""
    return _rows(cells, "method", lambda cell: percent(cell.value, "±") + _mark(cell.difference))


def _mark(difference: Spread | None) -> str:
    if difference is None or difference.half is None or abs(difference.mean) <= difference.half:
        return ""
    return f" {MARKS[difference.mean < 0]}"


def difference_rows(cells: Cells) -> list[list[str]]:
    """In percentage points, with intervals."""
    return _rows(cells, "difference", lambda cell: points(cell.value))


def _rows(cells: Cells, head: str, text: Callable[[Cell], str]) -> list[list[str]]:
    rows = [[head, *_benchmarks(cells)]]
    for name, of in cells.items():
        rows.append([name, *(" or ".join(map(text, of.get(one, []))) or "-" for one in _benchmarks(cells))])
    return rows


def picture(cells: Cells, x_label: str) -> Picture:
    """Differences in percentage points, with intervals where there are several seeds."""
    rows = list(cells.values())
    panels = {
        one: [[(100 * cell.value.mean, 100 * (cell.value.half or 0)) for cell in of.get(one, [])] for of in rows]
        for one in _benchmarks(cells)
    }
    return charts.intervals(list(cells), panels, x_label)


def _benchmarks(cells: Cells) -> list[str]:
    return sorted({one for of in cells.values() for one in of})
