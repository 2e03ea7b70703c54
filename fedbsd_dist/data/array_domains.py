"""Domains that are array files each, as FedBN's digits are.

ROOT/DOMAIN.npz                  x, y, optional split and classes
ROOT/DOMAIN/{train,test}.npz     x, y, optional classes
ROOT/DOMAIN/{train,test}.pkl     FedBN's: a pickled pair (images, labels)
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data import cache, fedbn
from fedbsd_dist.data.array_files import read_array_file
from fedbsd_dist.data.arrays import columns_of, label_names
from fedbsd_dist.data.options import root_of, select
from fedbsd_dist.data.pixels import fit_all
from fedbsd_dist.data.samples import Bools, Images, Ints, Samples
from fedbsd_dist.errors import UserError

SPLITS = ("train", "test")


def recognises(root: Path) -> bool:
    """Whether the folder holds array files of domains. Raises UserError where it is no folder that can be read."""
    return next(_found(root), None) is not None


def origin(data: Data) -> cache.Origin:
    """The domains of the folder `data.root`, sorted by name. Raises UserError for half a domain and two of a name.

    Reading raises it for what is wrong in a file, and for domains that differ in size, channels or classes.
    """
    root = root_of(data)
    domains: dict[str, list[Path]] = {}
    for name, files in sorted(_found(root)):
        if name in domains:
            raise UserError(f"{root}: has domain {name} twice ({domains[name][0]}, {files[0]}). Leave one of them.")
        for file in files:
            if not os.path.isfile(file):
                raise UserError(f"{file}: is missing. A domain's folder needs both of train and test.")
        domains[name] = files
    if not domains:
        raise UserError(f"data.root={root}: holds no DOMAIN.npz and no DOMAIN/train.npz or DOMAIN/train.pkl.")
    files = [file for of_domain in domains.values() for file in of_domain]
    return cache.Origin(files=files, read=lambda folder: _read(root, domains, data))


def _found(root: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and files of each domain; of those in a folder of its own, one of the two may be missing."""
    try:
        entries = list(root.iterdir())
    except OSError as error:
        raise UserError(f"data.root={root}: cannot be read as a folder ({error.strerror or error}).") from None
    for entry in entries:
        if entry.suffix == ".npz" and os.path.isfile(entry):
            yield entry.stem, [entry]
        for suffix in (".npz", ".pkl"):
            files = [entry / f"{split}{suffix}" for split in SPLITS]
            if any(os.path.isfile(file) for file in files):
                yield entry.name, files


def _read(root: Path, domains: Mapping[str, Sequence[Path]], data: Data) -> Samples:
    parts = {file: _columns(file, data) for of_domain in domains.values() for file in of_domain}
    _refuse_unlike({file: part.x.shape[1:] for file, part in parts.items()})
    classes = next(iter(parts.values())).classes
    for file, part in parts.items():
        if part.classes != classes:
            raise UserError(f"{file}: its classes are not those of {next(iter(parts))}. All domains need the same.")
    sizes = [sum(len(parts[file].y) for file in of_domain) for of_domain in domains.values()]
    y = np.concatenate([part.y for part in parts.values()])
    return select(
        data,
        name=str(root),
        x=np.concatenate([part.x for part in parts.values()]),
        y=y,
        classes=classes or label_names(y, str(root)),
        is_test=np.concatenate([part.is_test for part in parts.values()]),
        domain=np.repeat(np.arange(len(sizes)), sizes),
        domains=tuple(domains),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """One file's columns, images fitted."""

    x: Images
    y: Ints
    is_test: Bools
    classes: tuple[str, ...]


def _columns(file: Path, data: Data) -> _Part:
    arrays = read_array_file(file)
    if file.suffix == ".pkl":
        arrays = {"x": fedbn.images(arrays["x"], f"{file}: x"), "y": fedbn.labels(arrays["y"], f"{file}: y")}
    of_a_split = file.stem in SPLITS and file.parent != root_of(data)
    columns = columns_of(arrays, str(file), ("x", "y", "classes") if of_a_split else ("x", "y", "split", "classes"))
    given = np.full(len(columns.y), of_a_split and file.stem == "test")
    return _Part(
        x=fit_all(columns.x, data.image_size, data.channels) if columns.x.size else columns.x,
        y=columns.y,
        is_test=given if columns.is_test is None else columns.is_test,
        classes=columns.classes,
    )


def _refuse_unlike(shapes: Mapping[Path, tuple[int, ...]]) -> None:
    """Shapes [height, width, channels] of the files' images."""
    (first, shape), *others = shapes.items()
    for file, other in others:
        if other == shape:
            continue
        options = ["data.image_size"] * (other[:2] != shape[:2]) + ["data.channels"] * (other[2] != shape[2])
        raise UserError(
            f"Domains differ: images of {first} are {_by(shape)}, of {file} {_by(other)} (height x width x channels). "
            f"Set {' and '.join(options)}, and all are made alike."
        )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
