"""Archives from anywhere unpacked, never outside of their folder."""

import errno
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from fedbsd_dist.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
BLOCK = 1 << 20
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, NotImplementedError),
)
"""What readers of archives raise for damaged ones, apart from an OSError without a number."""

CLASH = "another member is a folder where this one needs a file, or the other way round"
FAULTS = {
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), CLASH),
    errno.ENAMETOOLONG: "its name is too long",
}
"""What is wrong with a member that cannot be written, by the number of the OSError."""


class Member(NamedTuple):
    """What an archive holds under one name."""

    name: str
    is_folder: bool
    is_file: bool
    open: Callable[[], "IO[bytes] | None"]


def unpack(archive: Path, into: Path) -> Path:
    """Write all files of `archive` to the new folder `into`, which is returned.

    Raises UserError for an archive that is damaged, cut short or locked by a password, for a member that is
    neither a file nor a folder, would land outside of `into` or has a name that cannot be had, and where it cannot be
    written.
    """
    print(f"unpacking {archive} into {into}")
    members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    try:
        into.mkdir(parents=True)
        with closing(members(archive)) as found:
            for member in found:
                path = into / _refuse_unsafe(archive, member)
                with _telling_of(archive, member):
                    _write(member, path)
    except OSError as error:
        if error.errno is None:  # the readers' own, about what they read
            raise _damaged(archive, error) from None
        raise UserError(
            f"{archive}: cannot be unpacked into {into} ({error}). "
            f"Set data.cache to a folder with room, or unpack it yourself and set data.root to the folder."
        ) from None
    except DAMAGED as error:
        raise _damaged(archive, error) from None
    return into


@contextmanager
def _telling_of(archive: Path, member: Member) -> Iterator[None]:
    """Blame the archive for what no other folder would mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in FAULTS:
            raise
        raise UserError(
            f"{archive}: its member {member.name!r} cannot be unpacked, for {FAULTS[error.errno]}. "
            f"Make an archive without that."
        ) from None


def _write(member: Member, path: Path) -> None:
    """Not by the archive readers' own means: until Python 3.12 they trust what is in an archive."""
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None, member
    with source, path.open("wb") as target:
        shutil.copyfileobj(source, target, BLOCK)


def _refuse_unsafe(archive: Path, member: Member) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or re.search(r"\\|\0|^[A-Za-z]:", member.name):
        wrong = "would be written outside of the folder it is unpacked to"
    elif not member.is_folder and not member.is_file:
        wrong = "is neither a file nor a folder, but a link or a device"
    else:
        return path
    raise UserError(f"{archive}: its member {member.name!r} {wrong}. Do not trust it; make an archive without that.")


def _tar_members(archive: Path) -> Generator[Member, None, None]:
    with tarfile.open(archive, "r:*") as tar:
        for info in tar:
            yield Member(info.name, info.isdir(), info.isfile(), partial(tar.extractfile, info))
        # A damaged header looks to `tarfile` like the end; the real one is a block of zeros. Reading on to
        # the last byte has the checksum of a compressed archive verified.
        file = tar.fileobj
        assert file is not None
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends before its end is marked")
        while file.read(BLOCK):
            pass


def _zip_members(archive: Path) -> Generator[Member, None, None]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise UserError(f"{archive}: is locked by a password. Unpack it, and set data.root to the folder.")
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            is_folder = info.is_dir() and is_plain
            yield Member(info.filename, is_folder, is_plain, partial(file.open, info))


def _damaged(archive: Path, error: Exception) -> UserError:
    return UserError(f"{archive}: is damaged or not what its name says ({error}). Fetch or make it again.")
