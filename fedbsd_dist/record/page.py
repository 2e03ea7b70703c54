"""The report on runs: one page that needs nothing else, and its tables as Markdown."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedbsd_dist import dialect
from fedbsd_dist.record import charts, compare, costs
from fedbsd_dist.record.compare import Rows
from fedbsd_dist.record.runs import Group, differing

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --faint: #666; --line: #ddd; --mark: #f1f5fb; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e6e6e6; --faint: #a0a0a0; --line: #3a3d42; --mark: #20262e; }
}
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { color: var(--faint); max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, th.words, td.words { text-align: left; }
td.words { white-space: normal; }
tr.baseline { background: var(--mark); font-weight: 600; }
img { max-width: 100%; height: auto; }
pre { overflow-x: auto; }
"""


WORDS = ("crosses", "settings")
"""Columns of text."""


@dataclass(frozen=True)
class Section:
    """A heading, what there is to know, a table or a picture."""

    title: str
    words: str
    rows: Rows = field(default_factory=list)
    picture: charts.Draw | None = None
    alt: str = ""


def sections(groups: Sequence[Group], target: float) -> list[Section]:
    """What the report says of groups that are ranked already."""
    found = [
        Section("Accuracy by method and stage", compare.ACCURACIES, compare.accuracies(groups)),
        Section("", "", picture=charts.by_stage, alt="accuracy of every method at every stage, as in the table"),
    ]
    if len(rows := compare.differences(groups)) > 1:
        found.append(Section(f"Differences from {compare.BASELINE}", compare.DIFFERENCES, rows))
    if len(rows := compare.selections(groups)) > 1:
        found.append(Section("Last, mean of the last rounds, best", SELECTION, rows))
    found += [
        Section("Learning curves", CURVES, picture=charts.curves, alt="accuracy against rounds, bytes and seconds"),
        Section("Spread over clients", SPREAD, picture=charts.spread, alt="accuracies of all clients by method"),
        Section(f"To {100 * target:.0f} %", TARGET, costs.to_target(groups, target)),
        Section("What crosses", CROSSING, costs.crossing(groups)),
        Section("Settings that differ", "Those that all runs share are below.", _settings(groups)),
    ]
    return found


SELECTION = (
    "Accuracy received in percent. The best round is the one with the highest mean validation accuracy; test samples "
    "have no part in the choice."
)
CURVES = (
    "Accuracy received (the newest shared state with each client's own private state), mean over clients and seeds; "
    "a band is the standard deviation over seeds. Methods that become personal only by a step at test time are not "
    "shown at their best here."
)
SPREAD = f"Every client of every seed after {compare.BY}, a dot each; the box holds the middle half of them."
TARGET = (
    "Rounds and federated bytes, of all clients together and both ways, until the mean accuracy received first "
    "reached the target; seen at the rounds that were evaluated. Means over the seeds that reached it."
)
CROSSING = (
    "By the ledger of a real run: what one participating client sends in a round, float32; as much comes back. "
    "Scalars, such as weights and losses, apart."
)


def as_html(groups: Sequence[Group], target: float) -> str:
    """A whole page; text of the runs is escaped, pictures are in it."""
    parts = []
    for section in sections(groups, target):
        parts += [f"<h2>{html.escape(section.title)}</h2>"] if section.title else []
        parts += [f"<p>{html.escape(section.words)}</p>"] if section.words else []
        parts += [_table(section.rows, groups)] if section.rows else []
        parts += [_picture(section, groups)] if section.picture else []
    common = html.escape(_common(groups))
    runs = sum(len(group.runs) for group in groups)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Comparison of {runs} runs</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n'
        f"<h1>Comparison of {runs} runs of {len(groups)} methods or settings</h1>\n"
        + "\n".join(parts)
        + f"\n<details><summary>Settings that all share</summary><pre>{common}</pre></details>\n</html>\n"
    )


def as_markdown(groups: Sequence[Group], target: float) -> str:
    """The tables."""
    parts = []
    for section in sections(groups, target):
        if section.rows:
            heading, *rows = section.rows
            lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
            parts.append(f"## {section.title}\n\n{section.words}\n\n" + "\n".join(map(_markdown_row, lines)))
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _table(rows: Rows, groups: Sequence[Group]) -> str:
    baseline = {group.label for group in groups if group.method == compare.BASELINE}
    heading, *body = rows
    titles = (
        f'<th class="words">{cell}</th>' if cell in WORDS else f"<th>{html.escape(cell)}</th>" for cell in heading
    )
    lines = [f"<tr>{''.join(titles)}</tr>"]
    lines += [_row("td", heading, row, "baseline" if row[0] in baseline else "") for row in body]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _row(tag: str, heading: Sequence[str], cells: Sequence[str], mark: str = "") -> str:
    written = (
        f'<{tag} class="{"words" if title in WORDS else ""}">{html.escape(cell)}</{tag}>'
        for title, cell in zip(heading, cells, strict=True)
    )
    return f'<tr class="{mark}">{"".join(written)}</tr>'


def _picture(section: Section, groups: Sequence[Group]) -> str:
    assert section.picture
    light, dark = (_data(charts.svg(section.picture, groups, scheme)) for scheme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(section.alt)}"></picture>'
    )


def _data(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _settings(groups: Sequence[Group]) -> Rows:
    """A row a group: what is not the same for all, its method's own options too."""
    common = _shared(groups)
    rows = [["", "settings"]]
    for group in groups:
        own = {name: value for name, value in group.first.settings.items() if name not in common and name != "seed"}
        own |= {"seed": list(group.runs)}
        words = (f"{name}={dialect.inline(value)}" for name, value in own.items())
        rows.append([group.label, ", ".join(words)])
    return rows


def _shared(groups: Sequence[Group]) -> dict[str, Any]:
    runs = [group.first for group in groups]
    apart = {*differing(runs), "seed"}
    return {
        name: value
        for name, value in runs[0].settings.items()
        if name not in apart and all(name in run.settings for run in runs)
    }


def _common(groups: Sequence[Group]) -> str:
    return dialect.write(_shared(groups))
