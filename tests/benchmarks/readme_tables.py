"""Bring the tables of the READMEs up to the records that are kept.

    python -m tests.benchmarks.readme_tables [PART OF A COMMAND]

After every `python -m fedbsd_dist.report configs/results/...` in README.md and configs/results/README.md, up to the
next heading or block, each table gives way to that of the command's report with the same head, if there is one, which
has most cells in common with it: look at the difference. With PART, only after commands that it is a part of.
"""

import glob
import re
import shlex
import sys
import tempfile
from pathlib import Path

from fedbsd_dist.record import charts
from fedbsd_dist.report import report

READMES = (Path("README.md"), Path("configs/results/README.md"))
COMMAND = r"```sh\npython -m fedbsd_dist\.report (configs/results/[^\n]*)\n```\n(.*?)(?=\n```|\n#|\n\*\*|\Z)"
TABLE = r"(?:^\|[^\n]*\n)+"


def renewed(arguments: str, text: str) -> str:
    """`text`, which follows the command, with the tables that it makes now."""
    with tempfile.TemporaryDirectory() as folder:
        report([*words(arguments), f"--out={folder}"])
        made = re.findall(TABLE, Path(folder, "report.md").read_text() + "\n", re.M)

    def nearest(old: re.Match[str]) -> str:
        head = old[0].partition("\n")[0]
        alike = [table for table in made if table.startswith(head + "\n")] or made
        return max(alike, key=lambda table: len(cells(table) & cells(old[0])))

    return re.sub(TABLE, nearest, text + "\n", flags=re.M)[:-1]


def words(arguments: str) -> list[str]:
    """As a shell makes them."""
    return [word for part in shlex.split(arguments) for word in (sorted(glob.glob(part)) or [part])]


def cells(table: str) -> set[str]:
    return {cell.strip() for cell in re.split(r"[|\n]", table)}


def main(part: str) -> None:
    charts._svg = lambda *drawing: b""  # takes long, and no table needs it
    for readme in READMES:
        content = readme.read_text()
        for arguments, text in re.findall(COMMAND, content, re.S):
            if part in arguments:
                content = content.replace(text, renewed(arguments, text), 1)
        readme.write_text(content)


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
