"""Which source `data.source` is, and its samples: in memory, or made once and mapped from the cache."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fedbsd_dist.config import Data
from fedbsd_dist.data import cache, domains, femnist, folder, vision
from fedbsd_dist.data.array_sources import npz_origin, python_samples
from fedbsd_dist.data.digits import load_digits
from fedbsd_dist.data.options import root_of
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

ORIGINS: Mapping[str, Callable[[Data], cache.Origin]] = {
    **dict.fromkeys(vision.TABLES, vision.origin),
    "femnist": femnist.origin,
    "domains": domains.origin,
    "folder": folder.origin,
    "npz": npz_origin,
}
"""Sources that are read once, into the cache. Raise UserError for what is missing, before anything is read."""

DIRECT: Mapping[str, Callable[[Data], Samples]] = {"digits": load_digits, "python": python_samples}
"""Sources that every rank reads for itself."""

SPLIT_WANTED = ("domains", "folder")
"""Sources that refuse data without test samples unless `data.test_fraction` has some drawn: made with it, a cache
must not be there without it, for an archive is looked into only while its cache is made."""


def prepare(data: Data) -> None:
    """Make or check the cache of a source that has one. One rank of a host does it; then all may `load`.

    Raises UserError for what is wrong with the source, and for data that would be left aside in silence.
    """
    if data.root and data.source in DIRECT:
        raise UserError(
            f"data.root={data.root}: data.source={data.source} does not read it. Set data.source to what it is "
            f"({', '.join(ORIGINS)}), or leave it out."
        )
    if data.factory and data.source != "python":
        raise UserError(f"data.factory={data.factory}: is called with data.source=python alone. Set that too.")
    if data.source in ORIGINS:
        origin = ORIGINS[data.source](data)
        cache.ensure(_place(data), origin)


def load(data: Data) -> Samples:
    """The samples of `data.source`. Raises UserError for what is wrong with them."""
    if data.source in ORIGINS:
        return cache.load(_place(data))
    return DIRECT[data.source](data)


def _place(data: Data) -> Path:
    options = [str(root_of(data)), data.classes, data.image_size, data.channels]
    if data.source in SPLIT_WANTED:
        options.append(data.test_fraction > 0)
    return cache.place(data.cache, data.source, options)
