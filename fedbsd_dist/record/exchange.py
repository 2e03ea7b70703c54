"""What a finished run exchanged and how long it took, federated and between ranks; read back from its directory."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

from pydantic import Field

from fedbsd_dist.federation import STATE_DIGEST
from fedbsd_dist.record import curves, reading
from fedbsd_dist.record.curves import History, Seconds
from fedbsd_dist.record.directory import LEDGER, METRICS, SUMMARY, TRACES, TRAFFIC
from fedbsd_dist.record.reading import Count, Damaged, Part
from fedbsd_dist.record.traces import collectives
from fedbsd_dist.record.traffic import file_name

AGGREGATE, EVALUATION = "aggregate", "evaluation"
"""Purposes of collectives; of those that carry shared groups the beginning."""
SCALARS = "scalars"


class _Bytes(reading.Bytes):
    payload: Count
    wire: Count


class _Seconds(Part):
    total: Seconds
    communication: Seconds


class _Line(Part):
    round: Count
    bytes: _Bytes
    seconds: _Seconds


class _Entry(Part):
    round: Count
    purpose: str
    elements: Annotated[int, Field(gt=0, le=2**62)]
    elements_by_group: dict[str, Count]
    payload_bytes: Count
    wire_bytes: Count
    seconds: Seconds
    collective: str = "all-reduce"

    def nccl_size(self, num_ranks: int) -> int:
        """Bytes by which nccl-tests measure: of an all-gather those that a rank has in the end."""
        return self.payload_bytes * (num_ranks if self.collective == "all-gather" else 1)


class _Summary(Part):
    world_size: Annotated[int, Field(ge=1, le=10**6)]
    backend: str
    parameters: dict[str, Count]


class _Traffic(Part):
    round: Count
    clients: Count
    exposed: Seconds
    overlapped: Seconds
    sent: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a run."""

    number: int
    federated_up: int
    """Bytes."""
    federated_down: int
    payload: int
    """Bytes handed to collectives by each rank."""
    payload_by_group: dict[str, float]
    wire: int
    """Bytes sent by all ranks, by the ring model."""
    counted: int | None
    """The same by the interfaces' counters of all hosts; None where they cannot be read."""
    seconds: float
    """In collectives."""
    total_seconds: float
    """Of the round."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """The collectives of one purpose; medians of them."""

    purpose: str
    calls: int
    payload: int
    """Bytes of all together."""
    seconds: float
    algorithm_bandwidth: float | None
    """Bytes a second, as nccl-tests define it; of the seconds exposed, so that one beside a test looks faster."""
    bus_bandwidth: float | None
    """Bytes that each rank sends a second: of an all-reduce, algorithm bandwidth times 2(n-1)/n."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Collectives of the traced rounds of all ranks: as the profiler saw them, and as the ledger has them."""

    calls: int
    elements: int
    ledger_calls: int
    ledger_elements: int


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One run."""

    num_ranks: int
    backend: str
    parameters: dict[str, int]
    """Of the model, by group."""
    rounds: list[Round]
    collectives: list[Collective]
    interfaces: dict[str, int]
    """Bytes that the interfaces counted in the rounds, summed over hosts."""
    exposed: float | None
    """Seconds in collectives with nothing else to do, and `overlapped` with: mean over the ranks that host clients."""
    overlapped: float | None
    """None where nothing was written down, or NCCL does not say."""
    traced: Traced | None
    history: History

    @cached_property
    def federated(self) -> int:
        """Bytes up and down, all rounds."""
        return self.up + self.down

    @cached_property
    def up(self) -> int:
        """Bytes that clients sent, all rounds."""
        return sum(line.federated_up for line in self.rounds)

    @cached_property
    def down(self) -> int:
        """Bytes that clients received, all rounds."""
        return sum(line.federated_down for line in self.rounds)

    @cached_property
    def payload(self) -> int:
        """Bytes, all rounds."""
        return sum(line.payload for line in self.rounds)

    @cached_property
    def wire(self) -> int:
        """Bytes by the ring model, all rounds."""
        return sum(line.wire for line in self.rounds)

    @cached_property
    def counted(self) -> int | None:
        """Bytes by the counters, all rounds; None where one was not counted."""
        counts = [line.counted for line in self.rounds if line.counted is not None]
        return sum(counts) if len(counts) == len(self.rounds) else None

    @cached_property
    def beyond(self) -> float | None:
        """Counted bytes beside those of the ring model, a fraction of them."""
        return (self.counted - self.wire) / self.wire if self.counted is not None and self.wire else None

    @cached_property
    def seconds(self) -> float:
        """In collectives, all rounds."""
        return sum(line.seconds for line in self.rounds)

    @cached_property
    def share(self) -> float:
        """Of the rounds' time, a fraction."""
        total = sum(line.total_seconds for line in self.rounds)
        return self.seconds / total if total else 0.0

    @cached_property
    def of_scalars(self) -> float:
        """Fraction of the payload that is no model's: weights, metrics, clocks, tests."""
        scalars = sum(line.payload_by_group.get(SCALARS, 0.0) for line in self.rounds)
        return scalars / self.payload if self.payload else 0.0

    @property
    def main(self) -> Collective | None:
        """Those that carry the shared groups, or with a codec most of them."""
        carrying = [of for of in self.collectives if of.purpose.startswith(AGGREGATE)]
        return max(carrying, key=lambda of: of.payload, default=None)

    @property
    def tests(self) -> Collective | None:
        """Those that carry the numbers of evaluations."""
        return next((of for of in self.collectives if of.purpose == EVALUATION), None)


def read(path: Path) -> Exchange:
    """Of a run directory. Raises reading.Damaged."""
    summary = reading.parse(_Summary, path / SUMMARY)
    # but for what comes after the rounds
    entries = [entry for entry in _lines(_Entry, path / LEDGER) if entry.purpose != STATE_DIGEST]
    traffic = _traffic(path, summary.world_size)
    hosting = [lines for lines in traffic if any(line.clients for line in lines)]
    interfaces: Counter[str] = Counter()
    for line in itertools.chain.from_iterable(traffic):
        interfaces.update(line.sent)
    return Exchange(
        num_ranks=summary.world_size,
        backend=summary.backend,
        parameters=summary.parameters,
        rounds=_rounds(_lines(_Line, path / METRICS), entries, traffic),
        collectives=_collectives(entries, summary.world_size),
        interfaces=dict(interfaces),
        exposed=_mean([sum(line.exposed for line in lines) for lines in hosting]),
        overlapped=_mean([sum(line.overlapped for line in lines) for lines in hosting if summary.backend != "nccl"]),
        traced=_traced(path / TRACES, entries),
        history=curves.read(path),
    )


def _lines(kind: type[reading.Kind], path: Path) -> list[reading.Kind]:
    return [reading.parse(kind, path, line) for line in reading.content(path).splitlines()]


def _traffic(path: Path, num_ranks: int) -> list[list[_Traffic]]:
    """Of every rank; none where the run wrote none down."""
    files = [path / TRAFFIC / file_name(rank) for rank in range(num_ranks)]
    return [_lines(_Traffic, file) for file in files if file.exists()]


def _rounds(lines: Sequence[_Line], entries: Sequence[_Entry], traffic: Sequence[Sequence[_Traffic]]) -> list[Round]:
    counted: dict[int, int] = {}
    for found in itertools.chain.from_iterable(traffic):
        if found.sent:
            counted[found.round] = counted.get(found.round, 0) + sum(found.sent.values())
    rounds = []
    for line in lines:
        by_group: dict[str, float] = {}
        for entry in entries:
            if entry.round == line.round:
                for name, elements in entry.elements_by_group.items():
                    part = entry.payload_bytes * elements / entry.elements
                    by_group[name] = by_group.get(name, 0.0) + part
        rounds.append(
            Round(
                number=line.round,
                federated_up=line.bytes.federated_up,
                federated_down=line.bytes.federated_down,
                payload=line.bytes.payload,
                payload_by_group=by_group,
                wire=line.bytes.wire,
                counted=counted.get(line.round),
                seconds=line.seconds.communication,
                total_seconds=line.seconds.total,
            )
        )
    return rounds


def _collectives(entries: Sequence[_Entry], num_ranks: int) -> list[Collective]:
    found = []
    for purpose in dict.fromkeys(entry.purpose for entry in entries):
        of = [entry for entry in entries if entry.purpose == purpose]
        timed = [entry for entry in of if entry.seconds]  # of clocks' resolution
        found.append(
            Collective(
                purpose=purpose,
                calls=len(of),
                payload=sum(entry.payload_bytes for entry in of),
                seconds=median(entry.seconds for entry in of),
                algorithm_bandwidth=_median([entry.nccl_size(num_ranks) / entry.seconds for entry in timed]),
                bus_bandwidth=_median([entry.wire_bytes / num_ranks / entry.seconds for entry in timed]),
            )
        )
    return found


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _traced(folder: Path, entries: Sequence[_Entry]) -> Traced | None:
    """None where no trace says how much crossed."""
    try:
        found = {path: collectives(path) for path in sorted(folder.glob("round-*.json.gz"))}
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise Damaged(f"{folder.name}: not as a run writes it: {type(error).__name__} {error}") from None
    seen = {path: of for path, of in found.items() if of is not None}
    rounds = [int(path.name.split("-")[1]) for path in seen]
    of_ledger = [[entry for entry in entries if entry.round == number] for number in rounds]
    if not seen:
        return None
    return Traced(
        calls=sum(len(of) for of in seen.values()),
        elements=sum(sum(of) for of in seen.values()),
        ledger_calls=sum(map(len, of_ledger)),
        ledger_elements=sum(entry.elements for of in of_ledger for entry in of),
    )
