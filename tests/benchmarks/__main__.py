"""All benchmarks, each in a process of its own, and one table of their figures beside the bounds set for them.

    python -m tests.benchmarks [--quick] [--only NAME ...] [--json FILE]

from the repository's root. `--quick`: fewer and shorter runs, for a first look. Data and packages that are needed
beyond the program's own are named in the table where they are missing. A bound that does not hold is told and is no
error: the exit code is 0.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from rows import GOALS, Row, cannot, document, table


def benchmarks(folder: Path = FOLDER) -> dict[str, tuple[float, float]]:
    """Name of each script that has rows -> seconds that it takes, whole and quick: read from its source, for to
    import them all takes long.
    """
    found = {}
    for path in sorted(folder.glob("*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "SECONDS":
                whole, quick = ast.literal_eval(statement.value)
                found[path.stem] = (whole, quick)
    return found


def rows_of(name: str, quick: bool, folder: Path = FOLDER) -> Iterator[Row]:
    """As the script gives them, and where it breaks off a row that says so."""
    command = [sys.executable, str(folder / f"{name}.py"), "--json", *(["--quick"] if quick else [])]
    goal = min(GOALS)
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout or ():
                if line.startswith('{"goal"'):
                    row = Row(**json.loads(line))
                    goal = row.goal
                    yield row
        if process.returncode:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            last = said[-1] if said else "without a word"
            why = f"broke off with exit code {process.returncode} ({last}). See `python tests/benchmarks/{name}.py`."
            yield cannot(goal, name, why)


def main() -> None:
    """Progress to standard error, the table to standard output."""
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--only", nargs="+", choices=sorted(known), metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    names = options.only or list(known)
    expected = {name: known[name][options.quick] for name in names}
    found: list[Row] = []
    paces = [1.0]
    for done, name in enumerate(names):
        left = paces[-1] * sum(expected[name] for name in names[done:]) / 60
        print(f"[{done + 1}/{len(names)}] {name}; about {left:.0f} min are left", file=sys.stderr)
        start, measured = time.monotonic(), False
        for row in rows_of(name, options.quick):
            found.append(row)
            measured |= row.value is not None
            value = row.why if row.value is None else f"{row.value:.4g} {row.unit}"
            print(f"    {row.what}: {value}", file=sys.stderr)
        if measured:  # one that cannot run here says nothing about this machine's pace
            paces.append((time.monotonic() - start) / expected[name])
    print(table(found), end="")
    if options.json:
        options.json.write_text(document(found))


if __name__ == "__main__":
    main()
