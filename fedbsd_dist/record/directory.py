"""The run directory: chosen, claimed, and never overwritten unasked."""

import hashlib
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedbsd_dist import dialect
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data import manifest
from fedbsd_dist.errors import UserError
from fedbsd_dist.wire.world import World

SUMMARY, CONFIG, PARTITION, METRICS, CLIENTS, LEDGER = (
    "summary.json",
    "config.yaml",
    "partition.json",
    "metrics.jsonl",
    "clients.csv",
    "ledger.jsonl",
)
TENSORBOARD, CHECKPOINTS, TRACES, TRAFFIC = "tensorboard", "checkpoints", "traces", "traffic"
LOCK = ".lock"
"""Held while a launch writes in the directory; names the launch."""
PREEMPTED = "PREEMPTED"
"""There while a run that was asked to stop, and has saved, has not gone on."""
AUTO = "auto"
# in the order of deletion: stopped half-way, what is left is a whole old run or nothing to go on from
OURS = (CHECKPOINTS, SUMMARY, METRICS, CLIENTS, LEDGER, TENSORBOARD, TRACES, TRAFFIC, PARTITION, PREEMPTED, CONFIG)


def agree(config: RunConfig, world: World) -> Path:
    """`run.dir`, or for `auto` a new name, the server's."""
    if config.run.dir != AUTO:
        return Path(config.run.dir)
    return new_name(f"{config.method.name}-{config.data.source}-s{config.seed}", "run directory", world)


def new_name(name: str, what: str, world: World) -> Path:
    """The server's name for what is not there yet, below `runs`."""
    dated = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (dated if count == 1 else f"{dated}-{count}" for count in itertools.count(1))
    return Path(world.told(what, str(next(p for p in map(Path("runs").joinpath, names) if not p.exists()))))


def nearest(config: RunConfig) -> Path:
    """`run.dir`, or the first of its parents that there is. Raises UserError when it cannot be a directory of ours."""
    path = Path("runs" if config.run.dir == AUTO else config.run.dir)
    try:
        found = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:  # too long
        raise UserError(f"run.dir={str(path)!r}: no directory can be called so ({error}).") from None
    if not found.is_dir():
        raise UserError(f"run.dir={path}: {found} is a file, not a directory. Choose another run.dir.")
    return found


def check(config: RunConfig) -> None:
    """Raises UserError when `run.dir` cannot be a directory of ours, or holds a run that may not be touched."""
    path = Path("runs" if config.run.dir == AUTO else config.run.dir)
    nearest(config)
    if config.run.overwrite and config.run.resume == "auto":
        raise UserError("run.overwrite=true and run.resume=auto contradict each other. Choose one.")
    try:
        ours = [name for name in OURS if name != PARTITION and (path / name).exists()]  # which a preview may have made
        is_a_run = any((path / name).exists() for name in (LOCK, METRICS))
    except OSError as error:
        raise UserError(f"run.dir={path}: cannot be read ({error.strerror}). Choose another run.dir.") from None
    if ours and not is_a_run:
        raise UserError(f"run.dir={path}: its {ours[0]} is of no run. Choose another run.dir.")
    if config.run.overwrite:
        return
    if config.run.resume == "auto":
        return _check_finished(path, config)
    if is_finished(path):
        raise UserError(
            f"run.dir={path}: holds a finished run. Choose another run.dir, or run.overwrite=true to replace it."
        )
    if ours:
        raise UserError(
            f"run.dir={path}: holds an unfinished run. Go on with run.resume=auto, "
            "replace it with run.overwrite=true, or choose another run.dir."
        )


def _check_finished(path: Path, config: RunConfig) -> None:
    """Raises UserError where `path` holds a finished run that is not the one asked for."""
    if not is_finished(path):
        return
    try:
        summary = json.loads((path / SUMMARY).read_text())
        found = summary["settings_sha256"], summary["rounds"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path / SUMMARY}: is no summary of a run ({type(error).__name__}: {error}). Bring it back; or delete it, "
            "and the run goes on from its last checkpoint."
        ) from None
    if found != (settings_sha256(config), config.train.rounds):
        rounds = {"train.rounds": config.train.rounds}
        try:
            then = _flat(dialect.parse((path / CONFIG).read_text()))
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            then = {}  # it is damaged, too
        differing = differences(then, {**settings(config), **rounds}) if then else ""
        raise UserError(
            f"run.dir={path}: holds a finished run of other settings: {differing or f'compare its {CONFIG}'}. "
            "Choose another run.dir, or run.overwrite=true to replace it."
        )


APART = frozenset(
    {
        *("run.dir", "run.overwrite", "run.resume", "run.rehost"),
        # where the samples are and how they are held; which client has which is compared by itself
        *("data.root", "data.download", "data.cache", "data.device_memory", "data.manifest"),
        *("train.rounds", "fault.max_diverged_rounds", "wire.timeout", "wire.silence"),
    }
)
"""Options that may differ when a run goes on: it may be made longer, moved, saved more often, and forgiven more."""
APART_SECTIONS = ("server", "client", "checkpoint", "profile", "sweep")
"""The first of them is compared with the number of ranks."""


def settings(config: RunConfig) -> dict[str, Any]:
    """section.field -> value of all options that a run's numbers depend on, as JSON has them."""
    flat: dict[str, Any] = json.loads(json.dumps(_flat(config.model_dump())))
    return {
        key: value for key, value in flat.items() if key not in APART and key.partition(".")[0] not in APART_SECTIONS
    }


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name: of if isinstance(of, dict) else {"": of} for name, of in options.items()}
    return {f"{name}.{key}".rstrip("."): value for name, of in sections.items() for key, value in of.items()}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Options that are not as they were, each with both values: those of `now`, and any that `then` has beside."""
    keys = [key for key in now if then.get(key, ...) != now[key]]
    values = ((key, dialect.inline(then[key]) if key in then else "unknown", dialect.inline(now[key])) for key in keys)
    return ", ".join(f"{key} was {before} and is {after}" for key, before, after in values)


def settings_sha256(config: RunConfig) -> str:
    """Of `settings`."""
    return hashlib.sha256(json.dumps(settings(config), sort_keys=True).encode()).hexdigest()


def is_finished(path: Path) -> bool:
    """A summary is the last thing a run writes."""
    return (path / SUMMARY).exists()


def check_partition(path: Path, identity: str, sha256: str, resumed: int) -> None:
    """Raises UserError where the run to go on from had other samples (`identity`), or divided them otherwise."""
    if not resumed:
        return
    try:
        then = manifest.read(path / PARTITION)
    except UserError:  # which speaks of a manifest that the user has named
        raise UserError(
            f"run.dir={path}: its {PARTITION} is not as it was written. Bring it back, or start again with another "
            "run.dir."
        ) from None
    if (then.identity, then.sha256) != (identity, sha256):
        raise UserError(
            f"run.dir={path}: the run's clients had other samples than they would have now; the data or the package "
            f"has changed since. Bring back the data, or start again with another run.dir."
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a last line cut short by a crash is left out.

    Raises UserError for another line that is none.
    """
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True), start=1):
        try:
            if line.endswith("\n"):
                lines.append(json.loads(line))
                lines[-1]["round"]  # which every line has
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path}: line {number} is no line of a record. Bring the file back, or start again with "
                "run.overwrite=true or another run.dir."
            ) from None
    return lines
