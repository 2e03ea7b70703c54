"""What a benchmark says: rows of figures, each beside the bound that is set for it; as a table, and as JSON.

A benchmark is a script of this folder with

    SECONDS = 120, 30
    '''It takes, whole and quick.'''

    def rows(quick: bool, *arguments: str) -> Iterator[Row]: ...

    if __name__ == "__main__":
        main(rows)

whose rows come one by one, as they are measured; `arguments` are those of its command line. One that has not what it
needs gives a row made by `cannot`.
"""

import json
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

GOALS = {
    1: "round over plain loop",
    2: "against the usual ways",
    3: "GPU",
    4: "evaluation",
    5: "start-up",
    6: "scale in clients",
    7: "scale in ranks",
    8: "reduction",
    9: "memory",
    10: "link model",
    11: "codecs",
}

WIDTH = 120
"""Of text, in columns."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure, or why there is none."""

    goal: int
    """Of GOALS."""
    what: str
    value: float | None
    """The median of the runs."""
    unit: str = "times"
    least: float | None = None
    greatest: float | None = None
    runs: int = 0
    bound: float | None = None
    """None: the figure is told, and nothing is asked of it."""
    at_most: bool = True
    """Whether the bound is an upper one."""
    why: str = ""
    """There is no figure here, and what is to be done to have it."""

    @property
    def holds(self) -> bool | None:
        """The value keeps to its bound; None: nothing to say."""
        if self.value is None or self.bound is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def measured(
    goal: int, what: str, values: Sequence[float], unit: str = "times", *, bound: float | None = None, at_most=True
) -> Row:
    """The row of what several runs gave."""
    return Row(
        goal=goal,
        what=what,
        value=statistics.median(values),
        unit=unit,
        least=min(values),
        greatest=max(values),
        runs=len(values),
        bound=bound,
        at_most=at_most,
    )


def cannot(goal: int, what: str, why: str) -> Row:
    """The row of what cannot be measured here; `why` ends with what to do."""
    return Row(goal=goal, what=what, value=None, why=why)


def machine() -> dict[str, str | int]:
    """Where the figures are from."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "torchvision", "scikit-learn")},
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def document(rows: Iterable[Row]) -> str:
    """JSON: the machine, and every row with all its fields and `holds`."""
    lines = [asdict(row) | {"name": GOALS[row.goal], "holds": row.holds} for row in rows]
    return json.dumps({"machine": machine(), "rows": lines}, indent=1) + "\n"


def table(rows: Iterable[Row]) -> str:
    """Text, by goal: value, spread, bound, and whether it holds; then what could not be measured."""
    ordered = sorted(rows, key=lambda row: row.goal)
    found = [row for row in ordered if row.value is not None]
    cells = [["goal", "what", "value", "least to greatest", "runs", "bound", "holds"], *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [", ".join(f"{key} {value}" for key, value in machine().items()), ""]
    if found:
        lines += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    for row in ordered:
        if row.value is None:
            lines += textwrap.wrap(f"not measured: {_goal(row)}, {row.what}: {row.why}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def main(rows: Callable[..., Iterator[Row]]) -> None:
    """The command line of a benchmark: [--quick] [--json] [ARGUMENT ...]. Prints the table at the end, or with
    --json every row as soon as it is there, a line each.
    """
    flags = {"--quick", "--json"} & {*sys.argv[1:]}
    found = rows("--quick" in flags, *(argument for argument in sys.argv[1:] if argument not in flags))
    if "--json" not in flags:
        print(table(found), end="")
    else:
        for row in found:
            print(json.dumps(asdict(row)), flush=True)


def _cells(row: Row) -> list[str]:
    bound = "" if row.bound is None else f"{'<=' if row.at_most else '>='} {row.bound:g}"
    spread = "" if row.runs < 2 else f"{_number(row.least)} to {_number(row.greatest)}"
    holds = {None: "", True: "yes", False: "NO"}[row.holds]
    return [_goal(row), row.what, f"{_number(row.value)} {row.unit}", spread, str(row.runs or ""), bound, holds]


def _goal(row: Row) -> str:
    return f"{row.goal} {GOALS[row.goal]}"


def _number(value: float | None) -> str:
    """Four digits, and those before the point."""
    assert value is not None
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cpu() -> str:
    """As Linux calls it, where it says so."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
