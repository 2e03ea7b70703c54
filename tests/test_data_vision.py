"""torchvision's data sets, from tiny files in the form that their authors publish, and what is told of wrong ones."""

import bz2
import gzip
import hashlib
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
import torchvision.datasets.utils
from numpy.typing import NDArray

from fedbsd_dist.config import Data
from fedbsd_dist.data import cache, sources, vision
from fedbsd_dist.errors import UserError

RNG = np.random.default_rng(0)


def images(n: int, *shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (n, *shape), np.uint8)


def idx(array: NDArray[Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5(content)


Published = tuple[NDArray[np.uint8], list[int]]
"""Images as they must come out, and labels, of train and then test."""


def publish_mnist(root: Path, patch: pytest.MonkeyPatch, kind: Any = torchvision.datasets.MNIST) -> Published:
    x, y = images(9, 28, 28), RNG.integers(0, 10, 9)
    resources = []
    for (name, _), part in zip(kind.resources, (x[:6], y[:6], x[6:], y[6:]), strict=True):
        resources.append((name, write(root / kind.__name__ / "raw" / name, gzip.compress(idx(part)))))
    patch.setattr(kind, "resources", resources)
    return x[..., None], y.tolist()


def publish_fashion(root: Path, patch: pytest.MonkeyPatch) -> Published:
    return publish_mnist(root, patch, torchvision.datasets.FashionMNIST)


def publish_emnist(root: Path, patch: pytest.MonkeyPatch) -> Published:
    x, y = images(9, 28, 28), RNG.integers(0, 47, 9)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, part in (("train", slice(6)), ("test", slice(6, 9))):
            for what, array in (("images-idx3", x[part].swapaxes(1, 2)), ("labels-idx1", y[part])):
                name = f"gzip/emnist-balanced-{split}-{what}-ubyte.gz"
                archive.writestr(name, gzip.compress(idx(array)))
    patch.setattr(torchvision.datasets.EMNIST, "md5", write(root / "EMNIST/raw/gzip.zip", buffer.getvalue()))
    return x[..., None], y.tolist()


def publish_cifar(root: Path, patch: pytest.MonkeyPatch, kind: Any = torchvision.datasets.CIFAR10) -> Published:
    num_classes = 10 if kind is torchvision.datasets.CIFAR10 else 100
    n_each = 6 // len(kind.train_list)
    names = [name for name, _ in (*kind.train_list, *kind.test_list)]
    x, y = images(n_each * len(names), 32, 32, 3), RNG.integers(0, num_classes, n_each * len(names)).tolist()
    key = "labels" if num_classes == 10 else "fine_labels"
    contents = {}
    for name, k in zip(names, range(0, len(x), n_each), strict=True):
        rows = x[k : k + n_each].transpose(0, 3, 1, 2).reshape(n_each, -1)
        contents[name] = pickle.dumps({"data": rows, key: y[k : k + n_each]})
    contents[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: [f"class {c}" for c in range(num_classes)]})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    patch.setattr(kind, "tgz_md5", write(root / kind.filename, buffer.getvalue()))
    for attribute in ("train_list", "test_list"):
        patch.setattr(kind, attribute, [[name, md5(contents[name])] for name, _ in getattr(kind, attribute)])
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(contents[kind.meta["filename"]])})
    return x, y


def publish_cifar100(root: Path, patch: pytest.MonkeyPatch) -> Published:
    return publish_cifar(root, patch, torchvision.datasets.CIFAR100)


def publish_splits(root: Path, patch: pytest.MonkeyPatch, kind: Any, contents: dict[str, bytes]) -> None:
    published = dict(kind.split_list)
    for split, content in contents.items():
        address, name, _ = published[split]
        published[split] = [address, name, write(root / name, content)]
    patch.setattr(kind, "split_list", published)


def publish_svhn(root: Path, patch: pytest.MonkeyPatch) -> Published:
    from scipy.io import savemat

    x, y = images(9, 32, 32, 3), [1, 2, 0, 9, 0, 5, 3, 0, 8]
    contents = {}
    for split, part in (("train", slice(6)), ("test", slice(6, 9))):
        buffer = io.BytesIO()
        labels = np.array([[label or 10] for label in y[part]], np.uint8)  # 10 is the digit 0
        savemat(buffer, {"X": x[part].transpose(1, 2, 3, 0), "y": labels})
        contents[split] = buffer.getvalue()
    publish_splits(root, patch, torchvision.datasets.SVHN, contents)
    return x, y


def publish_usps(root: Path, patch: pytest.MonkeyPatch) -> Published:
    x, y = RNG.choice(np.array([0, 255], np.uint8), (9, 16, 16)), RNG.integers(0, 10, 9)

    def line(image: NDArray[np.uint8], label: int) -> str:
        pixels = (f"{number}:{pixel / 127.5 - 1}" for number, pixel in enumerate(image.ravel(), 1))
        return f"{label + 1} {' '.join(pixels)} \n"

    lines = [line(*sample) for sample in zip(x, y.tolist(), strict=True)]
    contents = {"train": bz2.compress("".join(lines[:6]).encode()), "test": bz2.compress("".join(lines[6:]).encode())}
    publish_splits(root, patch, torchvision.datasets.USPS, contents)
    return x[..., None], y.tolist()


Publish = Callable[[Path, pytest.MonkeyPatch], Published]
PUBLISH: dict[str, Publish] = {
    "mnist": publish_mnist,
    "fashion_mnist": publish_fashion,
    "emnist": publish_emnist,
    "cifar10": publish_cifar,
    "cifar100": publish_cifar100,
    "svhn": publish_svhn,
    "usps": publish_usps,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked for; all are out of reach."""
    asked: list[str] = []

    def fail(request: Any, *arguments: Any, **more: Any) -> Any:
        asked.append(request.full_url)
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    return asked


def options(tmp_path: Path, source: str, **more: Any) -> Data:
    return Data(source=source, root=str(tmp_path / "root"), cache=str(tmp_path / "cache"), **more)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def unpack(tmp_path: Path, source: str) -> None:
    """As torchvision itself leaves it, without the published files."""
    table = vision.TABLES[source]
    dataset = getattr(torchvision.datasets, table.dataset)
    dataset(tmp_path / "root", download=True, **table.splits[0])
    for place in table.published:
        (tmp_path / "root" / place).unlink()


def test_every_source_is_tried() -> None:
    assert list(PUBLISH) == list(vision.TABLES)


@pytest.mark.parametrize("source", PUBLISH)
def test_torchvision_knows_all_the_files_and_no_other(source: str) -> None:
    table = vision.TABLES[source]
    known = [file.place for file in table.files(getattr(torchvision.datasets, table.dataset))]
    assert sorted(known) == sorted(table.published + table.unpacked)


def test_while_the_cache_serves_torchvision_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_cifar(tmp_path / "root", monkeypatch)
    data = options(tmp_path, "cifar10")
    sources.prepare(data)
    code = (
        "import sys; from fedbsd_dist.config import Data; from fedbsd_dist.data import sources\n"
        f"data = Data(source='cifar10', root={data.root!r}, cache={data.cache!r})\n"
        "sources.prepare(data); assert len(sources.load(data).y); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("source", PUBLISH)
def test_published_files_come_out_upright_with_their_labels(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    x, y = PUBLISH[source](tmp_path / "root", monkeypatch)
    before = tree(tmp_path / "root")
    sources.prepare(options(tmp_path, source))
    samples = sources.load(options(tmp_path, source))
    np.testing.assert_array_equal(samples.x, x)
    assert samples.y.tolist() == y
    num_test = {"cifar10": 1, "cifar100": 6}.get(source, 3)
    assert samples.is_test.tolist() == [False] * (len(y) - num_test) + [True] * num_test
    assert tree(tmp_path / "root") == before
    assert no_network == []
    shutil.rmtree(tmp_path / "cache" / cache.LOCKS)
    assert len(tree(tmp_path / "cache")) == 1 + len(cache.COLUMNS) + 1  # folder, columns, what is known of them


@pytest.mark.parametrize("source", ["mnist", "fashion_mnist", "emnist", "cifar10", "cifar100"])
def test_unpacked_files_are_taken_as_well(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = PUBLISH[source](tmp_path / "root", monkeypatch)
    unpack(tmp_path, source)
    sources.prepare(options(tmp_path, source))
    samples = sources.load(options(tmp_path, source))
    np.testing.assert_array_equal(samples.x, x)
    assert samples.y.tolist() == y


@pytest.mark.parametrize(
    ("source", "count", "some"),
    [
        ("mnist", 10, ["0", "9"]),
        ("fashion_mnist", 10, ["T-shirt/top", "Ankle boot"]),
        ("emnist", 47, ["0", "9", "A", "Z", "a", "b", "d", "t"]),
        ("cifar10", 10, ["class 0", "class 9"]),
        ("cifar100", 100, ["class 0", "class 99"]),
        ("svhn", 10, ["0", "9"]),
        ("usps", 10, ["0", "9"]),
    ],
)
def test_classes_have_torchvisions_names(
    source: str, count: int, some: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PUBLISH[source](tmp_path / "root", monkeypatch)
    sources.prepare(options(tmp_path, source))
    classes = sources.load(options(tmp_path, source)).classes
    assert len(classes) == count
    assert [name for name in classes if name in some] == some


def test_classes_size_and_channels_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, y = publish_svhn(tmp_path / "root", monkeypatch)
    data = options(tmp_path, "svhn", classes=["0", "3"], image_size=16, channels=1)
    sources.prepare(data)
    samples = sources.load(data)
    assert samples.x.shape == (4, 16, 16, 1)
    assert samples.y.tolist() == [("0", "3").index(str(label)) for label in y if label in (0, 3)]
    assert samples.is_test.tolist() == [False, False, True, True]


@pytest.mark.parametrize("source", PUBLISH)
def test_missing_files_are_listed_with_their_places_and_addresses(
    source: str, tmp_path: Path, no_network: list[str]
) -> None:
    with pytest.raises(UserError, match=r"data\.download=true") as caught:
        sources.prepare(options(tmp_path, source))
    table = vision.TABLES[source]
    files = [file for file in table.files(getattr(torchvision.datasets, table.dataset)) if file.addresses]
    assert sorted(file.place for file in files) == sorted(table.published)
    for file in files:
        assert f"{tmp_path / 'root' / file.place}\n" in str(caught.value)
        assert file.addresses[0] in str(caught.value)
        assert file.addresses[0].startswith("http")
    assert no_network == []
    assert tree(tmp_path) == []


def test_only_what_is_missing_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_mnist(tmp_path / "root", monkeypatch)
    (tmp_path / "root/MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="t10k-labels") as caught:
        sources.prepare(options(tmp_path, "mnist"))
    assert "train-images" not in str(caught.value)


@pytest.mark.parametrize("unpacked", [False, True])
def test_other_file_is_refused_with_both_md5s(
    unpacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    publish_cifar(tmp_path / "root", monkeypatch)
    expected, path = torchvision.datasets.CIFAR10.tgz_md5, tmp_path / "root/cifar-10-python.tar.gz"
    if unpacked:
        unpack(tmp_path, "cifar10")
        expected = torchvision.datasets.CIFAR10.meta["md5"]
        path = tmp_path / "root/cifar-10-batches-py/batches.meta"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="Delete it and fetch it again") as caught:
        sources.prepare(options(tmp_path, "cifar10", download=True))
    assert all(text in str(caught.value) for text in (str(path), expected, md5(path.read_bytes())))
    assert no_network == []


def test_damaged_file_without_an_md5_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_mnist(tmp_path / "root", monkeypatch)
    unpack(tmp_path, "mnist")
    path = tmp_path / "root/MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="torchvision cannot read it") as caught:
        sources.prepare(options(tmp_path, "mnist"))
    assert str(tmp_path / "root/MNIST/raw") in str(caught.value)
    shutil.rmtree(tmp_path / "cache" / cache.LOCKS)
    assert tree(tmp_path / "cache") == []


def test_failed_download_tells_why_and_what_to_fetch(tmp_path: Path, no_network: list[str]) -> None:
    with pytest.raises(UserError, match="no route to host") as caught:
        sources.prepare(options(tmp_path, "mnist", download=True))
    assert len({address.split("//")[1] for address in no_network}) == 2  # both mirrors, one by one
    for name, _ in torchvision.datasets.MNIST.resources:
        assert f"{tmp_path}/root/MNIST/raw/{name}\n" in str(caught.value)
    assert not [path for path in tree(tmp_path) if "ubyte" in path]


def test_download_fetches_what_is_missing_and_keeps_only_the_right_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = publish_usps(tmp_path / "root", monkeypatch)
    path = tmp_path / "root/usps.t.bz2"
    content = path.read_bytes()
    path.unlink()
    (tmp_path / "root/usps.bz2").touch()
    asked, answer = [], b"<html>moved</html>"

    class Response(io.BytesIO):
        url, length = None, 0

    def urlopen(request: Any, *arguments: Any, **more: Any) -> Response:
        asked.append(request.full_url)
        return Response(answer)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    data = options(tmp_path, "usps", download=True)
    with pytest.raises(UserError, match="not found or corrupted"):
        sources.prepare(data)
    assert tree(tmp_path / "root") == ["usps.bz2"]
    answer = content
    sources.prepare(data)
    assert set(asked) == {torchvision.datasets.USPS.split_list["test"][0]}
    np.testing.assert_array_equal(sources.load(data).x, x)
    assert sources.load(data).y.tolist() == y
