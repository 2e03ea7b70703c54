"""A finished run, taken up again where its data and its other clients' state need not be."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedbsd_dist.clients import Clients
from fedbsd_dist.commandline import load
from fedbsd_dist.config import Client, RunConfig
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.plan import Input, make_model
from fedbsd_dist.record.directory import CONFIG, SUMMARY, is_finished
from fedbsd_dist.record.saved import take_up


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What its directory says; nothing of any client is read yet."""

    folder: Path
    config: RunConfig
    """As the run had it, the number of clients resolved."""
    input: Input

    def shard(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Shard:
        """Of images uint8 [n, height, width, channels] and labels int64 [n], to be normalized as the run did."""
        return Shard(
            train_images=train[0],
            train_labels=train[1],
            test_images=test[0],
            test_labels=test[1],
            mean=torch.tensor(self.input.mean, device=train[0].device),
            std=torch.tensor(self.input.std, device=train[0].device),
        )

    def clients(self, shards: Mapping[int, Shard], device: torch.device) -> Clients:
        """With the shared state after the last round and the private state, then, of those that trained.

        Reads no file of a client that is not in `shards`. Raises UserError where the last round's checkpoint is not
        there, or is not of this model.
        """
        method, model = make_model(self.config, self.input.shape, len(self.input.classes), device)
        few = self.config.model_copy(update={"client": Client()})
        clients = Clients(few, method, model, shards)
        take_up(self.folder, self.config.train.rounds, clients.shared, clients.private)
        return clients


def open_finished(folder: Path, options: Sequence[str]) -> Finished:
    """`options`: section.field=value, instead of what the run had. Raises UserError where no finished run is."""
    if not os.path.isfile(folder / CONFIG):
        raise UserError(f"{folder}: is no run directory, for it has no {CONFIG}.")
    if not is_finished(folder):
        raise UserError(
            f"{folder}: this run is not finished. Go on with it: "
            f"python -m fedbsd_dist.main {folder / CONFIG} run.dir={folder} run.resume=auto"
        )
    config = load([str(folder / CONFIG), *options], OPTIONS)
    return Finished(folder=folder, config=config, input=_read_input(folder / SUMMARY))


def _read_input(path: Path) -> Input:
    try:
        found = json.loads(path.read_bytes())["input"]
        shape, classes, mean, std = (tuple(found[name]) for name in ("shape", "classes", "mean", "std"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        shape, classes, mean, std = (), (), (), ()
    sound = (
        all(type(size) is int and 0 < size <= 4096 for size in shape)
        and shape[:1] in ((1,), (3,))
        and (len(shape), len(mean), len(std)) == (3, shape[0], shape[0])
        and all(type(number) is float and math.isfinite(number) for number in (*mean, *std))
        and min(std) > 0
        and all(type(name) is str for name in classes)
        and 0 < len(set(classes)) == len(classes)
    )
    if not sound:
        raise UserError(
            f"{path}: does not say what the model takes (`input`), as the summary of a run of this version does. "
            f"Make the run again: python -m fedbsd_dist.main {path.with_name(CONFIG)} run.dir=NEW"
        )
    return Input(shape=shape, classes=classes, mean=mean, std=std)
