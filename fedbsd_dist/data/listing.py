"""A list of image files with their labels, whatever layout it was found in, and the samples made of it."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data import tree
from fedbsd_dist.data.cache import Origin
from fedbsd_dist.data.images import decode
from fedbsd_dist.data.pixels import choose_classes
from fedbsd_dist.data.samples import Samples, make_samples
from fedbsd_dist.errors import UserError


class Entry(NamedTuple):
    """One image file."""

    path: str
    """From the root, with slashes."""
    size: int
    """Bytes."""
    label: int
    domain: int
    is_test: bool


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Images under `root`, of the classes wanted."""

    root: Path
    entries: Sequence[Entry]
    classes: Sequence[str]
    domains: Sequence[str]
    lists: Sequence[Path] = ()
    """Files that say what the images are, if folders do not: a change of theirs makes other samples."""
    num_others: int = 0
    """Files beside the images that are left out, to be told of: some may be images of an unknown suffix."""


def origin(listing: Listing, data: Data) -> Origin:
    """Samples in the order of their paths, the same on every machine. Raises UserError if there are none."""
    if not listing.entries:
        raise UserError(
            f"{listing.root}: holds no images of the classes wanted. Add some, or set data.classes to others."
        )
    entries = sorted(listing.entries)
    files = [os.path.join(listing.root, entry.path) for entry in entries]
    return Origin(files=[*files, *map(str, listing.lists)], read=partial(_read, listing, entries, files, data))


def of_tree(root: Path, domains: Mapping[str, Path], data: Data) -> Listing:
    """The images of [train|test/]CLASS/IMAGE in each domain's folder; classes are those of any.

    Numbers come before names, in the order of their value. Classes that are not wanted are not looked into.
    Raises UserError for what `tree` refuses, and if only some domains have test samples of their own.
    """
    held_out = data.test_fraction > 0
    folders = [tree.class_folders(folder, held_out) for folder in domains.values()]
    tested = [any(folder.is_test for folder in of_domain) for of_domain in folders]
    if any(tested) and not all(tested) and not held_out:
        without = list(domains)[tested.index(False)]
        raise UserError(
            f"{domains[without]}: has no folder test/, but other domains do. Add it, or set data.test_fraction."
        )
    names = sorted({folder.path.name for of_domain in folders for folder in of_domain}, key=_by_value)
    if unreadable := [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]:
        raise UserError(f"{root}: the name of a class, {unreadable[0]!a}, is not UTF-8. Rename its folder.")
    classes, number = choose_classes(names, data.classes, str(root))
    label_of = dict(zip(names, number.tolist(), strict=True))
    prefix = os.path.join(root, "")
    found = [
        (domain, folder, tree.images(folder.path))
        for domain, of_domain in enumerate(folders)
        for folder in of_domain
        if label_of[folder.path.name] >= 0
    ]
    entries = [
        Entry(path[len(prefix) :], size, label_of[folder.path.name], domain, folder.is_test)
        for domain, folder, inside in found
        for path, size in inside.images
    ]
    num_others = sum(inside.num_others for _, _, inside in found)
    return Listing(root=root, entries=entries, classes=classes, domains=tuple(domains), num_others=num_others)


def _by_value(name: str) -> tuple[bool, int, str]:
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _read(listing: Listing, entries: Sequence[Entry], files: Sequence[str], data: Data, into: Path) -> Samples:
    paths = [Path(file) for file in files]
    x, contents = decode(paths, size=data.image_size, channels=data.channels, into=into, num_others=listing.num_others)
    return make_samples(
        name=str(listing.root),
        x=x,
        y=np.array([entry.label for entry in entries], np.int64),
        domain=np.array([entry.domain for entry in entries], np.int64),
        is_test=np.array([entry.is_test for entry in entries], np.bool_),
        classes=listing.classes,
        domains=listing.domains,
        identity=_identity(entries, (*listing.classes, "", *listing.domains, contents)),
    )


def _identity(entries: Iterable[Entry], names: Sequence[str]) -> str:
    """Of the files as they are found, not of where the root is nor of what they are decoded to."""
    digest = hashlib.sha256(ascii(names).encode())
    for entry in entries:
        digest.update(ascii(tuple(entry)).encode())
    return digest.hexdigest()
