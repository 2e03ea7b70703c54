"""Archives in place of folders: read like them, and never written outside of the cache."""

import io
import shutil
import stat
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedbsd_dist.data
from fedbsd_dist.config import Data
from fedbsd_dist.data import listing, sources
from fedbsd_dist.data.cache import LOCKS
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz", ".tar.bz2": "w:bz2", ".TAR.GZ": "w:gz"}


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {"train/cat/1.png": png(1), "train/dog/2.png": png(2), "test/cat/3.png": png(3)}


def info(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size = size
    for field, value in fields.items():
        setattr(found, field, value)
    return found


def pack(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(top + name, content)
        return path
    suffix = next(suffix for suffix in TAR_MODES if path.name.endswith(suffix))
    with tarfile.open(path, TAR_MODES[suffix]) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            tar.addfile(info(top + name, len(content)), io.BytesIO(content))
    return path


def unpacked(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def read(root: Path, tmp_path: Path, source: str = "folder", **options: Any) -> Samples:
    data = Data(source=source, root=str(root), cache=str(tmp_path / "cache"), **options)  # type: ignore[arg-type]
    sources.prepare(data)
    return sources.load(data)


def made(tmp_path: Path) -> list[Path]:
    """What is in the cache."""
    return [entry for entry in (tmp_path / "cache").iterdir() if entry.name != LOCKS]


@pytest.fixture(autouse=True)
def _no_array_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = types.ModuleType("array_domains")
    vars(stub).update(recognises=lambda root: False)
    monkeypatch.setitem(sys.modules, "fedbsd_dist.data.array_domains", stub)
    monkeypatch.setattr(fedbsd_dist.data, "array_domains", stub, raising=False)


@pytest.mark.parametrize("suffix", [*TAR_MODES, ".zip"])
@pytest.mark.parametrize("top", ["", "./", "photos/"])
def test_archive_is_read_like_its_folder(tmp_path: Path, suffix: str, top: str) -> None:
    folder = read(unpacked(tmp_path / "folder", FILES), tmp_path)
    packed = read(pack(tmp_path / f"photos{suffix}", FILES, top), tmp_path)
    np.testing.assert_array_equal(packed.x, folder.x)
    assert packed.y.tolist() == folder.y.tolist()
    assert packed.is_test.tolist() == folder.is_test.tolist() == [True, False, False]
    assert (packed.identity, packed.classes) == (folder.identity, folder.classes)
    assert packed.name == str(tmp_path / f"photos{suffix}")


def test_single_folder_that_is_a_split_is_no_root(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a.zip", {"train/cat/1.png": png(), "train/dog/2.png": png()})
    with pytest.raises(UserError, match="none named test/"):
        read(packed, tmp_path)


@pytest.mark.parametrize("top", ["", "photos/"])
def test_single_class_is_no_root(tmp_path: Path, top: str) -> None:
    packed = pack(tmp_path / "a.zip", {"cat/1.png": png(), "cat/2.png": png(1)}, top)
    assert read(packed, tmp_path, test_fraction=0.5).classes == ("cat",)


def test_domains_may_be_packed_in_any_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {f"{domain}/{path}": content for domain in ("art", "photo") for path, content in FILES.items()}
    assert read(pack(tmp_path / "tree.tar", tree), tmp_path, "domains").domains == ("art", "photo")
    lists = {"art_train.txt": b"art/cat/1.png 0", "art_test.txt": b"art/cat/2.png 0"}
    files = {**lists, "art/cat/1.png": png(), "art/cat/2.png": png()}
    assert read(pack(tmp_path / "lists.zip", files), tmp_path, "domains").is_test.tolist() == [False, True]


def test_nothing_but_the_cache_stays_and_warm_it_is_not_unpacked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(tmp_path / "photos.tar", FILES)
    read(packed, tmp_path)
    (folder,) = made(tmp_path)
    assert sorted(entry.suffix for entry in folder.iterdir()) == [".json"] + [".npy"] * 6

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(listing, "decode", refuse)
    assert len(read(packed, tmp_path).x) == 3
    pack(tmp_path / "photos.tar", {**FILES, "test/dog/4.png": png(4)})
    with pytest.raises(AssertionError, match="decoded again"):
        read(packed, tmp_path)


def test_messages_speak_of_the_archive_and_not_of_where_it_was_unpacked(tmp_path: Path) -> None:
    packed = pack(tmp_path / "photos.tar", {**FILES, "train/dog/2.png": b"damaged"}, "photos/")
    with pytest.raises(UserError, match=r"^\S+/photos\.tar/train/dog/2\.png: cannot be read") as caught:
        read(packed, tmp_path)
    assert "unpacked" not in str(caught.value)
    assert made(tmp_path) == []


ESCAPING = ["../evil.png", "TMP/evil.png", "cat/../../evil.png", "..\\evil.png", "cat\\..\\..\\evil.png"]
ESCAPING += ["C:/evil.png", "c:evil.png", "\\\\host\\evil.png"]


@pytest.mark.parametrize("name", ESCAPING)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_member_that_leads_outside_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    name = name.replace("TMP", str(tmp_path))
    packed = pack(tmp_path / "in" / f"a{suffix}", {**FILES, name: b"evil"})
    _assert_refused(packed, tmp_path, name)


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, ".."),
        (tarfile.SYMTYPE, "1.png"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
    ],
)
def test_member_of_a_tar_that_is_no_file_is_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        tar.addfile(info("cat/1.png", 4), io.BytesIO(b"abcd"))
        tar.addfile(info("cat/away", type=kind, linkname=target))
        tar.addfile(info("cat/away/evil.png", 4), io.BytesIO(b"evil"))
    _assert_refused(tmp_path / "in" / "a.tar", tmp_path, "cat/away", "a link or a device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
@pytest.mark.parametrize("name", ["cat/away", "cat/away/"])
def test_member_of_a_zip_that_is_no_file_is_refused(tmp_path: Path, kind: int, name: str) -> None:
    (tmp_path / "in").mkdir()
    link = zipfile.ZipInfo(name)
    link.create_system, link.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as packed:
        packed.writestr(link, "..")
    _assert_refused(tmp_path / "in" / "a.zip", tmp_path, name, "a link or a device")


def _assert_refused(packed: Path, tmp_path: Path, name: str, says: str = "outside of the folder") -> None:
    with pytest.raises(UserError, match=says) as caught:
        read(packed, tmp_path)
    assert str(packed) in str(caught.value)
    assert repr(name) in str(caught.value)
    shutil.rmtree(tmp_path / "cache" / LOCKS)
    assert [path for path in tmp_path.rglob("*") if path.name != "cache"] == [packed.parent, packed]


def _cut(keep: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * keep)]


def _flip(place: float) -> Callable[[bytes], bytes]:
    def spoil(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[int(len(content) * place)] ^= 0xFF
        return bytes(changed)

    return spoil


def _blot(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 1000 + content[middle + 1000 :]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar.bz2", ".zip"])
@pytest.mark.parametrize(
    "spoil",
    [_cut(0), _cut(0.5), lambda content: content[:-1], _flip(0.3), _flip(0.9), _blot, lambda content: b"no archive"],
    ids=[
        "empty",
        "half",
        "one byte short",
        "a byte changed",
        "a later byte changed",
        "a stretch overwritten",
        "another file",
    ],
)
def test_damaged_archive_is_refused(tmp_path: Path, suffix: str, spoil: Callable[[bytes], bytes]) -> None:
    numbers = " ".join(str(i * i) for i in range(60_000)).encode()  # more than is read ahead while opening
    packed = pack(tmp_path / f"a{suffix}", {**FILES, "numbers.txt": numbers})
    packed.write_bytes(spoil(packed.read_bytes()))
    with pytest.raises(UserError, match="is damaged or not what its name says"):
        read(packed, tmp_path)


def test_checksum_of_a_compressed_tar_is_verified(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a.tar.gz", {**FILES, "zeros": bytes(300_000)})
    content = bytearray(packed.read_bytes())
    content[-8] ^= 1
    packed.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read(packed, tmp_path)


def test_tar_is_refused_wherever_it_is_cut_and_for_a_damaged_header(tmp_path: Path) -> None:
    """A cut at the end of a member is a complete tar to `tarfile`, and so is one before a damaged header."""
    packed = pack(tmp_path / "a.tar", FILES)
    whole = packed.read_bytes()
    with tarfile.open(packed) as tar:
        members = tar.getmembers()
    headers = [member.offset for member in members]
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    for cut in (0, 100, headers[1], headers[1] + 100, headers[1] + 512, headers[2] + 600, end - 1, end):
        packed.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="is damaged"):
            read(packed, tmp_path)
    for header in headers:
        packed.write_bytes(whole[:header] + b"\xff" + whole[header + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            read(packed, tmp_path)
    packed.write_bytes(whole)
    assert len(read(packed, tmp_path).x) == 3


def test_zip_with_a_password_is_refused(tmp_path: Path) -> None:
    packed = pack(tmp_path / "a.zip", FILES)
    content = bytearray(packed.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag, in the first entry of the directory
    packed.write_bytes(content)
    with pytest.raises(UserError, match="locked by a password"):
        read(packed, tmp_path)


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_empty_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match=rf"a{suffix}: holds no folder of a class"):
        read(pack(tmp_path / f"a{suffix}", {}), tmp_path)


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["cat", "cat/1.png"], "another member is a folder where this one needs a file"),
        (["cat", "cat/deep/1.png"], "another member is a folder where this one needs a file"),
        (["cat/1.png", "cat"], "another member is a folder where this one needs a file"),
        ([f"cat/{'x' * 300}.png"], "its name is too long"),
        ([f"{'x' * 300}/1.png"], "its name is too long"),
    ],
)
def test_member_with_a_name_that_cannot_be_had_is_refused(
    tmp_path: Path, suffix: str, names: list[str], says: str
) -> None:
    packed = pack(tmp_path / f"a{suffix}", dict.fromkeys(names, png()))
    with pytest.raises(UserError, match=says) as caught:
        read(packed, tmp_path)
    assert str(caught.value).startswith(f"{packed}: its member {names[-1]!r} cannot be unpacked")
    assert "data.cache" not in str(caught.value)


def test_no_room_to_unpack_is_not_blamed_on_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"No space left on device.*Set data\.cache to a folder with room"):
        read(pack(tmp_path / "a.tar", FILES), tmp_path)


@pytest.mark.parametrize(("source", "tops"), [("folder", [""]), ("domains", ["art/", "photo/"])])
def test_cache_made_with_test_samples_drawn_is_not_served_without(tmp_path: Path, source: str, tops: list[str]) -> None:
    packed = pack(tmp_path / "a.tar", {f"{top}train/{name}/1.png": png() for top in tops for name in ("cat", "dog")})
    assert not read(packed, tmp_path, source, test_fraction=0.5).is_test.any()
    with pytest.raises(UserError, match="none named test/"):
        read(packed, tmp_path, source)
