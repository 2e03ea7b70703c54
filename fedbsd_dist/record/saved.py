"""A checkpoint as it lies on disk: verified before any of it is believed, and read without running anything in it.

checkpoints/round-000010/{shared.pt, client-000003.pt, ..., manifest.json}
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedbsd_dist.errors import UserError
from fedbsd_dist.private import PrivateState
from fedbsd_dist.record.directory import CHECKPOINTS, CONFIG

MANIFEST = "manifest.json"
SHARED = "shared.pt"
Tensors = Mapping[str, Tensor]
"""Group -> float32 [numel]."""


class Damaged(Exception):
    """A checkpoint is not as it was written; the message says what of it."""


class Manifest(BaseModel):
    """What makes a checkpoint count: written last, when every rank has written."""

    model_config = ConfigDict(strict=True)
    round: int
    world_size: int
    server_trains: bool
    settings: dict[str, Any]
    """section.field -> value of all options that the numbers depend on."""
    seconds: float
    """What the saving took, beside the next rounds' work."""
    files: dict[str, str]
    """File name -> sha256."""
    own_sha256: str = ""
    """Of all the fields above: the manifest vouches for the files, so nothing else vouches for it."""

    def digest(self) -> str:
        """What `own_sha256` must be."""
        return hashlib.sha256(self.model_dump_json(exclude={"own_sha256"}).encode()).hexdigest()


def verified(folder: Path, names: Sequence[str] = ()) -> Manifest:
    """The manifest, where it and the files `names`, or else all, are as they were written. Raises Damaged."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise Damaged(f"{MANIFEST} cannot be read") from None
    if manifest.own_sha256 != manifest.digest():
        raise Damaged(f"{MANIFEST} is not as it was written")
    if folder.name != folder_name(manifest.round):
        raise Damaged(f"{MANIFEST} is of round {manifest.round}")
    for name in names or manifest.files:
        _content(folder, name, manifest)
    return manifest


def _content(folder: Path, name: str, manifest: Manifest) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        raise Damaged(f"{name} is not as it was written")
    return content


def take_up(run: Path, round: int, shared: Tensors, private: PrivateState) -> dict[str, str]:
    """Fill, in place, the shared state and some clients' private state with those after a round.

    A client without a file had not learned yet. Files of other clients need not be there, and are not read. Returns
    those of the clients, name -> sha256. Raises UserError for a checkpoint that is not there, does not verify, or is of
    another model.
    """
    folder = run / CHECKPOINTS / folder_name(round)
    try:
        manifest = verified(folder, [SHARED])
        saved = {client_file(client): client for client in private.clients if client_file(client) in manifest.files}
        for name in (SHARED, *saved):  # one at a time: together they may be more than there is memory for
            tensors = shared if name == SHARED else private.room(saved[name])
            found, expected = _fill(_content(folder, name, manifest), tensors), _sizes(tensors)
            if found != expected:
                raise UserError(
                    f"{folder / name}: holds {found}, and the model of {run / CONFIG} has {expected}. Bring back the "
                    "files of the run, and the code of a model of your own, as they were."
                )
    except Damaged as damage:
        raise UserError(
            f"{folder}: is no checkpoint that can be used: {damage}. Bring back its files, or make the run again: "
            f"python -m fedbsd_dist.main {run / CONFIG} run.dir=NEW checkpoint.every=10"
        ) from None
    private.changed.clear()
    return {name: manifest.files[name] for name in saved}


def _fill(content: bytes, tensors: Tensors) -> object:
    """Into `tensors`, where they are of the same sizes. Returns the content's sizes, or what it is instead."""
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        sizes = _sizes(saved)
        if sizes == _sizes(tensors):
            for group, values in saved.items():
                tensors[group].copy_(values)
        return sizes
    except Exception:  # of bytes that are no checkpoint, torch raises whatever comes first
        return "something else than tensors"


def _sizes(tensors: Tensors) -> dict[str, str]:
    return {group: f"{value.dtype} {[*value.shape]}" for group, value in tensors.items()}


def client_file(client: int) -> str:
    """Name of the file of a client's private state."""
    return f"client-{client:06d}.pt"


def folder_name(round: int) -> str:
    """Of a round's checkpoint."""
    return f"round-{round:06d}"
