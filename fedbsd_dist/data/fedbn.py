"""Arrays as FedBN's digits have them: floats of whole numbers, channels first, a column of labels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.data.arrays import describe
from fedbsd_dist.errors import UserError


def images(x: NDArray[Any], where: str) -> NDArray[Any]:
    """x [n, h, w], [n, h, w, c] or [n, c, h, w] with c 1 or 3 as uint8 with the channels last, where it has any.

    Raises UserError where the channels may be the first or the last, and for values that are no pixels.
    """
    if x.ndim == 4:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            which = "either first or last may be the channels" if first else "neither first nor last is 1 or 3 channels"
            raise UserError(
                f"{where}: is {describe(x)}, of whose three sizes {which}. Write an .npz with uint8 "
                "[n, height, width, channels]."
            )
        x = np.moveaxis(x, 1, 3) if first else x
    return _whole(x, 0, 255, np.uint8, where, "If it is of 0..1, multiply by 255 and convert to uint8.")


def labels(y: NDArray[Any], where: str) -> NDArray[Any]:
    """y [n] or [n, 1] of whole numbers as integers [n]. Raises UserError for other values."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    return y if y.dtype.kind in "iu" else _whole(y, -(2**53), 2**53, np.int64, where, "Write labels 0, 1, ...")


def _whole(array: NDArray[Any], low: int, high: int, dtype: Any, where: str, remedy: str) -> NDArray[Any]:
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "iuf" or not ((array >= low) & (array <= high) & (array == np.floor(array))).all():
        raise UserError(f"{where}: is {describe(array)}, expected whole numbers of {low} to {high}. {remedy}")
    return array.astype(dtype)
