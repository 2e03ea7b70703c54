"""A partition as a file: sizes, class counts and fingerprint to read, and the samples of each client to use again.

Samples are named by their place in the source, so a manifest fits the data set it was made of alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fedbsd_dist.config import Data
from fedbsd_dist.data.partition import Partition
from fedbsd_dist.data.samples import Ints, Samples
from fedbsd_dist.errors import UserError

FORMAT = 1
OPTIONS = (
    "partition",
    "alpha",
    "classes_per_client",
    "size_alpha",
    "num_clients",
    "num_new_clients",
    "min_samples",
    "test_fraction",
)
"""Options of `data` that a manifest answers."""
VALIDATION = "val_fraction"
"""One more, which with the samples is left out where none are held out, as it was before there were any."""


class Client(BaseModel):
    """One client's line."""

    model_config = ConfigDict(extra="ignore", strict=True)

    train: list[int]
    test: list[int]
    val: list[int] = []


class Manifest(BaseModel):
    """What is needed of a manifest to have its partition again."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: int
    source: str
    identity: str
    num_samples: int
    sha256: str
    options: dict[str, Any]
    clients: list[Client]


def text(partition: Partition, samples: Samples, data: Data, seed: int) -> str:
    """JSON with a line a client."""
    names = samples.classes
    facts = {
        "format": FORMAT,
        "source": samples.name,
        "identity": samples.identity,
        "num_samples": len(samples.y),
        "seed": seed,
        "options": {name: getattr(data, name) for name in (*OPTIONS, *([VALIDATION] if partition.val else []))},
        "sha256": partition.sha256,
        "left_out": partition.left_out,
    }
    clients = [
        {
            "client": client,
            "new": client >= partition.num_clients,
            "num_train": len(train),
            "num_test": len(test),
            "classes": {names[c]: int(count) for c, count in enumerate(counts) if count},
            "train": train.tolist(),
            "test": test.tolist(),
            **({"num_val": len(partition.val[client]), "val": partition.val[client].tolist()} if partition.val else {}),
        }
        for client, (train, test, counts) in enumerate(
            zip(partition.train, partition.test, partition.class_table(samples), strict=True)
        )
    ]
    lines = ",\n".join(json.dumps(client) for client in clients)
    return json.dumps(facts, indent=1).removesuffix("\n}") + f',\n "clients": [\n{lines}\n]}}\n'


def read(path: Path) -> Manifest:
    """Raises UserError for what is no manifest."""
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"data.manifest={path}: cannot be read ({error.strerror or error}).") from None
    except (ValueError, ValidationError, RecursionError) as error:
        raise UserError(f"data.manifest={path}: is no partition.json of a run, or damaged ({_short(error)}).") from None
    if manifest.format != FORMAT:
        raise UserError(f"data.manifest={path}: has format {manifest.format}; this version reads {FORMAT}.")
    return manifest


def options(data: Data) -> Data:
    """The options with those that the manifest answers. Raises UserError where others were asked for."""
    path = Path(data.manifest)
    answers = {VALIDATION: 0.0, **read(path).options}
    for name, value in answers.items():
        if name in data.model_fields_set and getattr(data, name) != value:
            raise UserError(
                f"data.{name}={getattr(data, name)}: data.manifest={path} has {value}. Leave out one of the two."
            )
    try:
        return Data.model_validate({**data.model_dump(), **{name: answers[name] for name in (*OPTIONS, VALIDATION)}})
    except (KeyError, ValidationError) as error:
        raise UserError(f"data.manifest={path}: damaged, its options cannot be used ({_short(error)}).") from None


def partition(samples: Samples, data: Data) -> Partition:
    """The partition of `data.manifest`, checked against the samples."""
    path = Path(data.manifest)
    manifest = read(path)
    if manifest.identity != samples.identity:
        raise UserError(
            f"data.manifest={path}: is of another data set, {manifest.source} with {manifest.num_samples} samples; "
            f"here is {samples.name} with {len(samples.y)}. Use the data and classes it was made with."
        )
    train, test, val = (
        tuple(_indices(getattr(client, part)) for client in manifest.clients) for part in ("train", "test", "val")
    )
    owned = np.concatenate([*train, *test, *val]) if manifest.clients else np.empty(0, np.int64)
    left_out = len(samples.y) - len(owned)
    held_out = val if data.val_fraction else ()
    found = Partition(train=train, test=test, val=held_out, num_new=data.num_new_clients, left_out=left_out)
    if len(owned) and not (owned.min() >= 0 and owned.max() < len(samples.y)):
        problem = "names samples that do not exist"
    elif len(np.unique(owned)) < len(owned):
        problem = "gives a sample to two clients, or to training and test or validation"
    elif not manifest.clients or len(train) != data.num_clients + data.num_new_clients or data.num_clients < 1:
        problem = "has not the clients that its options say"
    elif min(found.train_sizes) < 1 or min(found.test_sizes) < 1:
        problem = "has a client without training samples, or without test samples"
    elif [len(own) > 0 for own in val] != [data.val_fraction > 0] * data.num_clients + [False] * data.num_new_clients:
        problem = "has not the validation samples that its options say"
    elif found.sha256 != manifest.sha256:
        problem = "was changed after it was written: its clients do not have its sha256"
    else:
        return found
    raise UserError(f"data.manifest={path}: {problem}. Take the file of the run anew.")


def _indices(values: Sequence[int]) -> Ints:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array([-1])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
