"""Arrays as a source: every documented form is taken as meant, and everything else refused by name."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbsd_dist.config import Data
from fedbsd_dist.data import array_domains, sources
from fedbsd_dist.data.array_files import read_array_file
from fedbsd_dist.data.arrays import samples_of
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

X = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
Y = np.array([2, 0, 1, 1, 2], np.int32)
PLAIN: Mapping[str, Any] = {"x": X, "y": Y}


def refused(arrays: Mapping[str, Any], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        samples_of(arrays, "here", Data(**options))
    assert str(caught.value).startswith(("here", "data.classes"))
    return str(caught.value)


def test_images_and_labels_alone_are_enough() -> None:
    samples = samples_of(PLAIN, "here", Data())
    np.testing.assert_array_equal(samples.x, X[..., None])
    assert (samples.y.tolist(), samples.y.dtype) == (Y.tolist(), np.int64)
    assert (samples.classes, samples.domains, samples.clients) == (("0", "1", "2"), ("all",), ())
    assert not samples.is_test.any()
    assert samples.name == "here"


def test_every_key_is_taken_as_meant() -> None:
    samples = samples_of(
        {
            **PLAIN,
            "client": [10, 9, 10, 2, 2],  # as numbers 2 < 9 < 10, as texts not
            "domain": np.array(["photo", "art", "art", "art", "photo"]),
            "split": np.array(["test", "train", "train", "test", "train"]),
            "classes": ["cat", "dog", "owl", "unseen"],
        },
        "here",
        Data(),
    )
    assert (samples.clients, samples.client.tolist()) == (("2", "9", "10"), [2, 1, 2, 0, 0])
    assert (samples.domains, samples.domain.tolist()) == (("art", "photo"), [1, 0, 0, 0, 1])
    assert samples.is_test.tolist() == [True, False, False, True, False]
    assert samples.classes == ("cat", "dog", "owl", "unseen")


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64])
def test_one_is_test(dtype: Any) -> None:
    split = np.array([0, 1, 1, 0, 0], dtype)
    assert samples_of({**PLAIN, "split": split}, "here", Data()).is_test.tolist() == [False, True, True, False, False]


def test_classes_size_and_channels_are_honoured_and_every_column_follows() -> None:
    arrays = {**PLAIN, "client": list("aabbc"), "domain": [5, 5, 6, 6, 7], "split": [1, 0, 0, 0, 1]}
    samples = samples_of(arrays, "here", Data(classes=["2", "0"], image_size=8, channels=3))
    assert samples.x.shape == (3, 8, 8, 3)
    assert samples.classes == ("2", "0")
    assert samples.y.tolist() == [0, 1, 0]
    assert (samples.clients, samples.client.tolist()) == (("a", "c"), [0, 0, 1])
    assert [samples.domains[k] for k in samples.domain] == ["5", "5", "7"]
    assert samples.is_test.tolist() == [True, False, True]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"label": Y}, r"unknown key 'label'.*x, y, client, domain, split, classes"),
    "float images": ({"x": X / 255}, r"x: is float64 \[5, 4, 3\], expected uint8.*multiply by 255"),
    "wide images": ({"x": X.astype(np.int64)}, r"x: is int64 .*expected uint8"),
    "two channels": ({"x": X[..., None].repeat(2, 3)}, r"x: is uint8 \[5, 4, 3, 2\].*1 or 3 channels"),
    "channels first": ({"x": np.zeros((5, 3, 8, 8), np.uint8)}, r"x: .*channels, which come last"),
    "flat images": ({"x": X.reshape(5, -1)}, r"x: is uint8 \[5, 12\]"),
    "ragged": ({"x": [[1], [1, 2]]}, r"x: list cannot become an array"),
    "float labels": ({"y": Y / 1}, r"y: is float64 \[5\], expected integers \[5\]"),
    "column of labels": ({"y": Y[:, None]}, r"y: is int32 \[5, 1\]"),
    "too few labels": ({"y": Y[:4]}, r"y: is int32 \[4\], expected integers \[5\]"),
    "negative label": ({"y": Y - 1}, r"sample 1 has label -1"),
    "label without a name": ({"classes": ["a", "b"]}, r"sample 0 has label 2.*0 to 1 \(2 samples"),
    "giant label": ({"y": Y + np.int64(2**40)}, r"y: label 1099511627778 is too large"),
    "short client": ({"client": [1, 2]}, r"client: is int64 \[2\], expected integers or strings \[5\]"),
    "float domain": ({"domain": np.zeros(5)}, r"domain: is float64"),
    "object domain": ({"domain": np.array(list("abcde"), object)}, r"domain: is object"),
    "split of words": (
        {"split": ["train", "test", "val", "val", "train"]},
        r"split: sample 2 has val, expected",
    ),
    "split of numbers": ({"split": [0, 1, 2, 0, 0]}, r"split: sample 2 has 2"),
    "float split": ({"split": np.zeros(5)}, r"split: is float64"),
    "numbered classes": ({"classes": [0, 1, 2]}, r"classes: is int64 \[3\], expected strings"),
    "no classes": ({"classes": np.array([], "U1")}, r"classes: is <U1 \[0\]"),
    "class twice": ({"classes": ["a", "b", "a"]}, r"classes: 'a' is there twice"),
    "nothing": ({"x": X[:0], "y": Y[:0]}, "holds no samples"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_wrong_arrays_are_refused_by_name(change: dict[str, Any], says: str) -> None:
    assert re.search(says, refused({**PLAIN, **change}))


@pytest.mark.parametrize("key", ["x", "y"])
def test_missing_key_is_named(key: str) -> None:
    assert f"has no {key}" in refused({k: v for k, v in PLAIN.items() if k != key})


def test_labels_out_of_range_are_refused_whichever_classes_are_wanted() -> None:
    """Neither dropped like the samples of classes that are not wanted, nor taken for another class."""
    for wrong in (-1, 3):
        arrays = {"x": X, "y": np.array([0, 1, 2, wrong, 0]), "classes": ["a", "b", "c"]}
        assert f"sample 3 has label {wrong}" in refused(arrays, classes=["a"])


def test_wanted_classes_without_a_sample_are_refused() -> None:
    assert "['unseen']" in refused({**PLAIN, "classes": ["a", "b", "c", "unseen"]}, classes=["unseen"])
    assert "no class 'z'" in refused(PLAIN, classes=["z"])


# --- files


def npz_options(tmp_path: Path, **more: Any) -> Data:
    return Data(source="npz", root=str(tmp_path / "mine.npz"), cache=str(tmp_path / "cache"), **more)


def test_npz_comes_back_through_the_cache(tmp_path: Path) -> None:
    data = npz_options(tmp_path)
    np.savez_compressed(tmp_path / "mine.npz", **PLAIN, client=np.array(list("abcab")))
    sources.prepare(data)
    samples = sources.load(data)
    assert isinstance(samples.x, np.memmap)
    np.testing.assert_array_equal(samples.x[..., 0], X)
    assert (samples.y.tolist(), samples.clients) == (Y.tolist(), ("a", "b", "c"))


def test_npz_may_be_a_link_to_a_file_of_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", **PLAIN)
    (tmp_path / "stored.npz").rename(tmp_path / "0123abcd")
    (tmp_path / "mine.npz").symlink_to("0123abcd")
    sources.prepare(npz_options(tmp_path))
    assert sources.load(npz_options(tmp_path)).y.tolist() == Y.tolist()


def test_npz_that_changed_is_read_again(tmp_path: Path) -> None:
    data = npz_options(tmp_path)
    for y in (Y, Y[::-1]):
        np.savez(tmp_path / "mine.npz", x=X, y=y)
        os.utime(tmp_path / "mine.npz", ns=(0, int(y[1])))
        sources.prepare(data)
        assert sources.load(data).y.tolist() == y.tolist()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 255
    path.write_bytes(content)


def _ask_for_a_newer_zip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 241  # "version needed" of the last entry
    path.write_bytes(content)


def _put_objects(path: Path) -> None:
    np.savez(path, x=X, y=np.array([1, None], object))


def _put_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "not an array")


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "cannot be read .No such file"),
    "no zip": (lambda path: path.write_bytes(b"\x93NUMPY"), "no .npz file, or cut short"),
    "empty": (lambda path: path.write_bytes(b""), "no .npz file, or cut short"),
    "cut": (_cut, "no .npz file, or cut short"),
    "one byte": (_spoil, "x is damaged"),
    "newer zip": (_ask_for_a_newer_zip, "is damaged .NotImplementedError"),
    "objects": (_put_objects, "y has objects inside, which are not loaded"),
    "text": (_put_text, "x is not an array"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_spoilt_npz_is_refused_with_its_path(spoil: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x=np.random.default_rng(1).integers(0, 256, (9, 8, 8), np.uint8), y=Y)
    spoil(path)
    with pytest.raises(UserError, match=says) as caught:
        read_array_file(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("root", ["", "gone.npz", "."])
def test_npz_needs_its_file(root: str, tmp_path: Path) -> None:
    data = Data(source="npz", root=str(tmp_path / root) if root else "", cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"data\.root"):
        sources.prepare(data)


# --- pickles


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_pickled_pair_is_read(protocol: int, order: str, tmp_path: Path) -> None:
    x = X[::2] if order == "strided" else np.array(X, order=order)  # type: ignore[call-overload]
    y = np.array([-1.5, 300, 7], ">f8")
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps((x, y), protocol))
    found = read_array_file(path)
    assert sorted(found) == ["x", "y"]
    for key, array in (("x", x), ("y", y)):
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype


def test_pickle_of_an_older_numpy_and_of_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.pkl"
    old = pickle.dumps((X, Y), 3).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old
    path.write_bytes(old)
    np.testing.assert_array_equal(read_array_file(path)["x"], X)
    python_2 = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x07\xfetbh\x03\x86."
    )
    path.write_bytes(python_2)
    assert [a.tolist() for a in read_array_file(path).values()] == [[7, 254], [7, 254]]


class _Malicious:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, np.load])
def test_pickle_that_holds_a_call_runs_nothing(function: Any, protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    argument = {os.mkdir: str(made), os.system: f"mkdir {made}", eval: f"__import__('os').mkdir({str(made)!r})"}
    attack = _Malicious(function, argument.get(function, str(made)))
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps((X, Y, attack), protocol))
    with pytest.raises(UserError, match=r"holds objects .*was not loaded"):
        read_array_file(path)
    assert not made.exists()
    if function is os.mkdir:
        pickle.loads(path.read_bytes())
        assert made.exists()  # the attack is one


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps((np.array([None]), Y)), "holds objects .an array of object"),
        (pickle.dumps((Path(), Y)), "holds objects .pathlib"),
        (pickle.dumps((X, Y))[:-40], "no pickle, or damaged"),
        (b"", "no pickle, or damaged"),
        (b"PK\x03\x04 something", "no pickle, or damaged"),
        (pickle.dumps({"x": 1}), "something else than a pair"),
        (pickle.dumps((X, Y, Y)), "something else than a pair"),
        (pickle.dumps((X, [1, 2])), "something else than a pair"),
    ],
    ids=["objects", "path", "cut", "empty", "zip", "dict", "three", "list"],
)
def test_other_pickles_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "test.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read_array_file(path)
    assert str(path) in str(caught.value)


# --- functions


MODULE = """
import numpy as np
from fedbsd_dist.errors import UserError
x, y = np.zeros((3, 4, 4), np.uint8), [0, 1, 1]
number = 7
def good(): return {"x": x, "y": y}
def pair(): return x, y
def raises(): raise KeyError("which")
def leaves(): raise SystemExit("no licence")
def explains(): raise UserError("my disk is not mounted")
def mapped():
    np.save("big.npy", x)
    return {"x": np.load("big.npy", mmap_mode="r"), "y": y}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Data]:
    (tmp_path / "my_arrays.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("1 / 0")
    (tmp_path / "my_script.py").write_text("import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda factory: Data(source="python", factory=factory)


def test_python_source_takes_what_the_factory_returns(mine: Callable[[str], Data]) -> None:
    sources.prepare(mine("my_arrays:good"))
    samples = sources.load(mine("my_arrays:good"))
    assert (samples.x.shape, samples.y.tolist()) == ((3, 4, 4, 1), [0, 1, 1])


def test_mapped_images_stay_mapped(mine: Callable[[str], Data]) -> None:
    x: Any = sources.load(mine("my_arrays:mapped")).x
    while not isinstance(x, np.memmap):
        x = x.base
        assert x is not None


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("", "needs data.factory=package.module:function"),
        ("no_such_module:good", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("my_broken:good", "cannot import it .ZeroDivisionError"),
        ("my_script:main", "cannot import it .SystemExit: 3"),
        ("my_arrays:absent", "AttributeError.*absent"),
        ("my arrays", "cannot import it"),
        ("my_arrays:number", "not a function but a int"),
        ("my_arrays:raises", "raised KeyError: 'which'"),
        ("my_arrays:leaves", "raised SystemExit: no licence"),
        ("my_arrays:explains", "^my disk is not mounted$"),
        ("my_arrays:pair", "must return a mapping of arrays .*not tuple"),
    ],
)
def test_what_is_wrong_with_a_factory_is_told(factory: str, says: str, mine: Callable[[str], Data]) -> None:
    with pytest.raises(UserError, match=says) as caught:
        sources.load(mine(factory))
    assert "data.factory" in str(caught.value) or factory.endswith("explains")


# --- domains


def write_npz(path: Path, shape: tuple[int, ...], y: list[int], **more: Any) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(len(str(path))).integers(0, 256, (len(y), *shape), np.uint8)
    np.savez(path, x=x, y=np.array(y), **more)
    return x


def write_pickle(path: Path, x: Any, y: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps((x, y)))


def read_domains(root: Path, **options: Any) -> Samples:
    origin = array_domains.origin(Data(source="domains", root=str(root), **options))
    assert all(file.is_file() for file in origin.files)
    return origin.read(root)


def test_domains_are_files_or_folders_of_files_in_order(tmp_path: Path) -> None:
    photo = write_npz(tmp_path / "photo.npz", (4, 4), [0, 1, 1], split=np.array(["train", "test", "train"]))
    art = [write_npz(tmp_path / "art" / f"{split}.npz", (4, 4, 1), [2, 0]) for split in ("train", "test")]
    clip = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    write_pickle(tmp_path / "clip" / "train.pkl", clip, np.array([[1.0], [0.0]]))
    write_pickle(tmp_path / "clip" / "test.pkl", clip[:1, 0], np.array([1]))
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("ignored")
    assert array_domains.recognises(tmp_path)
    samples = read_domains(tmp_path)
    assert samples.domains == ("art", "clip", "photo")
    assert samples.domain.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert samples.y.tolist() == [2, 0, 2, 0, 1, 0, 1, 0, 1, 1]
    assert np.flatnonzero(samples.is_test).tolist() == [2, 3, 6, 8]
    assert samples.classes == ("0", "1", "2")
    np.testing.assert_array_equal(samples.x[:4], np.concatenate(art))
    np.testing.assert_array_equal(samples.x[4:7, ..., 0], np.concatenate([clip[:, 0], clip[:1, 0]]))
    np.testing.assert_array_equal(samples.x[7:, ..., 0], photo)


def test_pickled_colours_may_come_first(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3))
    write_pickle(tmp_path / "SVHN" / "train.pkl", x.transpose(0, 3, 1, 2), np.array([0, 1]))
    write_pickle(tmp_path / "SVHN" / "test.pkl", x.astype(np.float64), np.array([0, 1]))
    np.testing.assert_array_equal(read_domains(tmp_path).x, np.concatenate([x, x]))


def test_a_folder_without_array_files_is_not_of_domains(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "one.npz").write_text("deeper than domains lie")
    assert not array_domains.recognises(tmp_path)
    with pytest.raises(UserError, match=r"holds no DOMAIN\.npz"):
        read_domains(tmp_path)


def test_domains_that_differ_are_made_alike_on_request_alone(tmp_path: Path) -> None:
    write_npz(tmp_path / "grey.npz", (4, 4), [0, 1])
    write_npz(tmp_path / "colour.npz", (6, 5, 3), [1, 0])
    with pytest.raises(UserError, match=r"6x5x3, .*4x4x1.*Set data\.image_size and data\.channels"):
        read_domains(tmp_path)
    with pytest.raises(UserError, match=r"Set data\.channels,"):
        read_domains(tmp_path, image_size=4)
    samples = read_domains(tmp_path, image_size=4, channels=3, classes=["1"])
    assert samples.x.shape == (2, 4, 4, 3)
    assert (samples.domain.tolist(), samples.y.tolist()) == ([0, 1], [0, 0])


def test_named_classes_are_one_list_for_all_domains(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", (4, 4), [0, 1], classes=np.array(["cat", "dog"]))
    write_npz(tmp_path / "b.npz", (4, 4), [0, 0], classes=np.array(["cat", "dog"]))
    assert read_domains(tmp_path).classes == ("cat", "dog")
    write_npz(tmp_path / "b.npz", (4, 4), [0, 0], classes=np.array(["dog", "cat"]))
    with pytest.raises(UserError, match=r"b\.npz: its classes are not those of .*a\.npz"):
        read_domains(tmp_path)


def test_half_a_domain_two_of_a_name_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "a" / "train.npz", (4, 4), [0, 1])
    with pytest.raises(UserError, match=r"test\.npz: is missing"):
        read_domains(tmp_path)
    write_npz(tmp_path / "a" / "test.npz", (4, 4), [0, 1], split=np.array([0, 1]))
    with pytest.raises(UserError, match=r"test\.npz: unknown key 'split'"):
        read_domains(tmp_path)
    write_npz(tmp_path / "a.npz", (4, 4), [0, 1])
    with pytest.raises(UserError, match="domain a twice"):
        read_domains(tmp_path)
    with pytest.raises(UserError, match="cannot be read as a folder"):
        array_domains.recognises(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.full((2, 4, 4), 0.5), r"x: is float64 \[2, 4, 4\], expected whole numbers of 0 to 255.*multiply by 255"),
        (np.full((2, 4, 4), 256), "expected whole numbers of 0 to 255"),
        (np.full((2, 4, 4), -1.0), "expected whole numbers of 0 to 255"),
        (np.full((2, 4, 4), np.nan), "expected whole numbers of 0 to 255"),
        (np.zeros((2, 3, 8, 3)), r"\[2, 3, 8, 3\], of whose three sizes either first or last"),
        (np.zeros((2, 8, 8, 2)), "neither first nor last"),
        (np.zeros((2, 16)), r"x: is uint8 \[2, 16\], expected"),
    ],
)
def test_pickled_images_that_can_be_no_pixels_are_refused(x: Any, says: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pickle(tmp_path / "MNIST" / f"{split}.pkl", x, np.array([0, 1]))
    with pytest.raises(UserError, match=says) as caught:
        read_domains(tmp_path)
    assert str(tmp_path / "MNIST" / "train.pkl") in str(caught.value)


def test_pickled_labels_must_be_whole(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pickle(tmp_path / "MNIST" / f"{split}.pkl", np.zeros((2, 4, 4)), np.array([0.5, 1]))
    with pytest.raises(UserError, match="y: is float64"):
        read_domains(tmp_path)
