"""What a run's rounds would cost over other links: `python -m fedbsd_dist.links RUN`."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbsd_dist.command import flags, start
from fedbsd_dist.errors import UserError, did_you_mean
from fedbsd_dist.record import forecast
from fedbsd_dist.record.console import table
from fedbsd_dist.record.files import write_atomically
from fedbsd_dist.record.reading import Damaged
from fedbsd_dist.topologies import FORMULAS, WINDOW, Link
from fedbsd_dist.units import duration, size

MARKDOWN, PICTURE = "links.md", "links.png"
COLUMNS = ("client", "latency_ms", "up_mbps", "down_mbps")
MEGABIT = 1e6 / 8
"""Bytes."""
ETHERNET = 1448 / 1538
"""Payload in a full frame of TCP over Ethernet: 1448 bytes of data in 1500 of a packet (IPv4, TCP with timestamps), and
38 of preamble, header, checksum and gap around that (IEEE 802.3)."""
INTERNET = 1448 / 1500
"""The same where a rate is that of IP packets."""


@dataclass(frozen=True)
class Preset:
    """Links of a kind."""

    link: Link
    source: str
    """Where the bandwidths are from. Latencies are orders of magnitude, of ours."""


def _preset(milliseconds: float, up: float, down: float, payload: float, source: str, window: float = WINDOW) -> Preset:
    """`up`, `down`: Mbit/s, of which `payload` is what programs get."""
    up, down = (rate * MEGABIT * payload for rate in (up, down))
    return Preset(Link(latency=milliseconds / 1000, up=up, down=down, window=window), source)


PRESETS = {
    "nvlink": _preset(
        0.001, 3_600_000, 3_600_000, 1, "NVLink 4 of an H100, 900 GB/s, half of it each way (NVIDIA)", window=math.inf
    ),
    "100gbe": _preset(0.01, 100_000, 100_000, ETHERNET, "100 Gbit/s Ethernet (IEEE 802.3ba)"),
    "10gbe": _preset(0.02, 10_000, 10_000, ETHERNET, "10 Gbit/s Ethernet (IEEE 802.3ae)"),
    "broadband": _preset(10, 20, 100, INTERNET, "20 Mbit/s up, 100 down: the FCC's benchmark of March 2024"),
    "lte": _preset(30, 5, 10, INTERNET, "5 Mbit/s up, 10 down: peak of an LTE device of category 1 (3GPP TS 36.306)"),
}

USAGE = f"""usage: python -m fedbsd_dist.links RUN [--links=KIND | --clients=FILE.csv] [--server=KIND] [--out=FOLDER]

What a round of a finished run would cost, in seconds of communication, for 1 to 1,000,000 clients on links that are not
here, by ring, tree, hierarchical and star; and the same for FedAvg's full model. Bytes are those of the run's ledger.

  --links    of every client: {", ".join(PRESETS)}; broadband, unless given
  --clients  or a table of links: {",".join(COLUMNS)}, a line a client. Latency is one way, to the middle of the
             network; bandwidths are what programs get, in Mbit/s. More clients, or fewer, are drawn from these.
  --server   of the server, and of edge servers: 10gbe, unless given
  --out      folder to write to: the run's, unless given

Written: {MARKDOWN}, the table with its formulas, and {PICTURE}.

python -m fedbsd_dist.links runs/mine
python -m fedbsd_dist.links runs/mine --clients=phones.csv --server=100gbe --out=look"""


def main() -> None:
    """Exit code 0, or 2 for what the user can mend."""
    start(USAGE, links)


def links(arguments: Sequence[str]) -> str:
    """Write the files; what to print."""
    given, rest = flags(arguments, ("links", "clients", "server", "out"))
    if len(rest) != 1:
        raise UserError("Name one run directory. --help says more.")
    run = Path(rest[0])
    if {"links", "clients"} <= given.keys():
        raise UserError("--links and --clients contradict each other. Choose one.")
    if "clients" in given:
        path = Path(given["clients"])
        of_clients = read_clients(path)
        about = f"{path}: {len(of_clients)} clients"
    else:
        kind = given.get("links", "broadband")
        of_clients, about = [_named("links", kind).link], f"{kind}: {PRESETS[kind].source}"
    kind = given.get("server", "10gbe")
    server = _named("server", kind)
    try:
        facts = forecast.read(run)
    except Damaged as damage:
        raise UserError(f"{run}: is no finished run to read ({damage}). Name the directory of one.") from None
    rows = forecast.table(facts, of_clients, server.link)
    lead = [
        f"Of each client in a round of {facts.method}: {size(facts.traffic.upload)} up, {size(facts.traffic.download)} "
        f"down (full model, FedAvg: {size(facts.fedavg.upload)}, {size(facts.fedavg.download)}).",
        f"Local learning of a client, the mean on the run's machine: {duration(facts.compute)}; comes on top.",
        f"Links of clients: {about}.",
        f"Link of the server: {kind}: {server.source}.",
    ]
    title = "Seconds of communication in one round"
    image = forecast.picture(facts, of_clients, server.link, f"{facts.method}. Clients: {about}. Server: {kind}")
    contents = {MARKDOWN: _markdown(title, lead, rows).encode(), PICTURE: image}
    out = Path(given.get("out", run))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise UserError(f"{out}: cannot write files there ({error.strerror or error}). Choose --out=FOLDER.") from None
    written = ", ".join(str(out / name) for name in contents)
    return "\n".join([*lead, "", title, table(rows), "", FORMULAS, "", f"written: {written}"])


def read_clients(path: Path) -> list[Link]:
    """A table of clients' links. Raises UserError, with the line, for one that has gaps or makes no sense."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--clients={path}: cannot be read as a table ({why}). Give a CSV file.") from None
    head = [name.strip() for name in lines[0]] if lines else []
    if unknown := [name for name in head if name not in COLUMNS]:
        raise UserError(f"{path}, line 1: unknown column {unknown[0]!r}. There are {', '.join(COLUMNS)}.")
    if sorted(head) != sorted(COLUMNS):
        raise UserError(f"{path}, line 1: should be {','.join(COLUMNS)}, each once and in any order.")
    found: dict[str, Link] = {}
    for number, cells in enumerate(lines[1:], 2):
        where = f"{path}, line {number}"
        if len(cells) != len(COLUMNS):
            raise UserError(f"{where}: has {len(cells)} cells where the first line has {len(COLUMNS)}.")
        row = dict(zip(head, map(str.strip, cells), strict=True))
        if not row["client"]:
            raise UserError(f"{where}: names no client.")
        if row["client"] in found:
            raise UserError(f"{where}: client {row['client']} is there twice. Give each client one line.")
        latency, up, down = (_number(where, name, row[name]) for name in COLUMNS[1:])
        found[row["client"]] = Link(latency=latency / 1000, up=up * MEGABIT, down=down * MEGABIT)
    if not found:
        raise UserError(f"{path}: has no client. Give a line for each, below the line of columns.")
    return list(found.values())


def _number(where: str, name: str, text: str) -> float:
    """A bandwidth is above 0, for with none nothing would ever arrive."""
    latency = name == "latency_ms"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not latency):
        raise UserError(f"{where}: {name}={text}: should be a number {'of 0 or more' if latency else 'above 0'}.")
    return value


def _named(flag: str, kind: str) -> Preset:
    if kind not in PRESETS:
        raise UserError(f"--{flag}={kind}: no such links. There are {', '.join(PRESETS)}.{did_you_mean(kind, PRESETS)}")
    return PRESETS[kind]


def _markdown(title: str, lead: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    told = "\n".join(f"- {line}" for line in lead)
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# {title}\n\n{told}\n\n{grid}\n\n![the same as curves]({PICTURE})\n\n```\n{FORMULAS}\n```\n"


if __name__ == "__main__":
    main()
