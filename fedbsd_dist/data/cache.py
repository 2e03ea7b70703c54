"""Decoded samples in a folder, made once and whole, then mapped into memory by every rank of a host.

    CACHE/folder-0123456789abcdef/{x,y,domain,client,is_test,sums}.npy, meta.json

The name depends on the options alone, so that a rank finds it without looking at the source. Whether
it still is what the source holds, and undamaged, one rank of a host checks before the others map it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

COLUMNS = ("x", "y", "domain", "client", "is_test", "sums")
META = "meta.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What samples are made of, found but not yet read."""

    files: Sequence[str | Path]
    """All files that matter: a change of any one's path, size or time makes the cache anew."""
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
    if _is_sound(path, fingerprint):
        return
    making = _aside(path, "making")
    try:
        with _telling_of(path):
            making.mkdir(parents=True)
        samples = origin.read(making)
        with _telling_of(path):
            _write(making, samples, fingerprint)
            if path.exists():
                os.rename(path, _aside(path, "stale"))
            os.rename(making, path)
    finally:
        for folder in (making, _aside(path, "stale")):
            shutil.rmtree(folder, ignore_errors=True)


def load(path: Path) -> Samples:
    """What `ensure` made, `x` mapped into memory. Raises UserError where this host does not see it."""
    try:
        meta = json.loads((path / META).read_text())
        columns = {name: _array(path, name) for name in COLUMNS}
    except (OSError, ValueError) as error:
        raise UserError(f"data.cache: {path} cannot be read on every host ({error}).") from None
    return Samples(**columns, **{name: _tuple(value) for name, value in meta["samples"].items()})


def _array(path: Path, name: str) -> Any:
    return np.load(path / f"{name}.npy", mmap_mode="r" if name == "x" else None, allow_pickle=False)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _aside(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{purpose}")


@contextmanager
def _telling_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.cache: cannot write {path} ({error.strerror or error}). Set data.cache to a folder with room."
        ) from None


def _fingerprint(files: Sequence[str | Path]) -> str:
    """Of the paths, sizes and times of files."""
    digest = hashlib.sha256()
    for path in sorted(map(str, files)):
        facts = os.stat(path)
        digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape"))
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
    (folder / META).write_text(json.dumps(meta, indent=1))
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != META and entry.stem not in COLUMNS:
            entry.unlink()


def _is_sound(path: Path, fingerprint: str) -> bool:
    """There, of the same files, and bit for bit what was written."""
    try:
        meta = json.loads((path / META).read_text())
        return bool(meta["fingerprint"] == fingerprint) and all(
            _sha256(path / f"{name}.npy") == digest for name, digest in meta["sha256"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
