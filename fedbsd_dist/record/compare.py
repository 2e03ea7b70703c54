"""Groups of runs side by side: the table of accuracies, and differences to a baseline seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbsd_dist.record import reading
from fedbsd_dist.record.console import table
from fedbsd_dist.record.grouping import CONFIDENCE, FAIR, Group, Spread, group, is_method, load, spread, stages
from fedbsd_dist.record.reading import Problem, Run
from fedbsd_dist.units import size

BASELINE = "fedbsd"


@dataclass(frozen=True)
class Difference:
    """Method - baseline over the seeds that both have, with the same other settings and clients."""

    group: Group
    label: str
    num_seeds: int
    by_stage: dict[str, Spread]


@dataclass(frozen=True)
class Pair:
    """A method and the baseline: their runs that differ in the method, and in what goes with it, alone."""

    group: Group
    label: str
    runs: list[tuple[Run, Run]]


def pairs(groups: Sequence[Group], baseline: str = BASELINE, own: Sequence[str] = ()) -> tuple[list[Pair], list[str]]:
    """(every other method and every variant of the baseline with the same settings; labels of those without such).
    `baseline`: a method, of which all are compared with the one that has its defaults, if it is there; or the label or
    name of groups, with which all others are compared.

    Options of methods may differ, and so may those of `own`, dotted keys that were chosen for each method by itself.
    """
    bases = [group for group in groups if group.method == baseline]
    usual = [base for base in bases if base.is_usual]
    bases = bases or [group for group in groups if group.is_called(baseline)]
    found, lonely = [], []
    for one in groups:
        if one in usual or one.is_called(baseline):
            continue
        with_these = usual if one.method == baseline else bases
        shared_with = [(base, shared) for base in with_these if (shared := _shared(one, base, own))]
        shared_with = [pair for pair in shared_with if pair[0] in usual] or shared_with
        for base, shared in shared_with:
            # its name says it where there is no other, and nothing need be said where all have this one
            name = base.label if len(shared_with) > 1 else baseline
            alone = base.is_called(baseline) and len(shared_with) == 1
            label = one.label if alone else f"{one.label} - {name}"
            found.append(Pair(one, label, shared))
        if not shared_with and one.method != baseline:
            lonely.append(one.label)
    return found, lonely


def differences(
    groups: Sequence[Group], baseline: str = BASELINE, own: Sequence[str] = ()
) -> tuple[list[Difference], list[str]]:
    """(of every pair; labels of methods that are in none), as `pairs` has them."""
    found, lonely = pairs(groups, baseline, own)
    return [_difference(pair) for pair in found], lonely


def _shared(one: Group, base: Group, own: Sequence[str]) -> list[tuple[Run, Run]]:
    if not alike(one, base, own):
        return []
    by_seed = {run.seed: run for run in base.runs}
    found = [(run, by_seed[run.seed]) for run in one.runs if run.seed in by_seed]
    return [(run, other) for run, other in found if run.clients == other.clients]


def alike(one: Group, other: Group, own: Sequence[str] = ()) -> bool:
    """Whether they differ in their method, and in what goes with it, alone; `own`: as of `pairs`."""
    return _others(one, own) == _others(other, own)


def _others(group: Group, own: Sequence[str]) -> dict[str, str]:
    return {key: value for key, value in group.settings.items() if not is_method(key) and key not in own}


def _difference(pair: Pair) -> Difference:
    by_stage: dict[str, list[float]] = {}
    for run, base in pair.runs:
        for stage, of in run.summary.accuracy.items():
            if stage in base.summary.accuracy:
                by_stage.setdefault(stage, []).append(of.mean - base.summary.accuracy[stage].mean)
    return Difference(
        pair.group, pair.label, len(pair.runs), {stage: spread(values) for stage, values in by_stage.items()}
    )


def percent(value: Spread | None, plus_minus: str = "+-") -> str:
    """`97.20 +- 0.60`; `-` for what is not there."""
    if value is None:
        return "-"
    return f"{100 * value.mean:.2f} {plus_minus} {'-' if value.std is None else f'{100 * value.std:.2f}'}"


def points(value: Spread | None) -> str:
    """`+0.80 [+0.10, +1.50]`, without the interval where there is none; `-` for what is not there."""
    if value is None:
        return "-"
    mean, half = 100 * value.mean, value.half
    return f"{mean:+.2f}" + ("" if half is None else f" [{mean - 100 * half:+.2f}, {mean + 100 * half:+.2f}]")


def difference_rows(found: Sequence[Difference], names: Sequence[str]) -> list[list[str]]:
    """A table: a row a pair of methods, a column a stage of `names`."""
    head = ["difference", *names, "seeds"]
    return [head, *([d.label, *(points(d.by_stage.get(name)) for name in names), str(d.num_seeds)] for d in found)]


def difference_notes(found: Sequence[Difference], lonely: Sequence[str], baseline: str = BASELINE) -> list[str]:
    """What the table of differences says, and what it cannot."""
    if not found and not lonely:
        return [f"Nothing is compared with {baseline}: there are no other methods."]
    notes = []
    if found:
        notes.append(
            f"Accuracy minus {baseline}'s in percentage points: mean over the seeds that both have, each pair with the "
            f"same clients and the same settings but for the method's own. In brackets the "
            f"{100 * CONFIDENCE:.0f} % confidence interval of that mean by Student's t, not corrected for the "
            "number of comparisons."
        )
        if any(difference.num_seeds == 1 for difference in found):
            notes.append("One shared seed gives no interval: such a difference may be chance.")
    if lonely:
        notes.append(f"No {baseline} with the same seeds, clients and other settings: {', '.join(lonely)}.")
    return notes


def comparison(run_dirs: Sequence[Path], baseline: str = BASELINE) -> str:
    """The console's tables over finished runs: accuracy by stage, and differences to the baseline.

    Directories that hold no finished run are named. Raises UserError where none does.
    """
    runs, problems = load(run_dirs)
    groups, doubles = group(runs)
    return console_text(groups, [*problems, *doubles], baseline)


def console_text(
    groups: Sequence[Group], problems: Sequence[Problem], baseline: str = BASELINE, own: Sequence[str] = ()
) -> str:
    """The two tables, what they say, and what was left out."""
    names = stages(groups)
    rows = [["method", *names, f"worst 10 % {FAIR}", "seeds", "sent, received"]]
    for one in groups:
        worst = one.worst(FAIR)
        rows.append(
            [
                one.label,
                *(percent(one.accuracy(name)) for name in names),
                "-" if worst is None else f"{100 * worst:.2f}",
                str(len(one.runs)),
                size(one.exchanged),
            ]
        )
    found, lonely = differences(groups, baseline, own)
    parts = [
        "Accuracy in percent, mean over clients: mean +- sample standard deviation over seeds. Sorted by "
        f"{FAIR}, the same step for every method.",
        table(rows),
        "\n".join(difference_notes(found, lonely, baseline)),
    ]
    if found:
        parts.append(table(difference_rows(found, names)))
    if problems:
        parts.append("\n".join(reading.told(problems)))
    return "\n\n".join(parts)
