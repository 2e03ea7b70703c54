"""DomainNet's lists of images: DOMAIN_train.txt and DOMAIN_test.txt."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fedbsd_dist.config import Data
from fedbsd_dist.data.listing import Entry, Listing
from fedbsd_dist.data.pixels import choose_classes
from fedbsd_dist.data.tree import SPLITS, file_size, visible
from fedbsd_dist.errors import UserError


class Line(NamedTuple):
    """One image of a list."""

    where: str
    """List and number of the line, for messages."""
    path: str
    name: str
    """Of the class: the folder that the image is in."""
    number: int
    """Of the class."""
    domain: int
    is_test: bool


def recognises(root: Path) -> bool:
    """Whether there is any such list."""
    return bool(_domains(root))


def read(root: Path, data: Data) -> Listing:
    """The images listed, of the classes wanted, in the classes' numbers' order if all are.

    Raises UserError, naming the list and the line, for a line that is no path and number, for a path that
    leads outside of `root` or nowhere, for an image that is listed twice, and for numbers and names of classes that do
    not agree.
    """
    domains = _domains(root)
    lists = {
        root / f"{name}_{split}.txt": (domain, is_test)
        for domain, name in enumerate(domains)
        for split, is_test in SPLITS.items()
    }
    lines = [line for file, kind in lists.items() for line in _lines(file, *kind)]
    names = _agreed_names(lines)
    _refuse_twice(lines)
    classes, label = choose_classes(names, data.classes, str(root))
    label_of = dict(zip(names, label.tolist(), strict=True))
    entries = [
        Entry(line.path, _size(root, line), label_of[line.name], line.domain, line.is_test)
        for line in lines
        if label_of[line.name] >= 0
    ]
    return Listing(root=root, entries=entries, classes=classes, domains=domains, lists=list(lists))


def _domains(root: Path) -> list[str]:
    names = {entry.name for entry in visible(root)}
    endings = [f"_{split}.txt" for split in SPLITS]
    return sorted({name.removesuffix(ending) for ending in endings for name in names if name.endswith(ending)})


def _lines(file: Path, domain: int, is_test: bool) -> Iterator[Line]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}). Each domain needs a list _train.txt and _test.txt."
        ) from None
    for count, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {count}"
        path, _, number = line.strip().rpartition(" ")
        if not number.isdecimal() or "/" not in path:
            raise UserError(
                f"{where}: expected CLASS/IMAGE, a path from the list's folder, and a number, found {line!r}."
            )
        parts = PurePosixPath(path.strip())
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
            raise UserError(f"{where}: {path} leads outside of the list's folder. Paths must stay inside.")
        yield Line(where, str(parts), parts.parent.name, int(number), domain, is_test)


def _agreed_names(lines: list[Line]) -> list[str]:
    """The classes' names by ascending number."""
    by_number: dict[int, Line] = {}
    by_name: dict[str, Line] = {}
    for line in lines:
        for first in (by_number.setdefault(line.number, line), by_name.setdefault(line.name, line)):
            if (first.number, first.name) != (line.number, line.name):
                raise UserError(
                    f"{line.where}: class {line.name} has number {line.number}, but {first.where} gives {first.name} "
                    f"the number {first.number}. Names of folders and numbers must agree in all lists."
                )
    return [by_number[number].name for number in sorted(by_number)]


def _refuse_twice(lines: list[Line]) -> None:
    """The same image in training and test would make the accuracy too good."""
    first: dict[str, Line] = {}
    for line in lines:
        other = first.setdefault(line.path, line)
        if other is not line:
            raise UserError(
                f"{line.where}: {line.path} is listed already in {other.where}. Remove one of the two lines."
            )


def _size(root: Path, line: Line) -> int:
    try:
        return file_size(root / line.path)
    except UserError as error:
        raise UserError(f"{line.where}: {error}") from None
