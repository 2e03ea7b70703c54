"""Data sets that torchvision reads, from the files that their authors publish, packed or already unpacked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.config import Data
from fedbsd_dist.data import cache
from fedbsd_dist.data.options import root_of, select
from fedbsd_dist.data.remote_files import RemoteFile, fetch, how_to_get, missing, verify
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

Places = tuple[str, ...]
"""Of files under `data.root`."""

DIGITS = tuple("0123456789")


def origin(data: Data) -> cache.Origin:
    """The files of `data.source` under `data.root`: those unpacked where all are there, else those published.

    Raises UserError if files are missing and `data.download` is false, or they cannot be fetched. Reading raises
    it for damaged files.
    """
    root, table = root_of(data), TABLES[data.source]
    places = table.unpacked if table.unpacked and not missing(root, table.unpacked) else table.published
    if lacking := missing(root, places):
        known = _known(table)
        files = [known[place] for place in lacking]
        if not data.download:
            raise UserError(
                f"data.source={data.source}: files are missing. Set data.download=true, or put there by hand:"
                f"{how_to_get(root, files)}"
            )
        fetch(root, files)
    return cache.Origin(files=[root / place for place in places], read=lambda folder: _read(folder, root, places, data))


def _read(folder: Path, root: Path, places: Places, data: Data) -> Samples:
    table = TABLES[data.source]
    known = _known(table)
    files = [known[place] for place in places]
    verify(root, files)
    try:
        linked = _linked(folder / "linked", root, files)
        # download=True unpacks what is packed; it fetches nothing, for the files are there and the right ones
        train, test = (_dataset(table)(linked, download=True, **split) for split in table.splits)
        x = [table.upright(np.asarray(part.data)) for part in (train, test)]
        y = [np.asarray(getattr(part, table.labels), np.int64) for part in (train, test)]
    except Exception as error:  # torchvision asserts, and leaves the rest to zlib, pickle, SciPy, ...
        if isinstance(error, OSError) and error.errno:  # not of the files, which could be read so far
            raise UserError(f"data.cache: cannot unpack {data.source} in {folder} ({error.strerror}).") from None
        raise UserError(
            f"{root / files[0].place}: torchvision cannot read it, or another of its {len(files)} files "
            f"({type(error).__name__}: {error}). Delete them and fetch them again."
        ) from None
    return select(
        data,
        name=data.source,
        x=np.concatenate(x),
        y=np.concatenate(y),
        classes=table.classes or tuple(train.classes),
        is_test=np.repeat([False, True], [len(part) for part in y]),
    )


def _known(table: "_Table") -> dict[str, RemoteFile]:
    """What torchvision knows of each file, by its place. Importing it takes seconds: not done while a cache serves."""
    return {file.place: file for file in table.files(_dataset(table))}


def _linked(folder: Path, root: Path, files: Sequence[RemoteFile]) -> Path:
    """A folder of links, in which torchvision finds these very files and unpacks them, leaving `root` as it is."""
    for file in files:
        link = folder / file.place
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / file.place)
    return folder


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What there is to know of a data set, besides what torchvision's class of it knows."""

    dataset: str
    """torchvision's class"""
    published: Places
    unpacked: Places = ()
    """What torchvision makes of them, and takes as well; none if it reads them as they are."""
    files: Callable[[Any], Sequence[RemoteFile]]
    """What torchvision's class knows of either."""
    splits: Sequence[Mapping[str, Any]] = ({"train": True}, {"train": False})
    labels: str = "targets"
    upright: Callable[[NDArray[Any]], NDArray[Any]]
    """Makes uint8 [n, height, width, channels] of torchvision's array."""
    classes: tuple[str, ...] = ()
    """Names; none if they are torchvision's."""


def _dataset(table: _Table) -> Any:
    import torchvision

    return getattr(torchvision.datasets, table.dataset)


def _idx_files(dataset: Any) -> list[RemoteFile]:
    packed = [
        RemoteFile(f"{dataset.__name__}/raw/{name}", md5, tuple(mirror + name for mirror in dataset.mirrors))
        for name, md5 in dataset.resources
    ]
    return packed + [RemoteFile(file.place.removesuffix(".gz"), None) for file in packed]


def _emnist_files(dataset: Any) -> list[RemoteFile]:
    packed = RemoteFile("EMNIST/raw/gzip.zip", dataset.md5, (dataset.url,))
    return [packed, *(RemoteFile(place, None) for place in _EMNIST)]


def _cifar_files(dataset: Any) -> list[RemoteFile]:
    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    unpacked = [RemoteFile(f"{dataset.base_folder}/{name}", md5) for name, md5 in files]
    return [RemoteFile(dataset.filename, dataset.tgz_md5, (dataset.url,)), *unpacked]


def _file_a_split(dataset: Any) -> list[RemoteFile]:
    splits = (dataset.split_list[split] for split in ("train", "test"))
    return [RemoteFile(name, md5, (address,)) for address, name, md5 in splits]


def _grey(x: NDArray[Any]) -> NDArray[Any]:
    return x[..., np.newaxis]


_IDX = tuple(f"{split}-{what}-ubyte" for split in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
_EMNIST = tuple(
    f"EMNIST/raw/emnist-balanced-{split}-{what}-ubyte"
    for split in ("train", "test")
    for what in ("images-idx3", "labels-idx1")
)


def _mnist(dataset: str, classes: tuple[str, ...] = ()) -> _Table:
    return _Table(
        dataset=dataset,
        published=tuple(f"{dataset}/raw/{name}.gz" for name in _IDX),
        unpacked=tuple(f"{dataset}/raw/{name}" for name in _IDX),
        files=_idx_files,
        upright=_grey,
        classes=classes,
    )


def _cifar(dataset: str, archive: str, folder: str, names: Places) -> _Table:
    return _Table(
        dataset=dataset,
        published=(archive,),
        unpacked=tuple(f"{folder}/{name}" for name in names),
        files=_cifar_files,
        upright=lambda x: x,
    )


TABLES: Mapping[str, _Table] = {
    "mnist": _mnist("MNIST", DIGITS),
    "fashion_mnist": _mnist("FashionMNIST"),
    "emnist": _Table(
        dataset="EMNIST",
        published=("EMNIST/raw/gzip.zip",),
        unpacked=_EMNIST,
        files=_emnist_files,
        splits=({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
        upright=lambda x: _grey(x.swapaxes(1, 2)),  # stored column by column
    ),
    "cifar10": _cifar(
        "CIFAR10",
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": _cifar("CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python", ("train", "test", "meta")),
    "svhn": _Table(
        dataset="SVHN",
        published=("train_32x32.mat", "test_32x32.mat"),
        files=_file_a_split,
        splits=({"split": "train"}, {"split": "test"}),
        labels="labels",
        upright=lambda x: x.transpose(0, 2, 3, 1),
        classes=DIGITS,
    ),
    "usps": _Table(
        dataset="USPS", published=("usps.bz2", "usps.t.bz2"), files=_file_a_split, upright=_grey, classes=DIGITS
    ),
}
"""By `data.source`."""
