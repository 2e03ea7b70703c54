"""Source `folder`: ROOT/[train|test/]CLASS/IMAGE, or an archive of that."""

from pathlib import Path

from fedbsd_dist.config import Data
from fedbsd_dist.data import archives, listing, tree
from fedbsd_dist.data.cache import Origin


def origin(data: Data) -> Origin:
    """The images of all classes, or of `data.classes`. Raises UserError for what is not laid out that way."""
    return archives.origin(data, f"ROOT/{tree.LAYOUT}", _of_folder)


def _of_folder(data: Data) -> Origin:
    root = Path(data.root)
    return listing.origin(listing.of_tree(root, {"all": root}, data), data)
