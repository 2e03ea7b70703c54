"""Files that others publish: whether they are there, are the right ones, and how to come by them."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from fedbsd_dist.errors import UserError


@dataclass(frozen=True)
class RemoteFile:
    """A file with its place under `data.root`."""

    place: str
    md5: str | None
    """None where nobody publishes it."""
    addresses: tuple[str, ...] = ()
    """Where to fetch it, the best first."""


def missing(root: Path, places: Sequence[str]) -> list[str]:
    """Those where no file is."""
    return [place for place in places if not os.path.isfile(root / place)]


def how_to_get(root: Path, files: Sequence[RemoteFile]) -> str:
    """A list for a message: each file's full path and addresses."""
    return "".join(f"\n  {root / file.place}\n    from {' or '.join(file.addresses)}" for file in files)


def verify(root: Path, files: Sequence[RemoteFile]) -> None:
    """Raises UserError for a file that has another md5 than it should, or cannot be read."""
    for file in files:
        path = root / file.place
        try:
            found = _md5(path) if file.md5 else None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
        if found != file.md5:
            raise UserError(
                f"{path}: is damaged or another file: its md5 is {found}, expected {file.md5}. "
                "Delete it and fetch it again."
            )


def fetch(root: Path, files: Sequence[RemoteFile]) -> None:
    """Download files to their places, each whole or not at all. Raises UserError with the reasons if one fails."""
    for number, file in enumerate(files):
        reasons = []
        for address in file.addresses:
            try:
                _download(address, root / file.place, file.md5)
                break
            except (OSError, RuntimeError, ValueError, HTTPException) as error:
                reasons.append(f"{address}: {error}")
        else:
            raise UserError(
                f"data.download: cannot fetch {root / file.place} ({'; '.join(reasons)}). Mend that, or put there "
                f"by hand:{how_to_get(root, files[number:])}"
            )


def _download(address: str, path: Path, md5: str | None) -> None:
    from torchvision.datasets.utils import download_url

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        download_url(address, str(path.parent), part.name, md5)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
