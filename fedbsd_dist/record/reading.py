"""Finished runs, read back. A run directory may be anybody's: what does not fit is told, never believed."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedbsd_dist import dialect
from fedbsd_dist.record.directory import CHECKPOINTS, CONFIG, METRICS, PARTITION, SUMMARY, TENSORBOARD

APART = {
    "run": {"dir", "overwrite", "resume"},
    "data": {"root", "download", "cache", "device_memory"},
    "wire": {"timeout"},
    "checkpoint": {"every", "keep"},
    "fault": {"max_diverged_rounds"},
    "server": {"trains"},
    "client": {"store"},
    "profile": {"trace", "rounds", "counters", "comm", "target"},
    "sweep": {"dir", "slice"},
}
"""Options on which no number of a run depends."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**62)]
Name = Annotated[str, StringConstraints(pattern=r"^\w{1,40}$")]


class Damaged(Exception):
    """A directory that holds no finished run to read: why."""


class Part(BaseModel):
    """An object of a record; what else it holds does not matter."""

    model_config = ConfigDict(frozen=True, strict=True)


Kind = TypeVar("Kind", bound=Part)


class Mean(Part):
    """Accuracy over clients."""

    mean: Fraction


class Stage(Mean):
    """Accuracy over clients at a stage."""

    worst_10pct: Fraction


class Bytes(Part):
    """What clients sent and received."""

    federated_up: Count
    federated_down: Count


class LastRounds(Part):
    """Mean over the evaluations of the last rounds."""

    rounds: Count
    received: Mean


class Best(Part):
    """The round that was best on validation samples."""

    received: Mean


class Summary(Part):
    """summary.json, as far as runs are compared by it."""

    accuracy: Annotated[dict[Name, Stage], Field(min_length=1)]
    bytes: Bytes
    accuracy_last_rounds: LastRounds | None = None
    best: Best | None = None


class _Clients(Part):
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run."""

    path: Path
    settings: dict[str, str]
    """Values as YAML by dotted key, without the seed and what is APART."""
    seed: int
    clients: str
    """The digest of who owns which sample."""
    summary: Summary


Problem = tuple[Path, str]
"""A directory left out, and why."""


def find(folder: Path) -> list[Path]:
    """The run directories in `folder`, itself included, finished or not; in order of their names."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in (CHECKPOINTS, TENSORBOARD))
        if METRICS in files or {CONFIG, SUMMARY} <= set(files):
            found.append(Path(parent))
    return found


def read_all(paths: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Those that can be compared, and the others."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(read(path))
        except Damaged as damage:
            problems.append((path, str(damage)))
    return runs, problems


def read(path: Path) -> Run:
    """Raises Damaged."""
    if not path.is_dir():
        raise Damaged("no such directory")
    if not (path / SUMMARY).exists():
        raise Damaged(f"not finished: no {SUMMARY}")
    summary = parse(Summary, path / SUMMARY)
    settings, seed = _settings(path / CONFIG)
    clients = parse(_Clients, path / PARTITION).sha256
    return Run(path=path, settings=settings, seed=seed, clients=clients, summary=summary)


def _settings(path: Path) -> tuple[dict[str, str], int]:
    try:
        config = dialect.parse(content(path).decode())
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Damaged(f"{path.name}: not valid YAML") from None
    seed = config.get("seed") if isinstance(config, dict) else None
    if type(seed) is not int:
        raise Damaged(f"{path.name}: no configuration of a run")
    # two levels, as a configuration has
    settings = {
        f"{section}.{key}": _as_text(value)
        for section, of in config.items()
        if isinstance(of, dict)
        for key, value in of.items()
        if key not in APART.get(section, ())
    }
    if "method.name" not in settings:
        raise Damaged(f"{path.name}: names no method")
    return settings, seed


def _as_text(value: Any) -> str:
    return " ".join(dialect.inline(value).split())


def parse(kind: type[Kind], path: Path, text: bytes | None = None) -> Kind:
    """`text`, or all of the file, as an object of that kind. Raises Damaged."""
    try:
        return kind.model_validate_json(content(path) if text is None else text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Damaged(f"{path.name}: {where and where + ': '}{first['msg']}") from None


def content(path: Path) -> bytes:
    """Of a file of a run. Raises Damaged."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from None


def told(problems: Sequence[Problem]) -> list[str]:
    """A line for each directory left out."""
    return [f"left out: {path}: {why}" for path, why in problems]
