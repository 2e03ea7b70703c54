"""What a run's rounds would cost on other links and with more clients, from its record: as table and as picture."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field

from fedbsd_dist import dialect
from fedbsd_dist.record.directory import CONFIG, LEDGER, METRICS, SUMMARY
from fedbsd_dist.record.reading import Count, Damaged, Part, content, parse
from fedbsd_dist.record.spending import LOCAL
from fedbsd_dist.topologies import TOPOLOGIES, Link, Traffic, slowest
from fedbsd_dist.units import duration

COUNTS = tuple(10**power for power in range(7))
"""Numbers of clients, up to a million."""
POINTS = 61
"""Of a curve."""
DPI = 150


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a client does in a round of a run."""

    method: str
    traffic: Traffic
    """Of the method, as the run's wire represents it."""
    fedavg: Traffic
    """Of FedAvg's full model."""
    compute: float
    """Seconds of local learning, the mean over clients, on the run's machine."""


class _Bytes(Part):
    federated_up: Count
    federated_down: Count


class _Summary(Part):
    method: str
    world_size: Count
    fedavg_bytes: Count
    bytes: _Bytes


class _Entry(Part):
    purpose: str
    dtype: str
    elements: Annotated[int, Field(ge=1)]
    elements_by_group: dict[str, Count]
    payload_bytes: Count


class _Faults(Part):
    unavailable: list[int]
    late: list[int]


class _Seconds(Part):
    phases: dict[str, float]


class _Round(Part):
    cohort: Count
    faults: _Faults
    seconds: _Seconds


def read(run: Path) -> Facts:
    """Of a finished run. Raises Damaged."""
    summary = parse(_Summary, run / SUMMARY)
    entries = [parse(_Entry, run / LEDGER, line) for line in content(run / LEDGER).splitlines()]
    aggregates = [entry for entry in entries if entry.purpose == "aggregate"]
    rounds = [parse(_Round, run / METRICS, line) for line in content(run / METRICS).splitlines()]
    received = [line.cohort - len(line.faults.unavailable) for line in rounds]
    learned = [of - len(line.faults.late) for of, line in zip(received, rounds, strict=True)]
    if not aggregates or not sum(learned):
        raise Damaged(f"{LEDGER}: no client has uploaded anything")
    parts = [1 - entry.elements_by_group.get("scalars", 0) / entry.elements for entry in aggregates]
    sent = float(np.mean([entry.payload_bytes * part for entry, part in zip(aggregates, parts, strict=True)]))
    model = summary.fedavg_bytes / (sum(received) + sum(learned))
    traffic = Traffic(upload=sent, download=sent)
    if _config(run, "wire", "codec") == "none":
        model *= 2 if aggregates[-1].dtype == "int64" else 1  # exact sums are of twice the bytes, FedAvg's too
    else:  # what a client sends is not what ranks add up, nor what comes back
        of_run = summary.bytes
        traffic = Traffic(upload=of_run.federated_up / sum(learned), download=of_run.federated_down / sum(received))
    local = sum(line.seconds.phases.get(name, 0.0) for line in rounds for name in LOCAL)
    return Facts(
        method=summary.method,
        traffic=traffic,
        fedavg=Traffic(upload=model, download=model),
        compute=local * _hosting(run, summary.world_size) / sum(learned),
    )


def _hosting(run: Path, ranks: int) -> int:
    """Number of ranks that have clients, over which a record's phases are the mean."""
    return ranks if _config(run, "server", "trains") or ranks == 1 else ranks - 1


def _config(run: Path, section: str, key: str) -> Any:
    try:
        return dialect.parse(content(run / CONFIG).decode())[section][key]
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        raise Damaged(f"{CONFIG}: no configuration of a run") from None


def seconds(facts: Facts, links: Sequence[Link], server: Link, num_clients: int) -> dict[str, tuple[float, float]]:
    """Topology -> seconds of communication in one round of the method, and of FedAvg's full model.

    `links`: one, which all clients have, or many, of which the clients are drawn.
    """
    client = slowest(links, num_clients)
    return {
        name: (
            topology(num_clients, facts.traffic, client, server),
            topology(num_clients, facts.fedavg, client, server),
        )
        for name, topology in TOPOLOGIES.items()
    }


def table(facts: Facts, links: Sequence[Link], server: Link) -> list[list[str]]:
    """Its head, then a row for each of COUNTS: every topology's time with the method, and with FedAvg."""
    head = ["clients", *(f"{name}, {of}" for name in TOPOLOGIES for of in (facts.method, "full model"))]
    rows = [head]
    for count in COUNTS:
        of = seconds(facts, links, server, count)
        rows.append([f"{count:,}", *(_said(time) for pair in of.values() for time in pair)])
    return rows


def picture(facts: Facts, links: Sequence[Link], server: Link, title: str) -> bytes:
    """The same as curves, PNG: the method's drawn through, FedAvg's dashed; a dotted line is local learning."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    counts = np.unique(np.geomspace(COUNTS[0], COUNTS[-1], POINTS).round().astype(int)).tolist()
    curves = [seconds(facts, links, server, count) for count in counts]
    content = io.BytesIO()
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name in a script that the font has not
        figure = Figure((9.6, 5.4), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        for number, name in enumerate(TOPOLOGIES):
            for which, (style, whose) in enumerate((("-", facts.method), ("--", "full model"))):
                # what takes no time has no place on a logarithmic scale
                drawn = [of[name][which] or np.nan for of in curves]
                axes.plot(counts, drawn, style, color=f"C{number}", label=f"{name}, {whose}")
        if facts.compute:
            axes.axhline(facts.compute, color="0.4", linestyle=":", label="local learning of a client")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("clients in a round")
        axes.set_ylabel("seconds of communication in a round")
        figure.suptitle(title, fontsize=10, wrap=True)
        axes.grid(True, color="0.9")
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
        figure.savefig(content, format="png")
    return content.getvalue()


def _said(seconds: float) -> str:
    if not seconds:
        return "0"
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} µs"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else duration(seconds)
