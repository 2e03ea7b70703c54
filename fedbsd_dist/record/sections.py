"""What a report says of groups of runs, in the order of the page."""

from collections.abc import Sequence
from statistics import fmean

from fedbsd_dist.evaluation import VALIDATED
from fedbsd_dist.record import charts, choice, client_pairs, compare, curves, glance, grouping, reading
from fedbsd_dist.record.choice import Choice
from fedbsd_dist.record.compare import Difference, percent
from fedbsd_dist.record.curves import HEAD, RECEIVED, Axis, History
from fedbsd_dist.record.grouping import FAIR, Group, Spread, spread
from fedbsd_dist.record.page import Figure, Rows, Section
from fedbsd_dist.record.reading import Problem
from fedbsd_dist.units import size

Histories = Sequence[Sequence[History]]
"""For each group, of its runs."""
PM = "±"


def of_runs(
    groups: Sequence[Group],
    histories: Histories,
    problems: Sequence[Problem],
    target: float | None,
    own: Sequence[str] = (),
    baseline: str = compare.BASELINE,
) -> list[Section]:
    """All of a report. `target`: an accuracy as a fraction; None: 95 % of the best. `own` and `baseline`: as of
    `compare.pairs`.
    """
    names = grouping.stages(groups)
    found, lonely = compare.differences(groups, baseline, own)
    settings = settings_rows(groups)
    sections = [
        *_glance(groups, found, names, baseline),
        Section(
            "Accuracy",
            [
                f"Percent: mean over clients, then mean {PM} sample standard deviation over seeds; in brackets the "
                f"worst tenth of the clients, mean over seeds. Sorted by {FAIR}, the same step for every method."
            ],
            accuracy_rows(groups, histories, names),
        ),
        *_picks(groups),
        Section(
            f"Difference to {baseline}",
            compare.difference_notes(found, lonely, baseline),
            compare.difference_rows(found, names) if found else (),
        ),
        *_client_by_client(groups, histories, names, own, baseline),
        *_against_settings(groups),
        _curves(groups, histories),
        _target(groups, histories, target),
        _clients(groups, histories),
        Section(
            "Bytes of an upload",
            [
                "What one participating client sends in one round, as parameters of float32 or as `wire.codec` has "
                "them, without the few numbers of bookkeeping. As many parameters come back, always of float32."
            ],
            upload_rows(groups, histories),
        ),
        Section(
            "Settings that differ",
            [] if len(settings[0]) > 1 else ["None but the method."],
            settings if len(settings[0]) > 1 else (),
        ),
        Section("Settings that all have in common", ["Apart from the seed."], common_rows(groups), folded=True),
    ]
    if problems:
        sections.append(Section("Left out", reading.told(problems)))
    return sections


def _glance(groups: Sequence[Group], found: Sequence[Difference], names: Sequence[str], baseline: str) -> list[Section]:
    """Nothing where there are not several benchmarks."""
    above, below = glance.MARKS
    note = (
        f"Percent: mean over clients, then mean {PM} sample standard deviation over seeds. A column a benchmark. "
        f"{above}: above {baseline}, {below}: below it, where the interval of the difference does not have 0 in it."
    )
    sections = []
    for stage in names:
        if cells := glance.accuracies(groups, stage, found):
            sections.append(Section(f"All benchmarks: {stage}", [note], glance.accuracy_rows(cells)))
        if cells := glance.differences(found, stage):
            title = f"All benchmarks: {stage}, difference to {baseline}"
            label = f"{stage}: accuracy minus {baseline}'s, percentage points"
            alt = f"Differences to {baseline} at stage {stage}, with intervals, a panel a benchmark: the table above."
            figure = Figure(glance.picture(cells, label), alt, "Bars are the intervals of the table.")
            notes = compare.difference_notes(found, [], baseline)
            sections.append(Section(title, notes, glance.difference_rows(cells), [figure]))
    return sections


def chosen(choices: Sequence[Choice]) -> list[Section]:
    """Nothing where nothing was to be chosen."""
    note = (
        "Of each method what was best on validation samples after the last round, in percent, at the better of the "
        f"stages {' and '.join(VALIDATED)}; mean over seeds. Test samples had no part in it."
    )
    return [Section("Chosen on validation samples", [note], choice.rows(choices))] if choices else []


def accuracy_rows(groups: Sequence[Group], histories: Histories, names: Sequence[str]) -> Rows:
    """A row a group, a column a stage; and one of validation samples where some run held them out."""
    validated = any(history.validation for of in histories for history in of)
    rows = [["method", *names, *["validation"] * validated, "seeds", "sent, received"]]
    for group, of in zip(groups, histories, strict=True):
        cells = [
            percent(group.accuracy(name), PM)
            + ("" if (worst := group.worst(name)) is None else f" ({100 * worst:.2f})")
            for name in names
        ]
        if validated:
            found = [curves.validation(history) for history in of if history.validation]
            cells.append(percent(spread(found) if found else None, PM))
        rows.append([group.label, *cells, str(len(group.runs)), size(group.exchanged)])
    return rows


def _picks(groups: Sequence[Group]) -> list[Section]:
    """`received` by which round is reported, where runs say so."""
    summaries = [run.summary for group in groups for run in group.runs]
    numbers = sorted({of.accuracy_last_rounds.rounds for of in summaries if of.accuracy_last_rounds})
    last_rounds, best = bool(numbers), any(of.best for of in summaries)
    if not last_rounds and not best:
        return []
    rows = [["method", "last round"]]
    rows[0] += [f"mean of the last {' or '.join(map(str, numbers))} rounds"] * last_rounds
    rows[0] += ["best round by validation"] * best
    for group in groups:
        here = [run.summary for run in group.runs]
        of_last = [of.accuracy_last_rounds.received.mean for of in here if of.accuracy_last_rounds]
        of_best = [of.best.received.mean for of in here if of.best]
        row = [group.label, percent(group.accuracy(RECEIVED), PM)]
        row += [percent(spread(of_last) if of_last else None, PM)] * last_rounds
        row += [percent(spread(of_best) if of_best else None, PM)] * best
        rows.append(row)
    note = f"Percent, mean {PM} sample standard deviation over the seeds that have it."
    return [Section(f"Which round counts: {RECEIVED}", [note], rows)]


def _client_by_client(
    groups: Sequence[Group], histories: Histories, names: Sequence[str], own: Sequence[str], baseline: str
) -> list[Section]:
    found, _ = compare.pairs(groups, baseline, own)
    by_path = {
        run.path: of
        for group, them in zip(groups, histories, strict=True)
        for run, of in zip(group.runs, them, strict=True)
    }
    note = (
        "Of all clients of all seeds that both have, in the last evaluation: mean difference in percentage points, in "
        "brackets how many clients gain : lose : stay as they are, and p of Wilcoxon's signed-rank test, two-sided, "
        "not corrected for the number of comparisons. Clients of one seed learn from each other, so that this p is too "
        "small where seeds are few: it speaks of the clients of these seeds, the intervals above of other seeds."
    )
    rows = client_pairs.rows(found, by_path, names)
    if all(cell == "-" for row in rows[1:] for cell in row[1:]):
        return []
    return [Section(f"Difference to {baseline}, client by client", [note], rows)]


def _curves(groups: Sequence[Group], histories: Histories) -> Section:
    title = "Learning curves"
    curve_of = [curves.mean_curve(of) for of in histories]
    if all(len(curve) < 2 for curve in curve_of):
        return Section(
            title, [f"None: {RECEIVED} was not measured during the runs, which evaluate.every=5, say, asks for."]
        )
    ends = "; ".join(
        f"{group.label} {100 * curve[-1][1].mean:.1f} %" for group, curve in zip(groups, curve_of, strict=True) if curve
    )
    axes: dict[Axis, tuple[str, str]] = {
        "round": ("rounds", "Against rounds."),
        "bytes": ("MB sent and received by clients so far", "Against bytes: uploads and downloads of the cohorts."),
        "seconds": (
            "seconds of training and communication so far",
            "Against time, which compares methods only where the runs had the same machine to themselves.",
        ),
    }
    figures = []
    for axis, (label, caption) in axes.items():
        scale = 1e-6 if axis == "bytes" else 1.0
        lines = [
            charts.Line(
                group.label,
                [scale * getattr(point, axis) for point, _ in curve],
                [100 * accuracy.mean for _, accuracy in curve],
                [100 * (accuracy.std or 0) for _, accuracy in curve] if len(of) > 1 else None,
            )
            for group, of, curve in zip(groups, histories, curve_of, strict=True)
        ]
        alt = f"Accuracy of stage {RECEIVED} against {label}, a line a method. At the end: {ends}."
        figures.append(Figure(charts.curves(lines, label), alt, caption))
        if axis == "round" and len(lines) > charts.BANDS:
            caption = "The same, each method before the others, with its band."
            figures.append(Figure(charts.panels(lines, label), f"{alt} A panel a method.", caption))
    note = (
        f"Accuracy of {RECEIVED}, the new global state under each client's own private state: mean over clients and "
        f"seeds. Bands: {PM} one sample standard deviation over seeds, where there are several."
    )
    return Section(title, [note], (), figures)


def _against_settings(groups: Sequence[Group]) -> list[Section]:
    """Accuracy against every setting, but a method's own, that some runs have at three positive values or more while
    all else is the same.
    """
    keys = grouping.differing([group.settings for group in groups])
    found = [
        _against(key, stage, grouping.against(groups, key, stage))
        for key in keys
        if not grouping.is_method(key)
        for stage in VALIDATED
    ]
    return [section for section in found if section]


def _against(key: str, stage: str, ablation: Sequence[tuple[str, list[tuple[float, Spread]]]]) -> Section | None:
    if max((len(found) for _, found in ablation), default=0) < 3:
        return None
    ticks = sorted({value for _, found in ablation for value, _ in found})
    lines = [
        charts.Line(
            label,
            [value for value, _ in found],
            [100 * accuracy.mean for _, accuracy in found],
            [100 * (accuracy.std or 0) for _, accuracy in found],
        )
        for label, found in ablation
    ]
    caption = f"A point is a row of the table above; bands: {PM} one sample standard deviation over seeds."
    alt = f"Accuracy of stage {stage} against {key}, a line for runs that differ in nothing else."
    figure = Figure(charts.curves(lines, key, stage=stage, ticks=ticks), alt, caption)
    rows = [["runs", *(f"{value:g}" for value in ticks)]]
    for label, found in ablation:
        at = dict(found)
        rows.append([label, *(percent(at.get(value), PM) for value in ticks)])
    note = f"Stage {stage} in percent, after the last round, mean {PM} sample standard deviation over seeds."
    return Section(f"Against {key}: {stage}", [note], rows, [figure])


def _target(groups: Sequence[Group], histories: Histories, target: float | None) -> Section:
    chosen = "as asked for"
    if target is None:
        target, chosen = curves.default_target(groups), f"95 % of the best method's last {RECEIVED}"
    title = "Rounds and bytes to a target"
    if target is None:
        return Section(title, [f"No run has stage {RECEIVED}."])
    note = (
        f"Target: {100 * target:.2f} % at {RECEIVED}, {chosen}. The first evaluation of each seed that has it, mean "
        f"{PM} sample standard deviation over seeds; no finer than the runs were evaluated."
    )
    return Section(title, [note], target_rows(groups, histories, target))


def target_rows(groups: Sequence[Group], histories: Histories, target: float) -> Rows:
    """A row a group; a mean only where every seed got there, for that of the quick alone would flatter."""
    rows = [["method", "rounds", "sent, received by clients"]]
    for group, of in zip(groups, histories, strict=True):
        way = curves.reached(of, target)
        if way.evaluations < 2:
            cells = ["no evaluation during the run", "-"]
        elif not way.points:
            cells = ["not reached", "-"]
        elif len(way.points) < way.num_seeds:
            cells = [f"reached by {len(way.points)} of {way.num_seeds} seeds", "-"]
        else:
            rounds = spread([point.round for point in way.points])
            deviation = "-" if rounds.std is None else f"{rounds.std:.1f}"
            cells = [f"{rounds.mean:.1f} {PM} {deviation}", size(fmean(point.bytes for point in way.points))]
        rows.append([group.label, *cells])
    return rows


def _clients(groups: Sequence[Group], histories: Histories) -> Section:
    title = "Spread over clients"
    accuracies = [[100 * accuracy for accuracy in curves.clients(of)] for of in histories]
    if not any(accuracies):
        return Section(title, [f"No run has stage {FAIR}."])
    picture = charts.clients([group.label for group in groups], accuracies)
    lowest = "; ".join(
        f"{group.label} from {min(of):.1f} to {max(of):.1f} %"
        for group, of in zip(groups, accuracies, strict=True)
        if of
    )
    alt = f"Accuracy of every client at stage {FAIR}, a row a method. {lowest}."
    caption = (
        f"Stage {FAIR}, last evaluation. A dot is a client of a seed; the bar spans the middle half of them, "
        "the stroke is the median."
    )
    return Section(title, [], (), [Figure(picture, alt, caption)])


def upload_rows(groups: Sequence[Group], histories: Histories) -> Rows:
    """A row a group; the share of the head is that of the upload."""
    uploads = [curves.upload(of) for of in histories]
    parts = list(dict.fromkeys(name for upload in uploads for name in upload))
    rows = [["method", *parts, "together", f"share of the {HEAD}"]]
    for group, upload in zip(groups, uploads, strict=True):
        whole = sum(upload.values())
        share = f"{100 * upload.get(HEAD, 0) / whole:.2f} %" if whole else "-"
        rows.append([group.label, *(size(upload[p]) if p in upload else "-" for p in parts), size(whole), share])
    return rows


def settings_rows(groups: Sequence[Group]) -> Rows:
    """A row a group, a column a setting that differs."""
    keys = grouping.differing([group.settings for group in groups])
    return [["method", *keys], *([group.label, *(group.settings.get(key, "-") for key in keys)] for group in groups)]


def common_rows(groups: Sequence[Group]) -> Rows:
    """A row a setting that no two groups have otherwise; a method's own stand with it."""
    differ = {"method.name", *grouping.differing([group.settings for group in groups])}
    rows = {}
    for group in groups:
        for key, value in group.settings.items():
            if key not in differ:
                rows[f"{key} ({group.method})" if grouping.is_method(key) else key] = value
    return [["setting", "value"], *([key, value or "''"] for key, value in rows.items())]
