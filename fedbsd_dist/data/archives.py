"""`data.root` as a folder, or as an archive of one that is unpacked while its samples are read."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedbsd_dist.config import Data
from fedbsd_dist.data import tree
from fedbsd_dist.data.cache import Origin
from fedbsd_dist.data.options import root_of
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.data.unpacking import SUFFIXES, unpack
from fedbsd_dist.errors import UserError


def origin(data: Data, layout: str, of_folder: Callable[[Data], Origin]) -> Origin:
    """What `of_folder` finds in `data.root`, which it gets as a full path. `layout`: what messages say is expected.

    An archive is not looked into before its samples are read. Raises UserError if there is neither.
    """
    if not data.root:
        raise UserError(
            f"data.root: is not set. data.source={data.source} needs a folder, or an archive of one "
            f"({', '.join(SUFFIXES)}): {layout}."
        )
    root = root_of(data)
    if os.path.isdir(root):
        return of_folder(data.model_copy(update={"root": str(root)}))
    if not os.path.isfile(root):
        raise UserError(f"data.root: there is no {root} that can be read. Expected a folder or an archive: {layout}.")
    if not root.name.lower().endswith(SUFFIXES):
        raise UserError(
            f"data.root: {root} is neither a folder nor an archive by its name ({', '.join(SUFFIXES)}). "
            f"Expected: {layout}."
        )

    def read(into: Path) -> Samples:
        inside = _top(unpack(root, into / "unpacked"))
        try:
            samples = of_folder(data.model_copy(update={"root": str(inside)})).read(into)
        except UserError as error:  # of a place that is gone when the message is read
            raise UserError(str(error).replace(str(inside), str(root))) from None
        return replace(samples, name=samples.name.replace(str(inside), str(root)))

    return Origin(files=[root], read=read)


def _top(folder: Path) -> Path:
    """The single folder that all is in, if there is one, as archives are often made of a folder. Not the only class."""
    found = tree.visible(folder)
    if len(found) != 1 or not tree.is_folder(found[0]) or found[0].name in tree.SPLITS:
        return folder
    inside = Path(found[0].path)
    return inside if any(map(tree.is_folder, tree.visible(inside))) else folder
