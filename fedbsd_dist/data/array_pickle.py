"""Pickled arrays of numbers, made anew from their bytes: nothing that a pickle names is imported or run.

NumPy's own way from a pickle to an array is not taken either, for it believes what the pickle says of the
memory: an array of "objects" may be any bytes, taken for addresses.
"""

import codecs
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ForeignObject(Exception):
    """A pickle asks for something that arrays of numbers do not need."""


def read(content: bytes) -> Any:
    """What was pickled, of tuples, lists, dicts, texts, numbers, and `Array` for each array.

    Raises ForeignObject, and whatever damaged bytes lead to.
    """
    return _Reader(io.BytesIO(content), encoding="latin1").load()  # latin1: Python 2 has the bytes in a text


class Array:
    """Stands where the pickle has an array; protocols up to 4, and 5 if it is not contiguous, fill it later."""

    def __init__(self, *of_numpy: Any) -> None:
        self.array: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, kind, fortran, content = state
        self.array = _filled(content, kind, shape, "F" if fortran else "C").array


class _Type:
    """Stands where the pickle has a dtype."""

    def __init__(self, name: str, *of_numpy: Any) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "biuf":
            raise ForeignObject(f"an array of {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _filled(content: Any, kind: _Type, shape: tuple[int, ...], order: Any) -> Array:
    made = Array()
    content = content.encode("latin1") if isinstance(content, str) else content
    made.array = np.frombuffer(content, kind.dtype).reshape(shape, order=order)
    return made


MEANT: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _filled for core in ("core", "_core")},  # of protocol 5
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): codecs.encode,  # the bytes of an array in protocol 2
}
"""What pickled arrays are made by, and what is done in its place."""


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in MEANT:
            raise ForeignObject(f"{module_name}.{global_name}")
        return MEANT[module_name, global_name]
