"""The run directory: chosen, claimed, and never overwritten unasked."""

import hashlib
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

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
TENSORBOARD, CHECKPOINTS = "tensorboard", "checkpoints"
AUTO = "auto"
# in the order of deletion: stopped half-way, what is left is a whole old run or nothing to go on from
OURS = (CHECKPOINTS, SUMMARY, METRICS, CLIENTS, LEDGER, TENSORBOARD, PARTITION, CONFIG)


def agree(config: RunConfig, world: World) -> Path:
    """`run.dir`, or for `auto` a new name, the server's."""
    if config.run.dir != AUTO:
        return Path(config.run.dir)
    return _new(f"{config.method.name}-{config.data.source}-s{config.seed}", "run directory", world)


def agree_sweep(config: RunConfig, world: World) -> str:
    """`sweep.dir`, or for `auto` a new name, the server's."""
    return config.sweep.dir if config.sweep.dir != AUTO else str(_new("sweep", "folder of the sweep", world))


def _new(name: str, what: str, world: World) -> Path:
    """The server's name for what is not there yet, below `runs`."""
    dated = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (dated if count == 1 else f"{dated}-{count}" for count in itertools.count(1))
    return Path(world.told(what, str(next(p for p in map(Path("runs").joinpath, names) if not p.exists()))))


def check(config: RunConfig) -> None:
    """Raises UserError when `run.dir` cannot be a directory of ours, or holds a run that may not be touched."""
    path = Path("runs" if config.run.dir == AUTO else config.run.dir)
    try:
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    except OSError as error:  # too long
        raise UserError(f"run.dir={str(path)!r}: no directory can be called so ({error}).") from None
    if not nearest.is_dir():
        raise UserError(f"run.dir={path}: {nearest} is a file, not a directory. Choose another run.dir.")
    if config.run.overwrite and config.run.resume == "auto":
        raise UserError("run.overwrite=true and run.resume=auto contradict each other. Choose one.")
    if config.run.overwrite:
        return
    if config.run.resume == "auto":
        return _check_finished(path, config)
    if is_finished(path):
        raise UserError(
            f"run.dir={path}: holds a finished run. Choose another run.dir, or run.overwrite=true to replace it."
        )
    if any((path / name).exists() for name in OURS if name != PARTITION):  # which a preview may have written
        raise UserError(
            f"run.dir={path}: holds an unfinished run. Go on with run.resume=auto, "
            "replace it with run.overwrite=true, or choose another run.dir."
        )


def _check_finished(path: Path, config: RunConfig) -> None:
    """Raises UserError where `path` holds a finished run that is not the one asked for."""
    if not is_finished(path):
        return
    summary = json.loads((path / SUMMARY).read_text())
    if (summary["settings_sha256"], summary["rounds"]) != (settings_sha256(config), config.train.rounds):
        raise UserError(
            f"run.dir={path}: holds a finished run of other settings or rounds; compare its {CONFIG}. "
            "Choose another run.dir, or run.overwrite=true to replace it."
        )


def settings_sha256(config: RunConfig) -> str:
    """Of all options that a run's numbers depend on. A run may be made longer, moved, saved more often, and forgiven
    more.
    """
    apart: dict[str, Any] = {
        "run": {"dir", "overwrite", "resume"},
        # where the samples are and how they are held; which client has which is compared by itself
        "data": {"root", "download", "cache", "device_memory", "manifest"},
        "train": {"rounds"},
        "fault": {"max_diverged_rounds"},
        "wire": {"timeout"},
    }
    settings = config.model_dump(exclude={**apart, "checkpoint": True, "sweep": True})
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def is_finished(path: Path) -> bool:
    """A summary is the last thing a run writes."""
    return (path / SUMMARY).exists()


def claim(path: Path, config: RunConfig) -> None:
    """Make the directory, empty of an earlier run where that was asked for. Only names of ours are deleted."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if config.run.overwrite:
            for name in OURS:
                if (path / name).is_dir():
                    shutil.rmtree(path / name)
                else:
                    (path / name).unlink(missing_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"run.dir={str(path)!r}: cannot write there ({reason}). Choose another run.dir.") from None


def check_partition(path: Path, identity: str, sha256: str, resumed: int) -> None:
    """Raises UserError where the run to go on from had other samples (`identity`), or divided them otherwise."""
    if not resumed:
        return
    then = manifest.read(path / PARTITION)
    if (then.identity, then.sha256) != (identity, sha256):
        raise UserError(
            f"run.dir={path}: the run's clients had other samples than they would have now; the data or the package "
            f"has changed since. Bring back the data, or start again with another run.dir."
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
