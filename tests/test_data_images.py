"""Folders of image files: every layout read as it is, decoded once, and refused with a remedy where it is wrong."""

import os
import shutil
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedbsd_dist.data
from fedbsd_dist.config import Data
from fedbsd_dist.data import cache, domains, folder, images, listing, sources
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError


def draw(path: Path, *, width: int = 6, height: int = 5, mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng([seed, *str(path.name).encode()]).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def plant(root: Path, *paths: str) -> Path:
    for seed, path in enumerate(paths):
        draw(root / path, seed=seed)
    return root


def read(root: Path, source: str = "folder", **options: Any) -> Samples:
    data = Data(source=source, root=str(root), cache=str(root.parent / "cache"), **options)  # type: ignore[arg-type]
    sources.prepare(data)
    return sources.load(data)


def read_domains(root: Path, **options: Any) -> Samples:
    return read(root, "domains", **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Without a split; names that sort otherwise as text than as numbers."""
    return plant(tmp_path / "root", "10/a.png", "9/c.PNG", "9/deep/b.bmp", "cat/d.webp", "cat/e.jpeg")


@pytest.fixture(autouse=True)
def _no_array_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_array_domains(monkeypatch, lambda root: False)


def stub_array_domains(monkeypatch: pytest.MonkeyPatch, recognises: Callable[[Path], bool], origin: Any = None) -> None:
    stub = types.ModuleType("array_domains")
    vars(stub).update(recognises=recognises, origin=origin)
    monkeypatch.setitem(sys.modules, "fedbsd_dist.data.array_domains", stub)
    monkeypatch.setattr(fedbsd_dist.data, "array_domains", stub, raising=False)


def decoded(files: list[Path], **options: Any) -> Any:
    """The images alone."""
    return images.decode(files, **options)[0]


def refuse_to_decode(*args: Any, **options: Any) -> None:
    raise AssertionError("decoded again")


def test_without_a_split_all_classes_are_read_in_order(root: Path) -> None:
    samples = read(root)
    paths = ["10/a.png", "9/c.PNG", "9/deep/b.bmp", "cat/d.webp", "cat/e.jpeg"]  # sorted as text
    assert samples.classes == ("9", "10", "cat")  # numbers by value
    assert samples.y.tolist() == [1, 0, 0, 2, 2]
    assert not samples.is_test.any()
    assert (samples.domains, samples.clients) == (("all",), ())
    assert samples.x.shape == (5, 5, 6, 3)
    for x, path in zip(samples.x, paths, strict=True):
        np.testing.assert_array_equal(x, np.asarray(Image.open(root / path).convert("RGB")))


def test_split_folders_make_the_test_set_and_may_lack_classes(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/emu/4.png")
    samples = read(root)
    assert samples.classes == ("cat", "dog", "emu")
    assert samples.y.tolist() == [0, 2, 0, 1]  # test/ comes before train/
    assert samples.is_test.tolist() == [True, True, False, False]


def test_what_is_no_image_is_ignored(root: Path) -> None:
    expected = read(root).identity
    plant(root, "__MACOSX/cat/x.png", ".git/x.png", "cat/.hidden.png", "cat/.thumbs/x.png", "stray.png")
    (root / "cat" / "labels.txt").write_text("none")
    assert read(root).identity == expected


def test_jpegs_go_by_all_their_suffixes(tmp_path: Path) -> None:
    (tmp_path / "root" / "cat").mkdir(parents=True)
    for suffix in (".jpg", ".jpeg", ".jpe", ".JFIF"):
        draw(tmp_path / "a.jpg").rename(tmp_path / "root" / "cat" / f"a{suffix}")
    assert len(read(tmp_path / "root").y) == 4


def test_other_files_in_the_classes_folders_are_told_of(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(root)
    assert "left out" not in capsys.readouterr().out
    for path in ("cat/labels.txt", "9/deep/b.svg", "9/c.heic", "10/.hidden.txt", "beside.csv"):
        (root / path).write_text("none")
    read(root, channels=3)
    assert "decoding 5 images" in (said := capsys.readouterr().out)
    assert "(other files, left out: 3)" in said
    read(root, classes=["cat"])
    assert "(other files, left out: 1)" in capsys.readouterr().out


def test_chosen_classes_keep_their_order_and_others_are_not_looked_into(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "10" / "a.png").write_bytes(b"damaged")
    samples = read(root, classes=["cat", "9"])
    assert samples.classes == ("cat", "9")
    assert samples.y.tolist() == [1, 1, 0, 0]
    with pytest.raises(UserError, match="has no class 'dog'"):
        read(root, classes=["dog"])


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "plane/1.png", "train/2.png")
    assert read(root).classes == ("plane", "train")


def test_train_alone_will_do_where_test_samples_are_drawn(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "train/cat/1.png")
    with pytest.raises(UserError, match=r"none named test/.*data\.test_fraction"):
        read(root)
    samples = read(root, test_fraction=0.2)
    assert samples.classes == ("cat",)
    assert not samples.is_test.any()


def test_identity_is_of_the_files_and_not_of_where_or_how_they_are_read(root: Path, tmp_path: Path) -> None:
    identity = read(root).identity
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    assert read(tmp_path / "elsewhere" / "copy").identity == identity
    assert read(root, image_size=4, channels=1).identity == identity
    assert read(root, classes=["9", "cat"]).identity != identity

    os.rename(root / "cat" / "d.webp", root / "cat" / "f.webp")
    assert read(root).identity != identity
    os.rename(root / "cat" / "f.webp", root / "cat" / "d.webp")
    assert read(root).identity == identity
    os.rename(root / "cat" / "d.webp", root / "9" / "d.webp")
    assert read(root).identity != identity
    os.rename(root / "9" / "d.webp", root / "cat" / "d.webp")
    draw(root / "9" / "c.PNG", width=6, height=5, mode="L")  # other bytes
    assert read(root, channels=3).identity != identity


def test_identity_is_of_what_is_in_a_file_and_not_of_its_size(root: Path) -> None:
    identities = set()
    for shade in (10, 11, 10):
        Image.new("L", (6, 5), shade).save(root / "cat" / "z.bmp")
        identities.add(read(root, image_size=4, channels=1).identity)
    assert len(identities) == 2


def test_size_and_channels_are_what_was_asked_for(tmp_path: Path) -> None:
    files = [
        draw(tmp_path / "a" / "1.png", width=9, height=7),
        draw(tmp_path / "a" / "2.png", width=4, height=4, mode="L"),
        draw(tmp_path / "a" / "3.png", width=5, height=8, mode="RGBA"),
        draw(tmp_path / "a" / "4.png", width=5, height=8, mode="P"),
    ]
    for channels, mode in ((1, "L"), (3, "RGB")):
        x = decoded(files, size=4, channels=channels, into=tmp_path)
        for i, file in enumerate(files):
            image = Image.open(file).convert(mode).resize((4, 4), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(x[i], np.asarray(image).reshape(4, 4, channels))


def test_many_images_keep_their_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    expected = np.arange(1200, dtype=np.uint16).reshape(-1, 1, 1, 1) % 251 + np.zeros((1, 2, 2, 1), np.uint16)
    files = [tmp_path / "in" / f"{i}.pgm" for i in range(len(expected))]
    for file, pixels in zip(files, expected.astype(np.uint8), strict=True):
        Image.fromarray(pixels[..., 0]).save(file)
    x = decoded(files, size=0, channels=0, into=tmp_path)
    np.testing.assert_array_equal(x, expected)
    assert capsys.readouterr() == (f"decoding 1,200 images of {tmp_path / 'in'} into {tmp_path}\n", "")


def test_orientation_in_exif_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert decoded([tmp_path / "a.jpg"], size=0, channels=0, into=tmp_path).shape == (1, 4, 6, 3)


def _cut(path: Path) -> None:
    draw(path, width=60, height=50)
    path.write_bytes(path.read_bytes()[:-4000])


def _bomb(path: Path) -> None:
    """A header that promises 10^10 pixels."""
    path.write_bytes(b"P5 100000 100000 255\n")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_cut, "x.png: cannot be read as an image .*truncated"),
        (lambda path: path.write_bytes(b""), "x.png: cannot be read as an image .UnidentifiedImageError"),
        (lambda path: path.write_text("<svg/>"), "x.png: cannot be read as an image .UnidentifiedImageError"),
        (_bomb, "x.png: cannot be read as an image .DecompressionBombError"),
        (lambda path: Image.fromarray(np.full((5, 6), 999, np.uint16)).save(path), "x.png: .*8 bits.*mode I;16"),
    ],
    ids=["cut short", "empty", "no image", "bomb", "16 bits"],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_bad_image_is_refused_by_name(tmp_path: Path, make: Callable[[Path], Any], says: str, place: str) -> None:
    files = [draw(tmp_path / "a.png"), tmp_path / "x.png"]
    make(files[1])
    with pytest.raises(UserError, match=says):
        decoded(files if place == "last" else files[::-1], size=0, channels=0, into=tmp_path)


@pytest.mark.parametrize(
    ("unlike", "says"),
    [
        ({"width": 7}, r"x\.png: is 7 x 5 pixels, but \S+a\.png, .* 6 x 5\. Set data\.image_size=N"),
        ({"mode": "L"}, r"x\.png: is grey, but \S+a\.png, .*is colour\. Set data\.channels=3"),
    ],
)
def test_image_unlike_the_first_is_refused_with_the_option(tmp_path: Path, unlike: Any, says: str) -> None:
    files = [draw(tmp_path / "a.png"), draw(tmp_path / "x.png", **unlike)]
    with pytest.raises(UserError, match=says):
        decoded(files, size=0, channels=0, into=tmp_path)


def test_float_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 6), 0.5, np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(UserError, match=r"x\.tiff: .*8 bits.*mode F"):
        decoded([tmp_path / "x.tiff"], size=4, channels=1, into=tmp_path)


def test_first_failure_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = draw(tmp_path / "a.png"), tmp_path / "b.png"
    bad.write_bytes(b"no image")
    opened: list[Any] = []
    really_open = Image.open
    monkeypatch.setattr(Image, "open", lambda file: (opened.append(file), really_open(file))[1])
    with pytest.raises(UserError, match=r"b\.png"):
        decoded([good, bad] + [good] * 20_000, size=0, channels=0, into=tmp_path)
    assert len(opened) < 10_000, "all the rest was decoded"


def test_no_room_is_an_error_and_not_the_end_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"data\.cache: cannot write .* \(No space left on device\)"):
        decoded([draw(tmp_path / "a.png")], size=0, channels=0, into=tmp_path)


def test_warm_cache_is_not_decoded_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = read(root)
    monkeypatch.setattr(listing, "decode", refuse_to_decode)
    warm = read(root)
    assert isinstance(warm.x, np.memmap)
    assert [entry.name for entry in (root.parent / "cache").glob(".*")] == [cache.LOCKS]
    np.testing.assert_array_equal(warm.x, cold.x)
    np.testing.assert_array_equal(warm.sums[:, 0], warm.x.sum(axis=(1, 2)))
    assert (warm.identity, warm.classes, warm.name) == (cold.identity, cold.classes, cold.name)
    with pytest.raises(AssertionError, match="decoded again"):
        read(root, channels=1)


def test_changed_file_is_decoded_anew(root: Path) -> None:
    before = read(root)
    draw(root / "10" / "a.png", seed=7)
    after = read(root)
    np.testing.assert_array_equal(after.x[0], np.asarray(Image.open(root / "10" / "a.png")))
    assert not np.array_equal(after.x[0], before.x[0])


def test_flipped_byte_in_the_cache_is_mended(root: Path) -> None:
    good = np.array(read(root).x)
    (file,) = (root.parent / "cache").glob("folder-*/x.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(read(root).x, good)


def test_cache_may_be_given_relative_to_here_or_behind_a_link(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    data = Data(source="folder", root="root", cache="link")
    sources.prepare(data)
    assert len(sources.load(data).x) == 5


def test_domains_are_folders(tmp_path: Path) -> None:
    root = plant(
        tmp_path / "root",
        *("sketch/train/cat/1.png", "sketch/test/cat/2.png", "sketch/test/dog/3.png"),
        *("clipart/train/cat/4.png", "clipart/train/emu/5.png", "clipart/test/emu/6.png"),
    )
    samples = read_domains(root)
    assert samples.domains == ("clipart", "sketch")
    assert samples.classes == ("cat", "dog", "emu")
    assert samples.domain.tolist() == [0, 0, 0, 1, 1, 1]
    assert samples.y.tolist() == [2, 0, 2, 0, 1, 0]
    assert samples.is_test.tolist() == [True, False, False, True, True, False]
    chosen = read_domains(root, classes=["emu"])
    assert (chosen.domains, chosen.domain.tolist()) == (("clipart", "sketch"), [0, 0])


def test_domains_need_no_split_but_all_or_none(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "art/cat/1.png", "photo/cat/2.png")
    assert not read_domains(root).is_test.any()
    plant(root, "sketch/train/cat/1.png", "sketch/test/cat/2.png")
    with pytest.raises(UserError, match="art: has no folder test/, but other domains do"):
        read_domains(root)
    assert read_domains(root, test_fraction=0.2).is_test.sum() == 1


LISTS = {
    "clipart_train.txt": "clipart/cat/1.png 7\nclipart/red dog/2.png 3\n",
    "clipart_test.txt": "clipart/cat/3.png 7\r\n\n",
    "real_train.txt": "real/red dog/4.png 3",
    "real_test.txt": "real/emu/5.png 11\n",
}


def write_lists(root: Path, changes: Mapping[str, str] | None = None) -> Path:
    for name, text in {**LISTS, **(changes or {})}.items():
        (root / name).write_text(text, newline="")
    return root


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    files = ("clipart/cat/1.png", "clipart/red dog/2.png", "clipart/cat/3.png", "real/red dog/4.png", "real/emu/5.png")
    return write_lists(plant(tmp_path / "root", *files, "real/unlisted/6.png"))


def test_lists_say_which_images_there_are(listed: Path) -> None:
    samples = read_domains(listed)
    assert samples.domains == ("clipart", "real")
    assert samples.classes == ("red dog", "cat", "emu")  # by number
    assert samples.y.tolist() == [1, 1, 0, 2, 0]
    assert samples.domain.tolist() == [0, 0, 0, 1, 1]
    assert samples.is_test.tolist() == [False, True, False, True, False]
    np.testing.assert_array_equal(samples.x[3], np.asarray(Image.open(listed / "real/emu/5.png")))


def test_changed_list_makes_other_samples(listed: Path) -> None:
    before = read_domains(listed)
    write_lists(listed, {"clipart_train.txt": "clipart/cat/3.png 7\n", "clipart_test.txt": "clipart/cat/1.png 7\n"})
    after = read_domains(listed)
    assert after.is_test.tolist() == [True, False, True, False]
    assert after.identity != before.identity


def test_lists_of_chosen_classes_need_no_other_files(listed: Path) -> None:
    (listed / "real/emu/5.png").unlink()
    samples = read_domains(listed, classes=["cat", "red dog"])
    assert (samples.classes, samples.y.tolist()) == (("cat", "red dog"), [0, 0, 1, 1])


def test_identity_is_also_of_names_that_are_in_no_path(listed: Path) -> None:
    identity = read_domains(listed).identity
    for split in ("train", "test"):
        os.rename(listed / f"clipart_{split}.txt", listed / f"drawing_{split}.txt")
    assert read_domains(listed).identity != identity


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"real_test.txt": "\nreal/emu/5.png\n"}, r"real_test\.txt, line 2: expected CLASS/IMAGE"),
        ({"real_test.txt": "real/emu/5.png -1"}, r"real_test\.txt, line 1: expected CLASS/IMAGE"),
        ({"real_test.txt": "5.png 11"}, r"real_test\.txt, line 1: expected CLASS/IMAGE"),
        ({"real_test.txt": "real/../../x.png 11"}, r"real_test\.txt, line 1: .*leads outside"),
        ({"real_test.txt": "/etc/x.png 11"}, r"real_test\.txt, line 1: .*leads outside"),
        ({"real_test.txt": "..\\x/x.png 11"}, r"real_test\.txt, line 1: .*leads outside"),
        ({"real_test.txt": "real/emu/9.png 11"}, r"real_test\.txt, line 1: \S+9\.png: cannot be read .No such file"),
        ({"real_test.txt": "real/emu/5.png 7"}, r"real_test\.txt, line 1: class emu has number 7, but .*cat"),
        ({"real_test.txt": "real/cat/5.png 11"}, r"real_test\.txt, line 1: class cat has number 11, but .*line 1"),
        ({"art_train.txt": "clipart/cat/1.png 7"}, r"art_test\.txt: cannot be read"),
        (
            {"clipart_test.txt": "clipart/cat/3.png 7\nclipart/./cat/1.png 7"},
            r"clipart_test\.txt, line 2: clipart/cat/1\.png is listed already in \S+clipart_train\.txt, line 1",
        ),
        (
            {"real_test.txt": "real/emu/5.png 11\n\nreal/emu/5.png 11"},
            r"real_test\.txt, line 3: real/emu/5\.png is listed already in \S+real_test\.txt, line 1",
        ),
        (
            {"real_test.txt": "clipart/cat/1.png 7"},
            r"real_test\.txt, line 1: clipart/cat/1\.png is listed already in \S+clipart_train\.txt, line 1",
        ),
        (dict.fromkeys(LISTS, ""), "no images"),
    ],
)
def test_wrong_list_is_refused_by_line(listed: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_domains(write_lists(listed, changes))


def test_list_that_is_no_text_is_refused(listed: Path) -> None:
    (listed / "real_test.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"real_test\.txt: cannot be read"):
        read_domains(listed)


def test_array_files_are_left_to_their_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cache.Origin(files=[], read=lambda into: pytest.fail("not yet"))
    asked: list[object] = []
    stub_array_domains(
        monkeypatch,
        lambda root: (asked.append(root), True)[1],
        lambda data: (asked.append(data.root), expected)[1],
    )
    assert domains.origin(Data(source="domains", root=str(tmp_path))) is expected
    assert asked == [tmp_path.resolve(), str(tmp_path.resolve())]


@pytest.mark.parametrize("source", ["folder", "domains"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "data.root: is not set.*ROOT/"),
        ("none", "data.root: there is no .*none that can be read.*ROOT/"),
        ("file.rar", r"data.root: .*file\.rar is neither a folder nor an archive.*\.zip.*ROOT/"),
    ],
)
def test_root_that_is_none_is_refused(tmp_path: Path, source: str, given: str, says: str) -> None:
    (tmp_path / "file.rar").write_bytes(b"")
    data = Data(source=source, root=given and str(tmp_path / given), cache=str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=says):
        sources.prepare(data)


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        ([], "root: holds no folder of a class"),
        (["1.png"], "root: holds no folder of a class"),
        (["train/1.png", "test/1.png"], "root/test: holds no folder of a class"),
        (["test/cat/1.png"], "has a folder test/ but none named train/"),
        (["train/cat/1.png", "test/cat/1.png", "val/cat/1.png"], "holds val/ beside or instead of"),
        (["Train/cat/1.png", "Test/cat/1.png"], "holds Test/ beside or instead of"),
        (["training/cat/1.png", "testing/cat/1.png"], "holds testing/ beside or instead of"),
        (["cat/1.png", "dog/1.txt"], r"root/dog: is the folder of a class and holds no images"),
    ],
)
def test_folder_without_what_is_expected_is_refused(tmp_path: Path, paths: list[str], says: str) -> None:
    (tmp_path / "root").mkdir()
    for path in paths:
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    with pytest.raises(UserError, match=says):
        folder.origin(Data(source="folder", root=str(tmp_path / "root")))


def test_links_are_followed_unless_they_lead_nowhere(root: Path, tmp_path: Path) -> None:
    draw(tmp_path / "there" / "b.png")
    (root / "cat" / "linked").symlink_to(tmp_path / "there")
    assert len(read(root).y) == 6
    (root / "cat" / "x.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"cat/x\.png: cannot be read .No such file"):
        read(root)


def test_links_in_a_circle_and_pipes_are_refused(root: Path) -> None:
    for target, says in ((".", "is a link to a folder that it is in"), ("self", "Too many levels")):
        (root / "cat" / "self").symlink_to(target)
        with pytest.raises(UserError, match=rf"cat/self: .*{says}"):
            read(root)
        (root / "cat" / "self").unlink()
    os.mkfifo(root / "cat" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: .*is no file"):
        read(root)


@pytest.mark.parametrize("paths", [["cat/1.png"], ["train/cat/1.png", "test/cat/2.png"], ["1.png"]])
def test_unknown_layout_of_domains_is_refused_with_what_was_found(tmp_path: Path, paths: list[str]) -> None:
    root = plant(tmp_path / "root", *paths)
    with pytest.raises(UserError, match=r"Expected: ROOT/DOMAIN/.*DomainNet.*npz.*Found: ") as caught:
        read_domains(root)
    assert all(entry.name in str(caught.value) for entry in root.iterdir())


def test_samples_of_files_need_no_torch_and_options_no_pillow() -> None:
    code = "import sys, fedbsd_dist.data.sources; sys.exit(any(m in sys.modules for m in ('torch', 'PIL', 'tqdm')))"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
