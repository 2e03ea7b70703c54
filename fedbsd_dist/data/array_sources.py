"""Sources of one mapping of arrays: a file (`npz`) or a function of the user's (`python`)."""

from collections.abc import Mapping

from fedbsd_dist import factories
from fedbsd_dist.config import Data
from fedbsd_dist.data import cache
from fedbsd_dist.data.array_files import read_array_file
from fedbsd_dist.data.arrays import samples_of
from fedbsd_dist.data.options import root_of
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError


def npz_origin(data: Data) -> cache.Origin:
    """The .npz file `data.root`, of the arrays that `samples_of` describes. Raises UserError if it is not there."""
    path = root_of(data)
    if path.suffix != ".npz" or not path.is_file():
        raise UserError(f"data.root={path}: is no file NAME.npz, which data.source=npz needs.")
    return cache.Origin(files=[path], read=lambda folder: samples_of(read_array_file(path), str(path), data))


def python_samples(data: Data) -> Samples:
    """What `data.factory` (package.module:function, called without arguments) returns, as `samples_of` describes it.

    Every rank calls it, and must get the same. Where x is large let it return np.load(..., mmap_mode="r"):
    the ranks of a host then share the memory. Raises UserError for whatever goes wrong in it.
    """
    if not data.factory:
        raise UserError("data.source=python needs data.factory=package.module:function, which returns the arrays.")
    where = f"data.factory={data.factory}"
    factory = factories.resolve(data.factory, "data.factory")
    try:
        arrays = factory()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"{where}: raised {type(error).__name__}: {error}") from None
    if not isinstance(arrays, Mapping):
        raise UserError(f"{where}: must return a mapping of arrays (x, y, ...), not {type(arrays).__name__}.")
    return samples_of(arrays, where, data)
