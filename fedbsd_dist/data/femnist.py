"""FEMNIST as LEAF prepares it: JSON files of writers, each writer a client.

{"users": [NAME, ...], "num_samples": [n, ...],
 "user_data": {NAME: {"x": [[784 numbers of 0..1], ...], "y": [label of 0..61, ...]}}}
"""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.config import Data
from fedbsd_dist.data import cache
from fedbsd_dist.data.options import keep, root_of
from fedbsd_dist.data.pixels import choose_classes, fit_all
from fedbsd_dist.data.samples import Images, Ints, Samples, make_samples
from fedbsd_dist.errors import UserError

CLASSES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
"""In the order of LEAF's labels."""

SIDE = 28

REMEDY = "Make the file again with LEAF."


def origin(data: Data) -> cache.Origin:
    """LEAF's files under `data.root`: train/*.json and test/*.json, else all_data*.json, there or in ROOT/data.

    FedRep's subset of ten classes is data.classes=[a,b,c,d,e,f,g,h,i,j]. Raises UserError if there are none;
    reading, for what is wrong in a file.
    """
    files = _files(root_of(data))
    return cache.Origin(files=list(files), read=lambda folder: _read(files, data))


def _files(root: Path) -> dict[Path, bool]:
    """Whether each file is of the test split."""
    for base in (root, root / "data"):
        train, test = (sorted((base / split).glob("*.json")) for split in ("train", "test"))
        if train and test:
            return dict.fromkeys(train, False) | dict.fromkeys(test, True)
    for folder in (root, root / "all_data", root / "data" / "all_data"):
        files = sorted(folder.glob("all_data_*.json"))
        if files:
            return dict.fromkeys(files, False)
    raise UserError(
        f"data.root={root}: holds no all_data_*.json of LEAF's, nor train/*.json and test/*.json. "
        "Make them with LEAF's data/femnist/preprocess.sh and set data.root to its data folder."
    )


class _Part(NamedTuple):
    """Of a writer's samples in one file those whose class is kept, labels among the classes kept."""

    writer: str
    x: Images
    y: Ints
    is_test: bool


def _read(files: dict[Path, bool], data: Data) -> Samples:
    parts = [part for part in _all_writers(files, data) if len(part.y)]
    if not parts:
        raise UserError(
            f"{next(iter(files)).parent}: its files hold no samples of data.classes={data.classes or 'all'}."
        )
    writers = sorted({part.writer for part in parts})
    number_of = {writer: number for number, writer in enumerate(writers)}
    sizes = [len(part.y) for part in parts]
    return make_samples(
        name="femnist",
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        classes=choose_classes(CLASSES, data.classes, "femnist")[0],
        client=np.repeat([number_of[part.writer] for part in parts], sizes),
        clients=writers,
        is_test=np.repeat([part.is_test for part in parts], sizes),
    )


def _all_writers(files: dict[Path, bool], data: Data) -> Iterator[_Part]:
    """Of all files. Raises UserError for a writer in two of one split."""
    first: dict[tuple[str, bool], Path] = {}
    for file, is_test in files.items():
        for part in _writers(file, is_test, data):
            other = first.setdefault((part.writer, is_test), file)
            if other != file:
                raise UserError(
                    f"{file}: writer {part.writer} is also in {other}, as if LEAF had preprocessed twice into one "
                    f"folder: images would be doubled, and the same ones in training and test. "
                    f"Empty the folder and preprocess again."
                )
            yield part


def _writers(file: Path, is_test: bool, data: Data) -> Iterator[_Part]:
    content = _content(file)
    for user, count in zip(content["users"], content["num_samples"], strict=True):
        where = f"{file}: user {user}"
        record = content["user_data"].get(user)
        if not isinstance(record, dict) or not (_is_list(record.get("x"), count) and _is_list(record.get("y"), count)):
            raise UserError(f"{where}: must have in user_data lists x and y of {count} samples each. {REMEDY}")
        if not count:
            continue
        chosen, y, _ = keep(_labels(record["y"], where), CLASSES, data, "femnist")
        x = _images(record["x"], where)[chosen]
        yield _Part(user, fit_all(x, data.image_size, data.channels) if len(x) else x, y, is_test)


def _content(file: Path) -> dict[str, Any]:
    """The file's lists of the same length, `users` and `num_samples`, and its dict `user_data`."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON, or cut short ({error}). {REMEDY}") from None
    if not isinstance(content, dict) or not isinstance(content.get("user_data"), dict):
        raise UserError(f"{file}: must be an object with users, num_samples and user_data, as LEAF writes it.")
    users, counts = content.get("users"), content.get("num_samples")
    if not isinstance(users, list) or not all(isinstance(user, str) for user in users) or len(set(users)) < len(users):
        raise UserError(f"{file}: users must be a list of names, each there once. {REMEDY}")
    if not _is_list(counts, len(users)):
        raise UserError(f"{file}: num_samples must be a list of {len(users)} numbers, one for each user. {REMEDY}")
    return content


def _is_list(value: Any, length: Any) -> bool:
    return isinstance(value, list) and len(value) == length


def _images(values: list[Any], where: str) -> Images:
    x = _array(values, f"{where}: x")
    shape = (len(values), SIDE * SIDE)
    if x.dtype.kind not in "fiu" or x.shape != shape or not ((x >= 0) & (x <= 1)).all():
        raise UserError(f"{where}: x must be {list(shape)} numbers of 0 to 1. {REMEDY}")
    pixels: Images = np.rint(x * 255).astype(np.uint8)
    return pixels.reshape(-1, SIDE, SIDE, 1)


def _labels(values: list[Any], where: str) -> Ints:
    y = _array(values, f"{where}: y")
    if y.dtype.kind not in "iu" or y.ndim != 1 or not ((y >= 0) & (y < len(CLASSES))).all():
        raise UserError(f"{where}: y must be whole numbers of 0 to {len(CLASSES) - 1}. {REMEDY}")
    return y.astype(np.int64)


def _array(values: list[Any], where: str) -> NDArray[Any]:
    try:
        return np.array(values)
    except ValueError as error:  # lists of unequal length
        raise UserError(f"{where}: is no array ({error}). {REMEDY}") from None
