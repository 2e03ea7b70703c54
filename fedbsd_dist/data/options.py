"""The options that every source honours: where it lies, which classes are kept, and the form of its images."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data.pixels import choose_classes, fit_all
from fedbsd_dist.data.samples import Bools, Images, Ints, Samples, make_samples
from fedbsd_dist.errors import UserError


def root_of(data: Data) -> Path:
    """`data.root`, absolute. Raises UserError if it is not set; it need not exist.

    Links stay as they are, for the names that they lead to may lack the suffix that tells what a file is.
    """
    if not data.root:
        raise UserError(f"data.source={data.source} reads what you have: set data.root to its folder or file.")
    return Path(os.path.abspath(os.path.expanduser(data.root)))


def keep(y: Ints, classes: Sequence[str], data: Data, where: str) -> tuple[Ints, Ints, tuple[str, ...]]:
    """Indices [k] of the samples whose class is kept, their labels [k] among the kept classes, and those classes.

    `y` [n] are labels among `classes`. Where one is out of range all are kept as they are, for `make_samples` to
    refuse. Raises UserError for a class that is wanted and not there.
    """
    kept, number_of = choose_classes(classes, data.classes, where)
    if not data.classes or ((y < 0) | (y >= len(classes))).any():
        return np.arange(len(y)), y, tuple(classes)
    numbers = number_of[y]
    chosen = np.flatnonzero(numbers >= 0)
    return chosen, numbers[chosen], kept


def select(
    data: Data,
    *,
    name: str,
    x: Images,
    y: Ints,
    classes: Sequence[str],
    is_test: Bools | None = None,
    domain: Ints | None = None,
    domains: Sequence[str] = ("all",),
    client: Ints | None = None,
    clients: Sequence[str] = (),
) -> Samples:
    """`make_samples` of the samples of `data.classes`, fitted to `data.image_size` and `data.channels`.

    x is uint8 [n, height, width, 1 or 3], and itself kept, not copied, where there is nothing to do. A client that
    has no samples left is left out too.
    Raises UserError as `make_samples` does, for a class that is not there, and if none of its samples is.
    """
    chosen, y, kept = keep(y, classes, data, name)
    if not len(chosen) and len(x):
        raise UserError(f"{name}: holds no samples of data.classes={list(kept)}. Choose others.")
    if len(chosen) < len(x):
        x = x[chosen]
        is_test = None if is_test is None else is_test[chosen]
        domain = None if domain is None else domain[chosen]
        if client is not None:
            left, client = np.unique(client[chosen], return_inverse=True)
            clients = [clients[number] for number in left]
    return make_samples(
        name=name,
        x=fit_all(x, data.image_size, data.channels) if x.size else x,
        y=y,
        classes=kept,
        is_test=is_test,
        domain=domain,
        domains=domains,
        client=client,
        clients=clients,
    )
