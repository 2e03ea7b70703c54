"""Files of arrays, read without running anything that they hold."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbsd_dist.data import array_pickle
from fedbsd_dist.errors import UserError

REMEDY = "Fetch or write the file again."


def read_array_file(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name, or `x` and `y` of a .pkl file: a pickled pair (images, labels) of arrays.

    Raises UserError for a file that is missing, damaged, of another kind, or holds objects.
    """
    readers = {".npz": _read_npz, ".pkl": _read_pickle}
    if path.suffix not in readers:
        raise UserError(f"{path}: is no array file: its name must end in .npz or .pkl.")
    try:
        return readers[path.suffix](path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path}: is no .npz file, or cut short. {REMEDY}")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: _member(arrays, name, path) for name in arrays.files}
        except UserError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy each have their own for damaged bytes
            raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}). {REMEDY}") from None


def _member(arrays: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        array = arrays[name]
    except Exception as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path}: {name} has objects inside, which are not loaded. Write it as an array of numbers or strings."
            ) from None
        raise UserError(f"{path}: {name} is damaged ({type(error).__name__}: {error}). {REMEDY}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: {name} is not an array. Write the file with numpy.savez.")
    return array


def _read_pickle(path: Path) -> dict[str, NDArray[Any]]:
    content = path.read_bytes()
    try:
        pair = array_pickle.read(content)
    except array_pickle.ForeignObject as error:
        raise UserError(
            f"{path}: holds objects ({error}) and was not loaded, for they may run anything. "
            "Write it as an .npz file with the arrays x and y."
        ) from None
    except Exception as error:  # damaged bytes are taken for instructions, and these may raise anything
        raise UserError(f"{path}: is no pickle, or damaged ({type(error).__name__}: {error}). {REMEDY}") from None
    if not isinstance(pair, tuple | list) or [type(part) for part in pair] != [array_pickle.Array] * 2:
        raise UserError(f"{path}: holds something else than a pair of arrays, images and labels.")
    return {"x": pair[0].array, "y": pair[1].array}
