"""Folders of image files: which of them are splits and which are classes, and the images inside."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedbsd_dist.errors import UserError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
SPLITS = {"train": False, "test": True}
"""Folders that hold those of the classes, and whether their images are test samples."""
ODD_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation")
"""Names that no class goes by, in any case, if the folder holds folders."""
LAYOUT = "[train|test/]CLASS/IMAGE"


class ClassFolder(NamedTuple):
    """The images of one class in one split; the class's name is the folder's."""

    path: Path
    is_test: bool


class Found(NamedTuple):
    """What is in a class's folder."""

    images: list[tuple[str, int]]
    """Path and bytes of each, in no order. Texts, for there may be very many and a Path of each takes longer than
    the walk."""
    num_others: int
    """Files that are neither images by their names nor hidden."""


def class_folders(root: Path, held_out: bool) -> list[ClassFolder]:
    """Of root/[train|test/]CLASS. `held_out`: whether train/ alone will do, for test samples are drawn from it.

    A folder train/ or test/ is that of a class if it holds images itself, beside folders of other names.
    Raises UserError if there is none, for test/ alone, and where classes and splits cannot be told apart.
    """
    tops = folders(root)
    if {top.name for top in tops} <= set(SPLITS):
        splits = tops
    else:
        splits = [top for top in tops if top.name.lower() in ODD_SPLITS and not _holds_images(top)]
    if not splits:
        return [ClassFolder(top, False) for top in _refuse_none(tops, root)]
    for top in tops:
        if top.name not in SPLITS or top not in splits:
            raise UserError(
                f"{root}: holds {top.name}/ beside or instead of splits named train/ and test/. Where classes are in "
                f"splits, these two are the only folders read: rename {top.name}/, or move it elsewhere."
            )
    names = {split.name for split in splits}
    if "train" not in names:
        raise UserError(
            f"{root}: has a folder test/ but none named train/. Add it, or set data.root to a folder "
            f"that holds those of the classes, and data.test_fraction to draw the test samples from them."
        )
    if "test" not in names and not held_out:
        raise UserError(
            f"{root}: has a folder train/ but none named test/. Add it, or set data.test_fraction "
            f"(0.2, say) to draw the test samples from those of train/."
        )
    return [ClassFolder(path, SPLITS[split.name]) for split in splits for path in _refuse_none(folders(split), split)]


def folders(root: Path) -> list[Path]:
    """Visible folders in `root`, sorted by name."""
    return sorted(Path(entry.path) for entry in visible(root) if is_folder(entry))


def images(folder: Path) -> Found:
    """The image files in `folder`, however deep.

    Raises UserError if there is none, and for what has an image's name and is no file that can be read.
    """
    pending, found, num_others = [folder], [], 0
    while pending:
        for entry in visible(pending.pop()):
            if is_folder(entry):
                pending.append(Path(entry.path))
            elif _is_named_image(entry.name):
                found.append((entry.path, file_size(entry.path)))
            else:
                num_others += 1
    if not found:
        raise UserError(
            f"{folder}: is the folder of a class and holds no images ({', '.join(SUFFIXES)}). "
            f"Add some, or remove the folder, or set data.classes to the others."
        )
    return Found(found, num_others)


def file_size(path: str | Path) -> int:
    """Bytes of a plain file. Raises UserError if it is none: a link that leads nowhere, or a pipe."""
    try:
        facts = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). Restore the file or remove it.") from None
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path}: is named like an image and is no file. Remove it.")
    return facts.st_size


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Or a link to one. Raises UserError for a link to a folder it is in: the walk would never end."""
    try:
        if not entry.is_dir():
            return False
        circle = entry.is_symlink() and Path(entry.path).parent.resolve().is_relative_to(Path(entry.path).resolve())
    except OSError as error:
        raise UserError(f"{entry.path}: cannot be read ({error.strerror or error}). Mend or remove it.") from None
    if circle:
        raise UserError(f"{entry.path}: is a link to a folder that it is in itself. Remove it.")
    return True


def visible(folder: Path) -> list["os.DirEntry[str]"]:
    """What is in `folder`, apart from hidden files and what macOS adds to archives."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror or error}). Make it readable or remove it."
        ) from None


def _holds_images(folder: Path) -> bool:
    return any(_is_named_image(entry.name) for entry in visible(folder))


def _is_named_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _refuse_none(classes: Sequence[Path], root: Path) -> Sequence[Path]:
    if not classes:
        raise UserError(f"{root}: holds no folder of a class. Expected in it: {LAYOUT}.")
    return classes
