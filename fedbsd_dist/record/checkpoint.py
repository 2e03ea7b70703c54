"""What a killed run goes on from: the shared state by rank 0, each client's private state by its own rank.

    checkpoints/round-000010/{shared.pt, client-000003.pt, ..., manifest.json}

The manifest comes last, after every rank has written, with the sha256 of every file; a reader takes
the newest round whose manifest and files verify. Randomness is seeded by name and needs no saving.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.record.directory import CHECKPOINTS
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
        return self._config.checkpoint.every > 0 and round % self._config.checkpoint.every == 0

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
        manifest = {
            "round": round,
            "world_size": self._world.size,
            "settings_sha256": _settings_sha256(self._config),
            "files": {
                _name(row): bytes(digest.astype("uint8")).hex() for row, digest in enumerate(digests) if digest.any()
            },
        }
        write_atomically(self._path(round) / MANIFEST, json.dumps(manifest, indent=1).encode())
        for old in sorted(self._folder.glob("round-*"))[: -self._config.checkpoint.keep]:
            shutil.rmtree(old)

    def newest(self) -> int:
        """The newest round whose checkpoint verifies; 0 when there is none.

        Raises UserError when that checkpoint is of other settings or another number of ranks.
        """
        for folder in sorted(self._folder.glob("round-*"), reverse=True):
            manifest = _verified(folder)
            if manifest is None:
                continue
            if manifest["settings_sha256"] != _settings_sha256(self._config):
                raise UserError(
                    f"run.resume=auto: {folder} was made with other settings; compare config.yaml beside it."
                )
            if manifest["world_size"] != self._world.size:
                raise UserError(
                    f"run.resume=auto: {folder} is of {manifest['world_size']} ranks, "
                    f"but this launch has {self._world.size}."
                )
            if manifest["round"] > self._config.train.rounds:
                raise UserError(f"train.rounds={self._config.train.rounds}: {folder} is already further.")
            return int(manifest["round"])
        return 0

    def restore(self, round: int, shared: Tensors, private: Mapping[int, Tensors]) -> None:
        """Fill this rank's state, in place, with a round's."""
        _restore(self._path(round) / _name(0), shared)
        for client, state in private.items():
            _restore(self._path(round) / _name(1 + client), state)

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}"


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


def _settings_sha256(config: RunConfig) -> str:
    """Of all options that a run's numbers depend on. A run may be made longer, moved and saved more often."""
    settings = config.model_dump(
        exclude={"run": {"dir", "overwrite", "resume"}, "train": {"rounds"}, "checkpoint": True}
    )
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _verified(folder: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                return None
    except (OSError, ValueError, KeyError):
        return None
    return manifest
