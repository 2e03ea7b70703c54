"""Samples of named arrays, as an array file holds them or a function of the user's returns them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.config import Data
from fedbsd_dist.data.options import select
from fedbsd_dist.data.samples import Bools, Images, Ints, Samples
from fedbsd_dist.errors import UserError

KEYS = ("x", "y", "client", "domain", "split", "classes")

MOST_LABELS = 1 << 16
"""More than any data set has: a greater label that has no name is a mistake."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Named arrays in one form, n of each; the labels are not yet checked against the classes."""

    x: Images
    """[n, height, width, 1 or 3]"""
    y: Ints
    is_test: Bools | None
    domain: Ints | None
    domains: tuple[str, ...]
    client: Ints | None
    clients: tuple[str, ...]
    classes: tuple[str, ...]
    """Names by label; empty if they are not named."""


def samples_of(arrays: Mapping[str, Any], where: str, data: Data) -> Samples:
    """Samples of `x`: uint8 [n, height, width] or [n, height, width, 1 or 3], and `y`: integers [n], its labels.

    Optional: `client` and `domain`, integers or strings [n], each naming the sample's own; `split` [n],
    "train" or "test", or 1 for test and 0; `classes`, the names by label, else they are the labels 0..max(y).
    `where` is how messages speak of the arrays. Raises UserError for what is not of this form.
    """
    columns = columns_of(arrays, where)
    return select(
        data,
        name=where,
        x=columns.x,
        y=columns.y,
        classes=columns.classes or label_names(columns.y, where),
        is_test=columns.is_test,
        domain=columns.domain,
        domains=columns.domains,
        client=columns.client,
        clients=columns.clients,
    )


def columns_of(arrays: Mapping[str, Any], where: str, keys: Sequence[str] = KEYS) -> Columns:
    """Check each array for itself. `keys` are those known. Raises UserError naming the key that is wrong."""
    unknown = [key for key in arrays if key not in keys]
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}: known are {', '.join(keys)}. Leave it out or rename it.")
    for key in ("x", "y"):
        if key not in arrays:
            raise UserError(f"{where}: has no {key}. Needed are x and y, known {', '.join(keys)}.")
    found = {key: _array(value, f"{where}: {key}") for key, value in arrays.items()}
    x = _images(found["x"], f"{where}: x")
    n = len(x)
    client, clients = _named(found.get("client"), n, f"{where}: client")
    domain, domains = _named(found.get("domain"), n, f"{where}: domain")
    return Columns(
        x=x,
        y=_labels(found["y"], n, f"{where}: y"),
        is_test=_is_test(found.get("split"), n, f"{where}: split"),
        domain=domain,
        domains=domains or ("all",),
        client=client,
        clients=clients,
        classes=_class_names(found.get("classes"), f"{where}: classes"),
    )


def label_names(y: Ints, where: str) -> tuple[str, ...]:
    """The labels 0..max(y) as names. Raises UserError if a label is too large to be meant as one."""
    highest = int(y.max(initial=0))
    if highest >= MOST_LABELS:
        raise UserError(f"{where}: y: label {highest} is too large. Number the labels from 0, or name them in classes.")
    return tuple(str(label) for label in range(highest + 1))


def describe(array: NDArray[Any]) -> str:
    """Type and shape, as messages tell them."""
    return f"{array.dtype} [{', '.join(str(size) for size in array.shape)}]"


def _array(value: Any, where: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # lists of unequal length, or an object of some other library
        raise UserError(f"{where}: {type(value).__name__} cannot become an array ({error}).") from None


def _images(x: NDArray[Any], where: str) -> Images:
    if x.dtype.kind == "f":
        raise UserError(
            f"{where}: is {describe(x)}, expected uint8. If it is of 0..1, multiply by 255 and convert to uint8."
        )
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise UserError(
            f"{where}: is {describe(x)}, expected uint8 [n, height, width] or [n, height, width, channels] "
            "with 1 or 3 channels, which come last."
        )
    return x[..., np.newaxis] if x.ndim == 3 else x


def _labels(y: NDArray[Any], n: int, where: str) -> Ints:
    if y.dtype.kind not in "iu" or y.shape != (n,):
        raise UserError(f"{where}: is {describe(y)}, expected integers [{n}], a label for each image of x.")
    return y.astype(np.int64)


def _named(values: NDArray[Any] | None, n: int, where: str) -> tuple[Ints | None, tuple[str, ...]]:
    """Numbers [n] of the values' names, which are in order, numbers as numbers."""
    if values is None:
        return None, ()
    if values.dtype.kind not in "iuU" or values.shape != (n,):
        raise UserError(
            f"{where}: is {describe(values)}, expected integers or strings [{n}], a name for each image of x."
        )
    names, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), tuple(str(name) for name in names)


def _is_test(split: NDArray[Any] | None, n: int, where: str) -> Bools | None:
    if split is None:
        return None
    expected = f'expected "train" or "test" [{n}], or 1 for test and 0 for train'
    if split.dtype.kind not in "iubU" or split.shape != (n,):
        raise UserError(f"{where}: is {describe(split)}, {expected}.")
    train, test = ("train", "test") if split.dtype.kind == "U" else (0, 1)
    wrong = np.flatnonzero((split != train) & (split != test))
    if len(wrong):
        raise UserError(f"{where}: sample {wrong[0]} has {split[wrong[0]]!s:.40}, {expected}.")
    return np.asarray(split == test)


def _class_names(classes: NDArray[Any] | None, where: str) -> tuple[str, ...]:
    if classes is None:
        return ()
    if classes.dtype.kind != "U" or classes.ndim != 1 or not len(classes):
        raise UserError(f"{where}: is {describe(classes)}, expected strings [classes], the names by label.")
    names = tuple(str(name) for name in classes)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: {name!r} is there twice. Give each class a name of its own.")
    return names
