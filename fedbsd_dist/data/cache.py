"""Decoded samples in a folder, made once and whole, then mapped into memory by every rank of a host.

    CACHE/folder-0123456789abcdef/{x,y,domain,client,is_test,sums}.npy, meta.json
    CACHE/.folder-0123456789abcdef.RANDOM.making/    while it is made
    CACHE/.locks/folder-0123456789abcdef.lock        held by the one that makes it; empty, and never deleted

The name depends on the options alone, so that a rank finds it without looking at the source. Whether
it still is what the source holds, and undamaged, one rank of a host checks before the others map it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

COLUMNS = ("x", "y", "domain", "client", "is_test", "sums")
META = "meta.json"
LOCKS = ".locks"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What samples are made of, found but not yet read."""

    files: Sequence[str | Path]
    """All files that matter: a change of any one's path, size, times or inode makes the cache anew."""
    read: Callable[[Path], Samples]
    """Makes the samples. It may map large arrays to files in the folder it is given: `x` to x.npy there, with
    `np.lib.format.open_memmap`, and whatever else, which is deleted afterwards."""


def place(folder: str, source: str, options: Sequence[Any]) -> Path:
    """Where the samples of a source with these options belong; `folder` is `data.cache`."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fedbsd_dist"
    name = hashlib.sha256(json.dumps([FORMAT, *options]).encode()).hexdigest()[:16]
    return (base if folder == "auto" else Path(os.path.expanduser(folder))) / f"{source}-{name}"


def ensure(path: Path, origin: Origin) -> None:
    """Make the cache unless it is there, of these very files, and undamaged.

    Raises UserError where it cannot be written, and whatever `origin.read` raises; nothing half-made stays.
    """
    fingerprint = _fingerprint(origin.files)
    if _is_sound(path, fingerprint):  # before anything is written, for a cache may be there to be read alone
        return
    with _telling_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as alone:
        if _is_sound(path, fingerprint):
            return
        if alone:  # or what another one is making would be taken for what one that was killed left
            _remove_leftovers(path)
        _make(path, origin, fingerprint)


def _make(path: Path, origin: Origin, fingerprint: str) -> None:
    """In a folder that no other process has, on whatever host; the cache appears whole, by a change of its name."""
    with _telling_of(path):
        making = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".making", dir=path.parent))
    try:
        new = making / "new"
        with _telling_of(path):
            new.mkdir()  # `mkdtemp`'s own is for the eyes of this user alone
        samples = origin.read(new)
        with _telling_of(path):
            _write(new, samples, fingerprint)
            _put(new, path, making / "old", fingerprint)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _put(new: Path, path: Path, old: Path, fingerprint: str) -> None:
    """Where it belongs, and what was there aside; unless, without a lock, another process was faster."""
    try:
        os.rename(new, path)
    except OSError:
        if _is_sound(path, fingerprint):
            return
        with suppress(FileNotFoundError):
            os.rename(path, old)
        os.rename(new, path)


def load(path: Path) -> Samples:
    """What `ensure` made, `x` mapped into memory. Raises UserError where this host does not see it."""
    try:
        meta = _read_meta(path)
        columns = {name: _array(path, name) for name in COLUMNS}
    except (OSError, ValueError, EOFError, RecursionError) as error:
        raise UserError(f"data.cache: {path} cannot be read on every host ({error}).") from None
    return Samples(**columns, **{name: _tuple(value) for name, value in meta["samples"].items()})


def _array(path: Path, name: str) -> Any:
    return np.load(path / f"{name}.npy", mmap_mode="r" if name == "x" else None, allow_pickle=False)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Wait until no other process makes this cache. Yields whether that is so: not all file systems have locks."""
    lock = _open_lock(path.parent / LOCKS / f"{path.name}.lock")
    try:
        yield lock is not None and _wait_for(lock, path)
    finally:
        if lock is not None:
            os.close(lock)


def _open_lock(file: Path) -> int | None:
    """None where it cannot be written, such as beside another user's; whether the cache can is another question."""
    try:
        file.parent.mkdir(exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None


def _wait_for(lock: int, path: Path) -> bool:
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that makes {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _remove_leftovers(path: Path) -> None:
    """What processes that were killed left."""
    for entry in path.parent.iterdir():
        if entry.name.startswith(f".{path.name}.") and entry.suffix in (".making", ".stale"):
            shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _telling_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.cache: cannot write {path} ({error.strerror or error}). Set data.cache to a folder with room."
        ) from None


def _fingerprint(files: Sequence[str | Path]) -> str:
    """Of files' paths, sizes and what else changes with their content.

    The time of the last write alone does not: one file may take another's place with its size and time, by a
    switched link or `rsync -a`.
    """
    digest = hashlib.sha256()
    for path in sorted(map(str, files)):
        facts = os.stat(path)
        values = (path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
        digest.update("".join(f"{value}\0" for value in values).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write(folder: Path, samples: Samples, fingerprint: str) -> None:
    """The arrays, then what is known of them, and nothing else."""
    for name in COLUMNS:
        array, file = getattr(samples, name), folder / f"{name}.npy"
        if isinstance(array, np.memmap):
            assert Path(str(array.filename)) == file.resolve(), array.filename
            array.flush()
        else:
            np.save(file, array, allow_pickle=False)
    digests = {name: _sha256(folder / f"{name}.npy") for name in COLUMNS}
    facts = {field: getattr(samples, field) for field in ("name", "classes", "domains", "clients", "identity")}
    meta = {"fingerprint": fingerprint, "sha256": digests, "samples": facts}
    (folder / META).write_text(json.dumps({**meta, "seal": _seal(meta)}, indent=1))
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != META and entry.stem not in COLUMNS:
            entry.unlink()


def _is_sound(path: Path, fingerprint: str) -> bool:
    """There, of the same files, and bit for bit what was written."""
    try:
        meta = _read_meta(path)
        return bool(meta["fingerprint"] == fingerprint) and all(
            _sha256(path / f"{name}.npy") == digest for name, digest in meta["sha256"].items()
        )
    except (OSError, ValueError, RecursionError):
        return False


def _read_meta(path: Path) -> dict[str, Any]:
    """What `_write` knew. Raises OSError, ValueError or RecursionError for anything else."""
    meta = json.loads((path / META).read_text())
    if not isinstance(meta, dict) or meta.pop("seal", None) != _seal(meta):
        raise ValueError(f"{META} is not what was written")
    return meta


def _seal(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
