"""What a killed run goes on from: the shared state by rank 0, each client's private state by its own rank.

    checkpoints/round-000010/{shared.pt, client-000003.pt, ..., manifest.json}

The manifest comes last, after every rank has written, with the sha256 of every file; a reader takes
the newest round whose manifest and files verify. Randomness is seeded by name and needs no saving.
"""

import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.record.directory import CHECKPOINTS, CONFIG, METRICS, read_lines, settings_sha256
from fedbsd_dist.record.files import write_atomically
from fedbsd_dist.wire.channel import Channel
from fedbsd_dist.wire.world import World

MANIFEST = "manifest.json"
Tensors = Mapping[str, Tensor]
"""Group -> float32 [numel]."""

PRIVATE = 0o600
"""A client's state is its owner's to read."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path, config: RunConfig, world: World) -> None:
        """`run`: the run directory, the same files for every rank."""
        self._folder, self._config, self._world = run / CHECKPOINTS, config, world

    def due(self, round: int) -> bool:
        """Whether a checkpoint follows this round."""
        every = self._config.checkpoint.every
        return every > 0 and (round % every == 0 or round == self._config.train.rounds)

    def write(self, round: int, shared: Tensors, private: Mapping[int, Tensors], channel: Channel) -> np.ndarray:
        """Write what is this rank's to write, and wait for the others.

        Returns every file's sha256, as 32 numbers a row: row 0 is the shared state's, row 1 + k client k's.
        """
        self._path(round).mkdir(parents=True, exist_ok=True)
        # files are about to change: an older checkpoint of the same round no longer counts
        (self._path(round) / MANIFEST).unlink(missing_ok=True)
        digests = {1 + client: _save(self._path(round) / _name(1 + client), state) for client, state in private.items()}
        if self._world.is_server:
            digests[0] = _save(self._path(round) / _name(0), shared)
        return channel.gather(digests, 1 + self._config.data.num_clients, 32, round=round, purpose="checkpoint")

    def commit(self, round: int, digests: np.ndarray) -> None:
        """The server makes the checkpoint count: every rank has written, and the record is on disk."""
        if not self._world.is_server:
            return
        manifest = Manifest(
            round=round,
            world_size=self._world.size,
            settings_sha256=settings_sha256(self._config),
            files={
                _name(row): bytes(digest.astype("uint8")).hex() for row, digest in enumerate(digests) if digest.any()
            },
        )
        manifest.own_sha256 = manifest.digest()
        write_atomically(self._path(round) / MANIFEST, manifest.model_dump_json(indent=1).encode())
        # a higher round is a damaged one that this run went on before
        others = [folder for folder in sorted(self._folder.glob("round-*")) if folder != self._path(round)]
        older = [folder for folder in others if folder.name < self._path(round).name]
        for folder in set(others) - set(older[len(older) - self._config.checkpoint.keep + 1 :]):
            shutil.rmtree(folder)

    def newest(self) -> int:
        """The newest round whose checkpoint verifies; 0 when there is none.

        Raises UserError when that checkpoint is of other settings or another number of ranks.
        """
        recorded = [line["round"] for line in read_lines(self._folder.parent / METRICS)]
        for folder in sorted(self._folder.glob("round-*"), reverse=True):
            manifest = _verified(folder)
            if manifest is None or manifest.round not in recorded:
                continue
            if manifest.settings_sha256 != settings_sha256(self._config):
                raise UserError(
                    f"run.resume=auto: {folder} was made with other settings; compare config.yaml beside it."
                )
            if manifest.world_size != self._world.size:
                raise UserError(
                    f"run.resume=auto: {folder} is of {manifest.world_size} ranks, "
                    f"but this launch has {self._world.size}."
                )
            if manifest.round > self._config.train.rounds:
                raise UserError(f"train.rounds={self._config.train.rounds}: {folder} is already further.")
            return manifest.round
        return 0

    def restore(self, round: int, shared: Tensors, private: Mapping[int, Tensors]) -> None:
        """Fill this rank's state, in place, with a round's."""
        _restore(self._path(round) / _name(0), shared)
        for client, state in private.items():
            _restore(self._path(round) / _name(1 + client), state)

    def _path(self, round: int) -> Path:
        return self._folder / _folder_name(round)


def take_up(run: Path, round: int, shared: Tensors, private: Mapping[int, Tensors]) -> None:
    """Fill, in place, the shared state and some clients' private state with those after a round, as `restore` does.

    Files of other clients need not be there, and are not read. Raises UserError for a checkpoint that is not there,
    does not verify, or is of another model.
    """
    folder = run / CHECKPOINTS / _folder_name(round)
    files = {_name(0): shared, **{_name(1 + client): state for client, state in private.items()}}
    manifest = _verified(folder, list(files))
    if manifest is None or manifest.round != round:
        raise UserError(
            f"{folder}: is no checkpoint of the run's last round whose {', '.join(files)} can be read and are as they "
            f"were written. Make the run again: "
            f"python -m fedbsd_dist.main {run / CONFIG} run.dir=NEW checkpoint.every=10"
        )
    for name, tensors in files.items():
        found, expected = _fill(folder / name, tensors), _sizes(tensors)
        if found != expected:
            raise UserError(
                f"{folder / name}: holds {found}, and the model of {run / CONFIG} has {expected}. Bring back the files "
                "of the run, and the code of a model of your own, as they were."
            )


def _fill(path: Path, tensors: Tensors) -> object:
    """`_restore`, where the file's tensors are of the sizes of `tensors`. Returns its sizes, or what it is instead."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        sizes = _sizes(saved)
        if sizes == _sizes(tensors):
            for group, values in saved.items():
                tensors[group].copy_(values)
        return sizes
    except Exception:  # of bytes that are no checkpoint, torch raises whatever comes first
        return "something else than tensors"


def _sizes(tensors: Tensors) -> dict[str, str]:
    return {group: f"{value.dtype} {[*value.shape]}" for group, value in tensors.items()}


def _name(row: int) -> str:
    return f"client-{row - 1:06d}.pt" if row else "shared.pt"


def _save(path: Path, tensors: Tensors) -> list[int]:
    file = io.BytesIO()
    torch.save({group: tensor.cpu().clone() for group, tensor in tensors.items()}, file)
    write_atomically(path, file.getvalue(), PRIVATE)
    return list(hashlib.sha256(file.getvalue()).digest())


def _restore(path: Path, tensors: Tensors) -> None:
    for group, saved in torch.load(path, map_location="cpu", weights_only=True).items():
        tensors[group].copy_(saved)


class Manifest(BaseModel):
    """What makes a checkpoint count."""

    model_config = ConfigDict(strict=True)
    round: int
    world_size: int
    settings_sha256: str
    files: dict[str, str]
    """File name -> sha256."""
    own_sha256: str = ""
    """Of all the fields above: the manifest vouches for the files, so nothing else vouches for it."""

    def digest(self) -> str:
        """What `own_sha256` must be."""
        return hashlib.sha256(self.model_dump_json(exclude={"own_sha256"}).encode()).hexdigest()


def _verified(folder: Path, names: Sequence[str] = ()) -> Manifest | None:
    """The manifest, where it and the files `names`, or else all, are as they were written."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        sound = manifest.own_sha256 == manifest.digest() and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == manifest.files.get(name)
            for name in names or manifest.files
        )
    except (OSError, ValueError):
        return None
    return manifest if sound else None


def _folder_name(round: int) -> str:
    return f"round-{round:06d}"
