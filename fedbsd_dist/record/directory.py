"""The run directory: chosen, claimed, and never overwritten unasked."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.wire.world import World

SUMMARY, CONFIG, METRICS, CLIENTS, LEDGER = (
    "summary.json",
    "config.yaml",
    "metrics.jsonl",
    "clients.csv",
    "ledger.jsonl",
)
TENSORBOARD, CHECKPOINTS = "tensorboard", "checkpoints"
AUTO = "auto"
OURS = (SUMMARY, CONFIG, METRICS, CLIENTS, LEDGER, TENSORBOARD, CHECKPOINTS)


def agree(config: RunConfig, world: World) -> Path:
    """`run.dir`, or for `auto` a new name, the server's."""
    auto = f"{config.method.name}-{config.data.source}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return (
        Path(world.told("run directory", str(Path("runs") / auto))) if config.run.dir == AUTO else Path(config.run.dir)
    )


def check(config: RunConfig) -> None:
    """Raises UserError when `run.dir` cannot be a directory of ours, or holds a run that may not be touched."""
    path = Path("runs" if config.run.dir == AUTO else config.run.dir)
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"run.dir={path}: {nearest} is a file, not a directory. Choose another run.dir.")
    if config.run.overwrite and config.run.resume == "auto":
        raise UserError("run.overwrite=true and run.resume=auto contradict each other. Choose one.")
    if config.run.overwrite or config.run.resume == "auto":
        return
    if is_finished(path):
        raise UserError(
            f"run.dir={path}: holds a finished run. Choose another run.dir, or run.overwrite=true to replace it."
        )
    if any((path / name).exists() for name in OURS):
        raise UserError(
            f"run.dir={path}: holds an unfinished run. Go on with run.resume=auto, "
            "replace it with run.overwrite=true, or choose another run.dir."
        )


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
    except OSError as error:
        raise UserError(f"run.dir={path}: cannot write there ({error.strerror}). Choose another run.dir.") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
