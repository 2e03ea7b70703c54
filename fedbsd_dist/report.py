"""Runs compared on one page: `python -m fedbsd_dist.report RUNS...`."""

from collections.abc import Sequence
from pathlib import Path

from fedbsd_dist.command import flags, start
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import compare, costs, page
from fedbsd_dist.record.console import table
from fedbsd_dist.record.files import write_atomically
from fedbsd_dist.record.runs import find, load

HTML, MARKDOWN = "report.html", "report.md"
USAGE = f"""usage: python -m fedbsd_dist.report RUNS... [--out=FOLDER] [--target=ACCURACY]

RUNS are directories of finished runs, or folders that hold some, such as a sweep's. Runs that differ in nothing but the
seed are one row. Written to FOLDER (the folder given, if it is one and holds several; else `report`):
  {HTML}   accuracy by method and stage, differences from {compare.BASELINE}, learning curves against rounds, bytes and
                seconds, spread over clients, costs of a target accuracy, what crosses, settings; all in one file
  {MARKDOWN}     its tables
  --target      accuracy in 0..1 whose rounds and bytes are wanted; by default {costs.SHARE:.0%} of the best method's

python -m fedbsd_dist.report runs/compare_digits
python -m fedbsd_dist.report runs/fedavg runs/fedbsd --out=look --target=0.9"""


def main() -> None:
    """Exit code 0, or 2 for what the user can mend."""
    start(USAGE, report)


def report(arguments: Sequence[str]) -> str:
    """Write the files; what to print."""
    given, rest = flags(arguments, ("out", "target"))
    paths = [Path(argument) for argument in rest]
    if not paths:
        raise UserError("name the directories of the runs to compare; --help says how.")
    found = find(paths)
    groups = compare.ranked(load(found))
    target = _target(given["target"]) if "target" in given else costs.default_target(groups)
    folder = Path(given.get("out") or (paths[0] if [paths[0]] == paths and paths != found else "report"))
    files = {HTML: page.as_html(groups, target), MARKDOWN: page.as_markdown(groups, target)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content.encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"--out={folder}: cannot write there ({error.strerror}). Choose another folder.") from None
    written = ", ".join(str(folder / name) for name in files)
    return f"{table(compare.accuracies(groups))}\n\nwritten: {written}"


def _target(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UserError(f"--target={text}: write an accuracy above 0 and up to 1, such as --target=0.9.")
    return value


if __name__ == "__main__":
    main()
