"""One size and one number of channels for all images of a source, and its choice of classes."""

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedbsd_dist import units
from fedbsd_dist.data.samples import Images, Ints
from fedbsd_dist.errors import UserError
from fedbsd_dist.host_memory import available_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
"""Pillow's names for grey and colour, by number of channels."""


def fit(image: "Image", size: int, channels: int) -> Images:
    """uint8 [height, width, channels]. `size`: pixels a side, or 0 for its own; `channels`: 1, 3, or 0 for its own."""
    channels = channels or (1 if image.mode in ("1", "L", "LA") else 3)
    image = image.convert(MODES[channels])
    if size and image.size != (size, size):
        from PIL.Image import Resampling

        image = image.resize((size, size), Resampling.BILINEAR)  # Pillow filters before it shrinks
    return np.asarray(image).reshape(image.height, image.width, channels)


def fit_all(x: Images, size: int, channels: int) -> Images:
    """`fit` for each image of x [n, height, width, 1 or 3]; x itself where there is nothing to do.

    Raises UserError where there is no memory for them.
    """
    if (not size or x.shape[1:3] == (size, size)) and channels in (0, x.shape[3]):
        return x
    from PIL import Image

    height, width = (size, size) if size else x.shape[1:3]
    shape = len(x), height, width, channels or x.shape[3]
    needed, free = math.prod(shape), available_bytes()
    if needed > free:
        raise UserError(
            f"data.image_size={size}: {len(x):,} images of {width} x {height} pixels take {units.size(needed)}, and "
            f"{units.size(free)} are free. Choose a smaller size, or fewer with data.classes."
        )
    fitted = np.empty(shape, np.uint8)
    for number, image in enumerate(x):
        fitted[number] = fit(Image.fromarray(image.squeeze(2) if x.shape[3] == 1 else image), size, channels)
    return fitted


def choose_classes(names: Sequence[str], wanted: Sequence[str], where: str) -> tuple[tuple[str, ...], Ints]:
    """The classes kept, in the order wanted, and each of `names`' new number, -1 where it is not kept.

    Raises UserError for a class that `where`, the source, does not have.
    """
    if not wanted:
        return tuple(names), np.arange(len(names))
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3) or list(names[:10])
            raise UserError(
                f"data.classes: {where} has no class {name!r}. There are {len(names)}, such as {', '.join(near)}."
            )
    if len(set(wanted)) < len(wanted):
        raise UserError(f"data.classes={list(wanted)}: a class is named twice.")
    return tuple(wanted), np.array([wanted.index(name) if name in wanted else -1 for name in names], np.int64)
