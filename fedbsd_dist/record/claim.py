"""Who may write in a run directory: one launch at a time, which finds its own run again when torchrun restarts it."""

import fcntl
import os
import secrets
import shutil
import socket
import time
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.record.directory import AUTO, LOCK, OURS, new_name
from fedbsd_dist.wire.world import World

MARK = ".shared-"
"""Prefix of a file by which ranks see that they have one directory."""
PATIENCE = 45.0
"""Seconds in which the ranks of a launch that was killed have ended."""


def claim(path: Path, config: RunConfig) -> TextIOWrapper:
    """Make the directory, empty of an earlier run where that was asked for. Only names of ours are deleted.

    Returns the lock, which holds other launches off until it is closed, or the process ends.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("a+")
        _hold(lock, path)
        for mark in path.glob(f"{MARK}*"):  # of a launch that was killed while it looked
            mark.unlink()
        if config.run.overwrite:
            for name in OURS:
                if (path / name).is_dir():
                    shutil.rmtree(path / name)
                else:
                    (path / name).unlink(missing_ok=True)
        lock.truncate(0)
        lock.write(_launcher())
        lock.flush()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"run.dir={str(path)!r}: cannot write there ({reason}). Choose another run.dir.") from None
    return lock


def _hold(lock: TextIOWrapper, path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                lock.seek(0)
                raise UserError(
                    f"run.dir={path}: another launch ({lock.read()}) is writing there. Wait for its end, or choose "
                    "another run.dir."
                ) from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return None


def _launcher() -> str:
    """Names the process that has started this one: of all ranks of a host, and of their next start, torchrun."""
    return f"host {socket.gethostname()}, process {os.getppid()}, launch {os.environ.get('TORCHELASTIC_RUN_ID', '-')}"


def again(config: RunConfig, world: World) -> RunConfig:
    """As the launch left it, where torchrun has started its ranks again: the same run goes on."""
    if not world.restarted:
        return config
    chosen = config.run.dir
    path = world.told("run of this launch", found(chosen) if world.is_server else "")
    if not path:
        return config
    run = config.run.model_copy(update={"dir": path, "resume": "auto", "overwrite": False})
    return config.model_copy(update={"run": run})


def found(chosen: str) -> str:
    """The directory, `chosen` or for `auto` below runs, that this launch has claimed; empty where there is none."""
    for path in sorted(Path("runs").glob("*")) if chosen == AUTO else [Path(chosen)]:
        with suppress(OSError, ValueError):
            if (path / LOCK).read_text() == _launcher():
                return str(path)
    return ""


def agree_sweep(config: RunConfig, world: World) -> str:
    """`sweep.dir`, or for `auto` a new name, the server's: the same again where torchrun starts the ranks again."""
    if config.sweep.dir != AUTO:
        return config.sweep.dir
    before = world.told("sweep of this launch", found(AUTO) if world.is_server and world.restarted else "")
    return before or str(new_name("profile" if config.profile.comm else "sweep", "folder of the sweep", world))


def remember(folder: Path) -> None:
    """For `agree_sweep`, of the launch's next start. Raises UserError where another launch has chosen the same name."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not (folder / LOCK).exists() or (folder / LOCK).read_text() != _launcher():
            raise UserError(f"{folder}: another launch has just begun there. Start this one again.") from None
    (folder / LOCK).write_text(_launcher())


def check_shared(path: Path, world: World) -> None:
    """Raises UserError on a rank that does not see in the directory what rank 0 writes there, or cannot write."""
    mark = path / world.told("mark", f"{MARK}{secrets.token_hex(8)}")
    if world.is_server:
        with suppress(OSError):  # told below
            mark.touch()
    mine = mark.with_name(f"{mark.name}-{world.rank}")
    world.wait("marked")
    try:
        if world.is_server and not mark.exists():
            mark.touch()
        if not mark.exists():
            raise UserError(
                f"run.dir={path}: rank {world.rank} does not see what rank 0 writes there, so it is not one directory "
                "for all hosts. Choose a run.dir on a file system that they share."
            )
        mine.touch()
        mine.unlink()
    except OSError as error:
        raise UserError(f"run.dir={path}: rank {world.rank} cannot write there ({error.strerror}).") from None
    finally:
        world.wait("seen")
        if world.is_server:
            mark.unlink(missing_ok=True)
