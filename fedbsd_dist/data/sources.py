"""Where samples come from. One source ships with the package: `digits`, described in digits.md."""

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.errors import UserError

DIGITS_PATH = Path(__file__).with_name("digits.npz")
DIGITS_SHA256 = "13dfa5f82998c4249f054a1052f5b09bc0ed8bcb7a7aebd8e119fe0a0335bc60"


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """All samples of a data source, on the host."""

    name: str
    x: NDArray[np.uint8]
    """[n, height, width, channels]"""
    y: NDArray[np.int64]
    """[n], class 0..num_classes-1"""
    domain: NDArray[np.int64]
    """[n], domain 0..num_domains-1"""
    is_test: NDArray[np.bool_]
    """[n], the source's own test split"""
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of x / 255 over the training samples."""
    std: tuple[float, ...]
    """Per channel, of x / 255 over the training samples."""


def load_digits() -> Samples:
    """UCI optdigits in its official split and a class-balanced part of MNIST, both 16 x 16 grey."""
    with np.load(io.BytesIO(_read_verified(DIGITS_PATH, DIGITS_SHA256)), allow_pickle=False) as arrays:
        x = arrays["x"][..., np.newaxis]
        y, domain = arrays["y"].astype(np.int64), arrays["domain"].astype(np.int64)
        is_test = arrays["split"] == 1
    mean, std = _mean_and_std(x[~is_test])
    return Samples(
        name="digits",
        x=x,
        y=y,
        domain=domain,
        is_test=is_test,
        classes=tuple("0123456789"),
        domains=("optdigits", "mnist"),
        mean=mean,
        std=std,
    )


def _read_verified(path: Path, sha256: str) -> bytes:
    remedy = "Restore the file from the repository (git checkout) or reinstall the package."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{path}: is damaged: its {len(content)} bytes have sha256 {found}, expected {sha256}. {remedy}"
        )
    return content


def _mean_and_std(x: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, of x / 255. The sums are exact integers, so every platform gets the same floats."""
    mean, std = [], []
    for channel in np.moveaxis(x, -1, 0):
        count = np.bincount(channel.ravel(), minlength=256).tolist()  # pixels of each grey value
        n = sum(count)
        total = sum(value * c for value, c in enumerate(count))
        squares = sum(value * value * c for value, c in enumerate(count))
        mean.append(total / (255 * n))
        std.append(math.sqrt(n * squares - total * total) / (255 * n))
    return tuple(mean), tuple(std)


SOURCES: Mapping[str, Callable[[], Samples]] = {"digits": load_digits}
