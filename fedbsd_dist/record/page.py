"""A report as one HTML page that needs nothing else, and as Markdown. All text is escaped: it comes from runs."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedbsd_dist.record.charts import Picture

Rows = Sequence[Sequence[str]]
"""A table: its header, and rows as long."""

TEXT_CELL = '<td class="text">'
"""Of what does not fit on a line."""
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --soft: #57606a; --line: #d8dde3; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161b22; --ink: #e6edf3; --soft: #9ba5b0; --line: #3a424c; --band: #1e242c; }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 64rem; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, li, figcaption { max-width: 46rem; } p { margin: .4rem 0; } p, figcaption { color: var(--soft); }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { vertical-align: bottom; }
tbody th { font-weight: 500; white-space: normal; max-width: 18rem; }
tbody tr:nth-child(even) { background: var(--band); }
td.text { white-space: normal; overflow-wrap: anywhere; }
figure { margin: 1rem 0 1.75rem; } img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .875rem; } summary { cursor: pointer; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture, what it says to who cannot see it, and what to know about it."""

    picture: Picture
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order."""

    title: str
    notes: Sequence[str] = ()
    table: Rows = ()
    figures: Sequence[Figure] = field(default=())
    folded: bool = False
    """Shown when asked for."""


def as_html(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page. Pictures are data URIs, one of a light and one of a dark page; there is no script and no link."""
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # whatever a name in a run should manage to smuggle in, the browser does not run or fetch it
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    body = [f"<h1>{_text(title)}</h1>", *_paragraphs(lead), *map(_section, sections)]
    return head + "\n".join(body) + "\n</main>\n</body>\n</html>\n"


def _section(section: Section) -> str:
    inner = [*_paragraphs(section.notes), *([_table(section)] if section.table else []), *map(_figure, section.figures)]
    if section.folded:
        inner = ["<details>", f"<summary>{len(section.table) - 1} of them</summary>", *inner, "</details>"]
    return "\n".join(["<section>", f"<h2>{_text(section.title)}</h2>", *inner, "</section>"])


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [f"<p>{_text(text)}</p>" for text in texts]


def _table(section: Section) -> str:
    head, *rows = section.table
    lines = ["<tr>" + "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head) + "</tr>"]
    lines += ["</thead>", "<tbody>"]
    for first, *others in rows:
        cells = "".join(f"{TEXT_CELL if len(cell) > 60 else '<td>'}{_text(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{_text(first)}</th>{cells}</tr>')
    return "\n".join(
        [
            f'<div class="wide" role="region" tabindex="0" aria-label="{_text(section.title)}">',
            *("<table>", "<thead>", *lines, "</tbody>", "</table>", "</div>"),
        ]
    )


def _figure(figure: Figure) -> str:
    light, dark = (_uri(svg) for svg in (figure.picture.light, figure.picture.dark))
    return (
        f'<figure>\n<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{_text(figure.alt)}"></picture>\n'
        f"<figcaption>{_text(figure.caption)}</figcaption>\n</figure>"
    )


def _uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _text(text: str) -> str:
    """The name of a file that is not UTF-8 has surrogates, which cannot be encoded."""
    return html.escape(text.encode(errors="backslashreplace").decode())


def pictures(sections: Sequence[Section]) -> dict[str, bytes]:
    """Name of a file -> SVG of every figure: learning-curves-1-light.svg."""
    return {
        f"{re.sub(r'[^a-z0-9]+', '-', section.title.lower()).strip('-')}-{number}-{shade}.svg": svg
        for section in sections
        for number, figure in enumerate(section.figures, 1)
        for shade, svg in (("light", figure.picture.light), ("dark", figure.picture.dark))
    }


def as_markdown(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The same without pictures, and without what only speaks of them."""
    parts = [f"# {_plain(title)}", *map(_plain, lead)]
    for section in sections:
        if section.figures and not section.table:
            continue
        parts += [f"## {_plain(section.title)}", *map(_plain, section.notes)]
        if section.table:
            parts.append(_markdown_table(section.table))
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Rows) -> str:
    lines = ["| " + " | ".join(map(_plain, row)) + " |" for row in rows]
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]])


def _plain(text: str) -> str:
    """What means something to Markdown is escaped; on one line."""
    text = " ".join(_text(text).replace("&#x27;", "'").replace("&quot;", '"').split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]|#" else sign for sign in text)
