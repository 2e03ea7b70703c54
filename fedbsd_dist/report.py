"""Finished runs compared on one page: `python -m fedbsd_dist.report RUNS...`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbsd_dist.command import flags, fraction, start
from fedbsd_dist.errors import UserError
from fedbsd_dist.record import choice, compare, curves, grouping, keeping, page, reading, sections
from fedbsd_dist.record.curves import History
from fedbsd_dist.record.files import write_atomically
from fedbsd_dist.record.grouping import Group
from fedbsd_dist.record.reading import Damaged, Problem, Run

HTML, MARKDOWN = "report.html", "report.md"
USAGE = f"""usage: python -m fedbsd_dist.report RUNS... [--out=FOLDER] [--target=ACCURACY] [--own=OPTIONS]
                                          [--baseline=METHOD] [--best=FILE] [--keep=FOLDER] [--figures=FOLDER]

Compares finished runs. RUNS are run directories, or folders with run directories in them. Runs that differ in nothing
but the seed are one row, and every other method is compared with one of them seed by seed.

  --out       folder to write to: the one folder of RUNS, or `report` where there are several
  --target    accuracy from 0 to 1 to which rounds and bytes are counted; 95 % of the best method's, unless given
  --own       options, such as train.lr,train.together, that each method has for itself: methods are compared though
              they differ in them
  --baseline  what others are compared with: a method, or a row by its name, with or without what --own names;
              {compare.BASELINE}, unless given
  --best      also write what was best for each method on validation samples, to be run with other seeds:
              python -m fedbsd_dist.main CONFIG.yaml FILE seed=[0,1,2]
  --keep      also write the runs, cut down to what this command reads, into a new folder
  --figures   also write every figure of the page there, as SVG files

Written: {HTML}, one page that needs no other file and no network, and {MARKDOWN}, its tables.

python -m fedbsd_dist.report runs
python -m fedbsd_dist.report runs/fedavg runs/fedbsd --out=look --target=0.9"""


@dataclass(frozen=True)
class _Asked:
    """A command line."""

    folders: list[Path]
    out: Path
    target: float | None
    own: list[str]
    baseline: str
    best: Path | None
    keep: Path | None
    figures: Path | None


def main() -> None:
    """Exit code 0, or 2 for what the user can mend."""
    start(USAGE, report)


def report(arguments: Sequence[str]) -> str:
    """Write the files; what to print."""
    asked = _asked(arguments)
    runs, problems = grouping.load(_run_dirs(asked.folders))
    histories, damaged = _histories(runs)
    problems += damaged
    runs = [run for run in runs if run.path in histories]
    grouping.check_any(runs, problems)
    groups, doubles = grouping.group(runs, asked.own)
    problems += doubles
    of_groups = [[histories[run.path] for run in group.runs] for group in groups]
    _check(asked, groups)
    choices = choice.choose(groups, of_groups) if asked.best else []
    told = sections.of_runs(groups, of_groups, problems, asked.target, asked.own, asked.baseline)
    told[:0] = sections.chosen(choices)
    title = "Comparison of runs"
    methods = ", ".join(dict.fromkeys(group.method for group in groups))
    lead = [f"{sum(len(group.runs) for group in groups)} runs in {len(groups)} rows. Methods: {methods}."]
    contents = {HTML: page.as_html(title, lead, told), MARKDOWN: page.as_markdown(title, lead, told)}
    _write("out", asked.out, {name: content.encode() for name, content in contents.items()})
    written = [asked.out / name for name in contents]
    if asked.best:
        _write("best", asked.best.parent, {asked.best.name: choice.as_options(choices).encode()})
        written.append(asked.best)
    if asked.figures:
        _write("figures", asked.figures, page.pictures(told))
        written.append(asked.figures)
    if asked.keep:
        keeping.keep([run for group in groups for run in group.runs], asked.keep)
        written.append(asked.keep)
    text = compare.console_text(groups, problems, asked.baseline, asked.own)
    return f"{text}\n\nwritten: {', '.join(map(str, written))}"


def _write(flag: str, folder: Path, contents: Mapping[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise UserError(
            f"--{flag}={folder}: cannot write files there ({error.strerror or error}). Choose another folder."
        ) from None


def _check(asked: _Asked, groups: Sequence[Group]) -> None:
    if unknown := [key for key in asked.own if not any(key in group.settings for group in groups)]:
        raise UserError(
            f"--own={','.join(asked.own)}: no run has an option {', '.join(unknown)}. Write them as train.lr."
        )
    known = {name: None for group in groups for name in (group.method, group.name, group.label)}
    if asked.baseline not in (compare.BASELINE, *known):
        raise UserError(f"--baseline={asked.baseline}: no run is of that. There are: {', '.join(known)}.")


def _asked(arguments: Sequence[str]) -> _Asked:
    given, rest = flags(arguments, ("out", "target", "own", "baseline", "best", "keep", "figures"))
    folders = [Path(argument).expanduser() for argument in rest]
    if not folders:
        raise UserError("no runs named. Give run directories, or a folder with some in it; --help says more.")
    out = given.get("out")
    of = {name: Path(given[name]).expanduser() if name in given else None for name in ("best", "keep", "figures")}
    return _Asked(
        folders=folders,
        out=Path(out).expanduser() if out else folders[0] if len(folders) == 1 else Path("report"),
        target=fraction("target", given["target"], 1, 0.9) if "target" in given else None,
        own=given["own"].split(",") if "own" in given else [],
        baseline=given.get("baseline") or compare.BASELINE,
        **of,
    )


def _run_dirs(folders: Sequence[Path]) -> list[Path]:
    """Every run directory once."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder. Give run directories, or a folder with some in it.")
        inside = reading.find(folder)
        if not inside:
            raise UserError(f"{folder}: holds no run. Give run directories, or a folder with some in it.")
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _histories(runs: Sequence[Run]) -> tuple[dict[Path, History], list[Problem]]:
    histories, problems = {}, []
    for run in runs:
        try:
            histories[run.path] = curves.read(run.path)
        except Damaged as damage:
            problems.append((run.path, str(damage)))
    return histories, problems


if __name__ == "__main__":
    main()
