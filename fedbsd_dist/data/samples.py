"""All samples of a data source, on the host or mapped from a file, whichever source they came from."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.errors import UserError

Images = NDArray[np.uint8]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CHUNK = 4096
"""Images read at a time where all are walked through, for they may be mapped from a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """n samples, checked. `make_samples` makes them."""

    name: str
    x: Images
    """[n, height, width, channels]"""
    y: Ints
    """[n], class 0..num_classes-1"""
    domain: Ints
    """[n], domain 0..num_domains-1"""
    client: Ints
    """[n], the source's own client 0..num_owners-1; 0 where it has none."""
    is_test: Bools
    """[n], the source's own test split; nowhere true if it has none."""
    sums: Ints
    """[n, 2, channels], of a sample's pixels and of their squares."""
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    clients: tuple[str, ...]
    """Names of the source's own clients; empty if it has none."""
    identity: str
    """Hex digest that names the data set and the order of its samples: equal wherever the same is read."""

    def mean_and_std(self, indices: Ints) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel, of x / 255 over the samples `indices`. Sums of integers: every platform gets the same floats.

        A channel that never varies gets the deviation 1, to be divided by.
        """
        pixels = len(indices) * math.prod(self.x.shape[1:3])
        mean, std = [], []
        for total, squares in self.sums[indices].sum(axis=0).T.tolist():
            mean.append(total / (255 * pixels))
            std.append(math.sqrt(pixels * squares - total * total) / (255 * pixels) or 1.0)
        return tuple(mean), tuple(std)


def make_samples(
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
    identity: str = "",
) -> Samples:
    """Samples of arrays whose first dimension is n; `name` is how messages speak of the source.

    `identity`: what tells the data set from others, where it does not depend on how images were decoded.
    Raises UserError for labels out of range and for no samples at all.
    """
    assert x.dtype == np.uint8, x.dtype
    assert x.ndim == 4, x.shape
    zeros = np.zeros(len(x), np.int64)
    domain = zeros if domain is None else domain
    client = zeros if client is None else client
    is_test = np.zeros(len(x), np.bool_) if is_test is None else is_test
    assert len(x) == len(y) == len(domain) == len(client) == len(is_test)
    if not x.size:
        raise UserError(f"{name}: holds no samples.")
    for column, values, count in (
        ("label", y, len(classes)),
        ("domain", domain, len(domains)),
        ("client", client, max(1, len(clients))),
    ):
        wrong = np.flatnonzero((values < 0) | (values >= count))
        if len(wrong):
            raise UserError(
                f"{name}: sample {wrong[0]} has {column} {values[wrong[0]]}, which is out of range: "
                f"there are {count}, so 0 to {count - 1} ({len(wrong)} samples are wrong). Mend the source's {column}s."
            )
    return Samples(
        name=name,
        x=x,
        y=y,
        domain=domain,
        client=client,
        is_test=is_test,
        sums=_sums(x),
        classes=tuple(classes),
        domains=tuple(domains),
        clients=tuple(clients),
        identity=identity or _identity(x, (y, domain, client, is_test), (*classes, *domains, *clients)),
    )


def _sums(x: Images) -> Ints:
    n, height, width, channels = x.shape
    sums = np.empty((n, 2, channels), np.int64)
    for start in range(0, n, CHUNK):
        pixels = x[start : start + CHUNK].reshape(-1, height * width, channels)
        sums[start : start + CHUNK, 0] = pixels.sum(axis=1, dtype=np.int64)
        sums[start : start + CHUNK, 1] = np.square(pixels, dtype=np.uint32).sum(axis=1, dtype=np.int64)
    return sums


def _identity(x: Images, columns: Sequence[Ints | Bools], names: Sequence[str]) -> str:
    digest = hashlib.sha256(repr((x.shape, names)).encode())
    for start in range(0, len(x), CHUNK):
        digest.update(x[start : start + CHUNK].tobytes())
    for column in columns:
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()
