"""Writes that are whole or not there at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedbsd_dist.errors import UserError


@contextmanager
def telling(run: Path) -> Iterator[None]:
    """What the file system refuses in the block, below a run's directory, is the user's to mend: raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{run}: cannot be written ({error.strerror or error}). What was written before is whole: mend this, such "
            "as by making room, and go on with run.resume=auto."
        ) from None


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """A temporary name in the same directory, fsync, rename, fsync of the directory."""
    # always the same name, so that a crash leaves one file that the next write replaces
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A file where none counts yet, in place of any that is there; not on disk until `sync` is called."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def append(path: Path, text: str) -> None:
    """Add lines to a file, and wait until they are on disk."""
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, outlive a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
