"""A run over its rounds, and groups of runs: learning curves, the way to a target, bytes of an upload, clients."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

from pydantic import Field

from fedbsd_dist.record import reading
from fedbsd_dist.record.directory import CLIENTS, LEDGER, METRICS, SUMMARY
from fedbsd_dist.record.grouping import FAIR, Group, Spread, spread
from fedbsd_dist.record.reading import Bytes, Count, Damaged, Mean, Part

RECEIVED = "received"
"""The stage that is measured during a run."""
FLOAT = 4
"""Bytes of a parameter."""
HEAD = "head"
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Axis = Literal["round", "bytes", "seconds"]


class _Seconds(Part):
    training: Seconds
    communication: Seconds


class _Line(Part):
    round: Count
    accuracy: dict[str, Mean]
    validation: dict[str, Mean] = Field({})
    bytes: Bytes
    seconds: _Seconds


class _Entry(Part):
    round: Count
    purpose: str
    elements_by_group: dict[str, Count]


class _Uploads(Part):
    upload_bytes: dict[str, Count] | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """An evaluation, and all that it took to get there."""

    round: float
    bytes: float
    """Sent and received by clients so far."""
    seconds: float
    """Training and communication so far."""
    received: float


@dataclass(frozen=True, kw_only=True)
class History:
    """One run over its rounds."""

    points: list[Point]
    clients: dict[str, dict[int, float]]
    """Of each stage, in its last evaluation: client -> accuracy."""
    upload: dict[str, float]
    """Bytes of each group that a client sends in a round."""
    validation: dict[str, float]
    """Of each stage: accuracy on validation samples after the last round; empty where none were held out."""


@dataclass(frozen=True)
class Reached:
    """The way of a group's seeds to a target."""

    evaluations: int
    """Of the seed that has fewest."""
    num_seeds: int
    points: list[Point]
    """Where the seeds that reached it first did."""


def validation(history: History) -> float:
    """At the better of the stages, for a method is chosen for where its personal models are: an averaged model is
    nobody's before it has learned once more. There are validation samples.
    """
    return max(history.validation.values())


def read(path: Path) -> History:
    """Of a run directory. Raises reading.Damaged."""
    try:
        lines = [reading.parse(_Line, path / METRICS, text) for text in reading.content(path / METRICS).splitlines()]
        return History(
            points=_points(lines),
            clients=_clients(path / CLIENTS),
            upload=_upload(path),
            validation={stage: of.mean for stage, of in lines[-1].validation.items()} if lines else {},
        )
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"not as a run writes it: {type(error).__name__} {error}") from None


def _points(lines: Sequence[_Line]) -> list[Point]:
    found = []
    sent, seconds = 0, 0.0
    for line in lines:
        sent += line.bytes.federated_up + line.bytes.federated_down
        seconds += line.seconds.training + line.seconds.communication
        if RECEIVED in line.accuracy:
            accuracy = line.accuracy[RECEIVED].mean
            found.append(Point(round=line.round, bytes=sent, seconds=seconds, received=accuracy))
    return found


def _clients(path: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, dict[int, float]]] = {}
    for row in csv.DictReader(reading.content(path).decode().splitlines()):
        of_stage = found.setdefault(row["stage"], {})
        of_stage.setdefault(int(row["round"]), {})[int(row["client"])] = float(row["accuracy"])
    last = {stage: rounds[max(rounds)] for stage, rounds in found.items()}
    if not all(0 <= accuracy <= 1 for of in last.values() for accuracy in of.values()):
        raise Damaged(f"{path.name}: an accuracy is no fraction")
    return last


def _upload(path: Path) -> dict[str, float]:
    said = reading.parse(_Uploads, path / SUMMARY).upload_bytes
    return _uncoded(path / LEDGER) if said is None else {**said}


def _uncoded(path: Path) -> dict[str, float]:
    """From the ledger of a run whose summary does not say it, for uploads could only cross as they were."""
    lines = [reading.parse(_Entry, path, text) for text in reading.content(path).splitlines()]
    entries = [line for line in lines if line.purpose == "aggregate"]
    rounds = len({entry.round for entry in entries})
    groups = dict.fromkeys(name for entry in entries for name in entry.elements_by_group if name != "scalars")
    return {name: FLOAT * sum(entry.elements_by_group.get(name, 0) for entry in entries) / rounds for name in groups}


def mean_curve(histories: Sequence[History]) -> list[tuple[Point, Spread]]:
    """Over seeds, at the rounds at which all of them were evaluated."""
    by_round = [{point.round: point for point in history.points} for history in histories]
    common = sorted(set.intersection(*(set(points) for points in by_round)))
    curve = []
    for number in common:
        here = [points[number] for points in by_round]
        curve.append((_mean(here), spread([point.received for point in here])))
    return curve


def _mean(points: Sequence[Point]) -> Point:
    return Point(
        round=fmean(point.round for point in points),
        bytes=fmean(point.bytes for point in points),
        seconds=fmean(point.seconds for point in points),
        received=fmean(point.received for point in points),
    )


def default_target(groups: Sequence[Group]) -> float | None:
    """95 % of the best last accuracy of `received`; None where no run has that stage."""
    last = [accuracy.mean for group in groups if (accuracy := group.accuracy(RECEIVED))]
    return 0.95 * max(last) if last else None


def reached(histories: Sequence[History], target: float) -> Reached:
    """The first evaluation of each seed at which `received` is the target or more."""
    firsts = [next((point for point in history.points if point.received >= target), None) for history in histories]
    evaluations = min(len(history.points) for history in histories)
    return Reached(evaluations, len(histories), [point for point in firsts if point])


def clients(histories: Sequence[History]) -> list[float]:
    """Accuracies of all clients of all seeds at stage FAIR."""
    return [accuracy for history in histories for accuracy in history.clients.get(FAIR, {}).values()]


def upload(histories: Sequence[History]) -> dict[str, float]:
    """Bytes of each group of parameters that a client sends in a round, mean over seeds."""
    groups = dict.fromkeys(name for history in histories for name in history.upload)
    return {name: fmean(history.upload.get(name, 0) for history in histories) for name in groups}
