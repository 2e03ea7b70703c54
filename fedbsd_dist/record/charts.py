"""Pictures that compare runs, as SVG for a light and for a dark page."""

import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from fedbsd_dist.record.compare import BASELINE, BY, stages_of
from fedbsd_dist.record.runs import Group

STYLES = {"light": "default", "dark": "dark_background"}
"""Colour scheme of the page -> matplotlib's style."""
MARKERS = "osD^vPX*<>hp"
AXES = {
    "rounds": ("rounds", 1.0),
    "bytes": ("MB sent and received", 1e6),
    "seconds": ("seconds of training and communication", 1.0),
}
MOST_BANDS = 8
"""Groups up to which each gets a band; of more, the baseline alone."""
WIDTH = 10.0
"""Inches."""

Draw = Callable[[Sequence[Group]], Any]


def svg(draw: Draw, groups: Sequence[Group], scheme: str) -> str:
    """The figure that `draw` makes of the groups, in the colours of a page's scheme, its background left open."""
    import matplotlib
    from matplotlib import style

    content = io.StringIO()
    settings: dict[Any, Any] = {
        "text.parse_math": False,  # a label is a user's text
        "svg.hashsalt": "fedbsd_dist",  # the same picture, the same file
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with style.context(STYLES[scheme]), matplotlib.rc_context(settings):
        draw(groups).savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def by_stage(groups: Sequence[Group]) -> Any:
    """A row a group, a mark a stage: mean over seeds, with the standard deviation."""
    figure, axes = _figure(_height(groups))
    colours = _colours(len(stages_of(groups)))
    for number, stage in enumerate(stages_of(groups)):
        rows = [(row, group.accuracy(stage)) for row, group in enumerate(groups) if group.accuracy(stage)]
        axes.errorbar(
            [100 * statistics.fmean(values.values()) for _, values in rows],
            [row for row, _ in rows],
            xerr=[100 * _deviation(list(values.values())) for _, values in rows],
            linestyle="none",
            marker=MARKERS[number],
            color=colours[number],
            alpha=0.85,
            label=stage,
        )
    _name_rows(axes, groups)
    axes.set_xlabel("accuracy in percent, mean over clients")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False)
    return figure


def curves(groups: Sequence[Group]) -> Any:
    """Accuracy `received` against rounds, bytes and seconds: means over seeds, with a band of their deviation
    where there is room for it.
    """
    figure, panels = _figure(5.2, len(AXES))
    colours = _colours(len(groups))
    for panel, (axis, (label, unit)) in zip(panels, AXES.items(), strict=True):
        for number, group in enumerate(groups):
            found = [run.curve(axis) for run in group.runs.values()]
            count = min(len(xs) for xs, _ in found)
            x = [statistics.fmean(xs[i] for xs, _ in found) / unit for i in range(count)]
            y = [100 * statistics.fmean(ys[i] for _, ys in found) for i in range(count)]
            spread = [100 * _deviation([ys[i] for _, ys in found]) for i in range(count)]
            mine = group.method == BASELINE
            panel.plot(
                x,
                y,
                color=colours[number],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                linewidth=2.6 if mine else 1.1,
                zorder=3 if mine else 2,
                label=group.label,
            )
            if not mine and len(groups) > MOST_BANDS:
                continue
            panel.fill_between(
                x,
                [value - by for value, by in zip(y, spread, strict=True)],
                [value + by for value, by in zip(y, spread, strict=True)],
                color=colours[number],
                alpha=0.12,
                linewidth=0,
            )
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("accuracy received, percent")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def spread(groups: Sequence[Group]) -> Any:
    """A row a group: accuracies of all clients of all seeds after `head_tuned`, a dot each, and their quartiles."""
    figure, axes = _figure(_height(groups))
    values = [[100 * one for run in group.runs.values() for one in run.clients(BY)] for group in groups]
    axes.boxplot(values, positions=range(len(groups)), orientation="horizontal", widths=0.6, showfliers=False)
    for row, accuracies in enumerate(values):
        # beside each other where many are alike
        heights = [row + 0.22 * ((i * 0.618) % 1 * 2 - 1) for i in range(len(accuracies))]
        axes.plot(accuracies, heights, ".", alpha=0.6, markersize=5, color="C0")
    _name_rows(axes, groups)
    axes.set_xlabel(f"accuracy of a client at {BY}, percent")
    return figure


def _figure(height: float, panels: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, panels, sharey=True)


def _height(groups: Sequence[Group]) -> float:
    return 1.4 + 0.32 * len(groups)


def _name_rows(axes: Any, groups: Sequence[Group]) -> None:
    axes.set_yticks(range(len(groups)), [group.label for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)  # the first on top
    axes.grid(axis="x", alpha=0.25)


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"]
    return [palette(number % palette.N) for number in range(count)]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
