"""Figures of a report, each drawn twice: for a page on white and for one on black. As SVG, without a window."""

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MARKERS = "osD^vPX<>"
LINES = ("-", "--", ":")
"""A line style for every round through the colours; nine markers to eight colours: 72 pairs before one comes again."""

BANDS = 6
"""Methods, at most, whose bands can be told apart in one figure; more have panels of their own."""
COLUMNS = 4
LABEL_LINES = 4
BESIDE = 22
"""Lines of names, at most, that fit beside axes."""


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    paper: str
    ink: str
    faint: str
    colours: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#1f2328",
    "#d8dde3",
    ("#0969b8", "#c84e00", "#0b7a56", "#b0388a", "#8a6500", "#6a4fc0", "#2b93b8", "#5c6670"),
)
DARK = Theme(
    "#161b22",
    "#e6edf3",
    "#3a424c",
    ("#5aa9ff", "#ff9255", "#3ccf9f", "#f48ccb", "#e3bd3e", "#b9a3ff", "#7fdcf5", "#b4bcc5"),
)


@dataclass(frozen=True)
class Picture:
    """The same figure for both kinds of page, as SVG."""

    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Line:
    """One method's curve: accuracies in percent; `band` is half its height, where there are several seeds."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[float] | None


def curves(lines: Sequence[Line], x_label: str, *, stage: str = "received", ticks: Sequence[float] = ()) -> Picture:
    """Accuracy of a stage against what it took. Names stand beside the axes, in the order of `lines`, or many below
    them. `ticks`: the positive values of a setting, on a logarithmic axis.
    """
    beside = sum(_lines([line.label for line in lines]))
    place: dict[str, Any] = {"loc": "outside right upper"}
    height = max(4.4, 0.6 + 0.215 * beside)
    if beside > BESIDE:
        place = {"loc": "outside lower left", "ncols": 3}
        height = 4.6 + 0.2 * beside / 3

    def draw(figure: Any, theme: Theme) -> None:
        axes = _axes(figure, theme, x_label, f"accuracy, {stage} (%)")
        for number, line in enumerate(lines):
            style = _style(theme, number)
            axes.plot(line.x, line.y, **style, label=_wrapped(line.label), markevery=max(1, len(line.x) // 12))
            if len(lines) <= BANDS:
                _band(axes, line, style["color"])
        if ticks:
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axes.minorticks_off()
        else:
            axes.set_xlim(left=0)
        figure.legend(**place, frameon=False, labelcolor=theme.ink, fontsize=9, handlelength=3)

    return _twice(draw, (9.6, height))


def panels(lines: Sequence[Line], x_label: str) -> Picture:
    """The same, a panel for each method: its curve and band before those of all others in grey."""
    rows = -(-len(lines) // COLUMNS)

    def draw(figure: Any, theme: Theme) -> None:
        from matplotlib.ticker import MaxNLocator

        first = None
        for number, line in enumerate(lines):
            axes = first = _axes(figure, theme, "", "", (rows, COLUMNS, number + 1), first)
            for other in lines:
                axes.plot(other.x, other.y, color=theme.ink, alpha=0.25, linewidth=0.7)
            color = _style(theme, number)["color"]
            _band(axes, line, color)
            axes.plot(line.x, line.y, color=color, linewidth=1.8)
            axes.set_title(_wrapped(line.label), fontsize=9, color=theme.ink)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.tick_params(labelleft=number % COLUMNS == 0, labelbottom=number + COLUMNS >= len(lines))
        figure.supxlabel(x_label, color=theme.ink, fontsize=10)
        figure.supylabel("accuracy, received (%)", color=theme.ink, fontsize=10)

    return _twice(draw, (9.6, 0.7 + rows * (1.55 + 0.15 * max(_lines([line.label for line in lines])))))


def _band(axes: Any, line: Line, color: str) -> None:
    if line.band is not None:
        low, high = np.subtract(line.y, line.band), np.add(line.y, line.band)
        axes.fill_between(line.x, np.maximum(low, 0), np.minimum(high, 100), color=color, alpha=0.14, linewidth=0)


def clients(labels: Sequence[str], accuracies: Sequence[Sequence[float]]) -> Picture:
    """A row a method, a dot a client (percent); a bar over the middle half of the clients, a stroke at the median."""

    def draw(figure: Any, theme: Theme) -> None:
        axes = _axes(figure, theme, "accuracy of a client, head_tuned (%)", "")
        for row, values in enumerate(accuracies):
            style = _style(theme, row)
            aside = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.42  # the golden ratio: no two alike nearby
            # as pixels: thousands of dots would make megabytes of SVG
            axes.scatter(values, row + 0.13 + aside, s=12, color=style["color"], alpha=0.55, lw=0, rasterized=True)
            if len(values):
                low, middle, high = np.percentile(values, (25, 50, 75))
                axes.plot([low, high], [row - 0.28] * 2, color=style["color"], linewidth=4, solid_capstyle="butt")
                axes.plot([middle], [row - 0.28], "|", color=theme.ink, markersize=9, markeredgewidth=2)
        axes.set_yticks(range(len(labels)), [_wrapped(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.grid(False, axis="y")

    return _twice(draw, (9.6, 1.1 + max(0.42, 0.18 * max(_lines(labels))) * len(labels)))


def intervals(
    labels: Sequence[str], benchmarks: Mapping[str, Sequence[Sequence[tuple[float, float]]]], x_label: str
) -> Picture:
    """A row a label, a panel a benchmark: for each label (mean, half its interval), any number, beside a line at 0."""

    def draw(figure: Any, theme: Theme) -> None:
        for column, (title, of_labels) in enumerate(benchmarks.items(), 1):
            axes = _axes(figure, theme, "", "", (1, len(benchmarks), column))
            axes.axvline(0, color=theme.ink, linewidth=1)
            for row, of in enumerate(of_labels):
                for mean, half in of:
                    axes.errorbar(mean, row, xerr=half, fmt="o", color=theme.colours[0], markersize=5, capsize=3)
            axes.set_title(_wrapped(title), fontsize=9, color=theme.ink)
            axes.set_yticks(range(len(labels)), [_wrapped(label) for label in labels])
            axes.set_ylim(len(labels) - 0.4, -0.6)
            axes.tick_params(labelleft=column == 1)
        figure.supxlabel(x_label, color=theme.ink, fontsize=10)

    return _twice(draw, (9.6, 1.2 + max(0.34, 0.18 * max(_lines(labels))) * len(labels)))


def exchanged(
    labels: Sequence[str], parts: Mapping[str, Sequence[float]], lines: Sequence[Line], target: float | None
) -> Picture:
    """Left, MB of every method (`labels`) in `parts`; right, accuracy against MB so far, and the target (percent)."""

    def draw(figure: Any, theme: Theme) -> None:
        axes = _axes(figure, theme, "MB sent and received by clients", "", (1, 2, 1))
        left = np.zeros(len(labels))
        for number, (name, of) in enumerate(parts.items()):
            axes.barh(range(len(labels)), of, left=left, color=theme.colours[number % len(theme.colours)], label=name)
            left += of
        axes.set_yticks(range(len(labels)), [_wrapped(label) for label in labels])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.legend(
            frameon=False, labelcolor=theme.ink, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2
        )
        axes = _axes(figure, theme, "MB sent and received so far", "accuracy, received (%)", (1, 2, 2))
        for number, line in enumerate(lines):
            axes.plot(line.x, line.y, **_style(theme, number), label=_wrapped(line.label))
        if target is not None:
            axes.axhline(target, color=theme.ink, linewidth=0.8, linestyle=":")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8)

    return _twice(draw, (9.6, 2.6 + 0.4 * len(labels)))


def _style(theme: Theme, number: int) -> dict[str, Any]:
    return {
        "color": theme.colours[number % len(theme.colours)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number // len(theme.colours) % len(LINES)],
        "markersize": 5,
        "linewidth": 1.7,
    }


def _axes(
    figure: Any, theme: Theme, x_label: str, y_label: str, place: tuple[int, int, int] = (1, 1, 1), like: Any = None
) -> Any:
    figure.set_facecolor(theme.paper)
    axes = figure.add_subplot(*place, facecolor=theme.paper, sharex=like, sharey=like)
    axes.set_xlabel(x_label, color=theme.ink)
    axes.set_ylabel(y_label, color=theme.ink)
    axes.tick_params(colors=theme.ink)
    axes.grid(True, color=theme.faint, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.ink)
    return axes


def _twice(draw: Callable[[Any, Theme], None], inches: tuple[float, float]) -> Picture:
    return Picture(_svg(draw, inches, LIGHT), _svg(draw, inches, DARK))


def _svg(draw: Callable[[Any, Theme], None], inches: tuple[float, float], theme: Theme) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    content = io.BytesIO()
    # no mathematics in names, and the same bytes of the same runs
    with rc_context({"text.parse_math": False, "svg.hashsalt": "report"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name in a script that the font has not
        figure = Figure(inches, dpi=200, layout="constrained")
        draw(figure, theme)
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _wrapped(label: str) -> str:
    """On lines short enough to stand beside axes, for what tells two labels apart may come last."""
    lines = textwrap.wrap(label, 30)
    return "\n".join(lines[:LABEL_LINES]) + ("…" if len(lines) > LABEL_LINES else "")


def _lines(labels: Sequence[str]) -> list[int]:
    return [1 + _wrapped(label).count("\n") for label in labels]
