"""LEAF's FEMNIST: what its files say, in every layout that LEAF leaves behind, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbsd_dist.config import Data
from fedbsd_dist.data import sources
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

Records = dict[str, tuple[Any, list[int]]]
"""Pixels uint8 [n, 784] and labels by writer."""


def drawn(seed: int, *labels: int) -> tuple[Any, list[int]]:
    return np.random.default_rng(seed).integers(0, 256, (len(labels), 784)), list(labels)


def content(records: Records) -> dict[str, Any]:
    return {
        "users": list(records),
        "num_samples": [len(y) for _, y in records.values()],
        "user_data": {user: {"x": (x / 255).tolist(), "y": y} for user, (x, y) in records.items()},
    }


def write(path: Path, records: Records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(records)))


def read(tmp_path: Path, **options: Any) -> Samples:
    data = Data(source="femnist", root=str(tmp_path / "root"), cache=str(tmp_path / "cache"), **options)
    sources.prepare(data)
    return sources.load(data)


FIRST: Records = {"w2": drawn(1, 0, 61, 10), "w10": drawn(2, 36)}
SECOND: Records = {"w1": drawn(3, 35), "w3": drawn(4, 45, 0)}


@pytest.mark.parametrize("folder", [".", "all_data", "data/all_data"])
def test_writers_of_all_files_are_clients(folder: str, tmp_path: Path) -> None:
    write(tmp_path / "root" / folder / "all_data_0_niid.json", FIRST)
    write(tmp_path / "root" / folder / "all_data_1_niid.json", SECOND)
    samples = read(tmp_path)
    assert samples.clients == ("w1", "w10", "w2", "w3")
    assert samples.client.tolist() == [2, 2, 2, 1, 0, 3, 3]
    assert samples.y.tolist() == [0, 61, 10, 36, 35, 45, 0]
    x = np.concatenate([x for records in (FIRST, SECOND) for x, _ in records.values()])
    np.testing.assert_array_equal(samples.x, x.reshape(-1, 28, 28, 1))
    assert not samples.is_test.any()


def test_class_names_are_in_leafs_order(tmp_path: Path) -> None:
    write(tmp_path / "root/all_data_0.json", FIRST)
    classes = read(tmp_path).classes
    assert len(classes) == 62
    assert [classes[label] for label in (0, 9, 10, 35, 36, 45, 61)] == ["0", "9", "A", "Z", "a", "j", "z"]


@pytest.mark.parametrize("base", [".", "data"])
def test_leafs_own_split_is_kept(base: str, tmp_path: Path) -> None:
    write(tmp_path / "root" / base / "train" / "a_train_9.json", FIRST)
    write(tmp_path / "root" / base / "test" / "a_test_9.json", {"w1": drawn(3, 35), "w2": drawn(4, 45, 0)})
    write(tmp_path / "root" / base / "all_data" / "all_data_0.json", {"other": drawn(5, 1)})
    samples = read(tmp_path)
    assert samples.is_test.tolist() == [False] * 4 + [True] * 3
    assert samples.clients == ("w1", "w10", "w2")
    assert samples.client.tolist() == [2, 2, 2, 1, 0, 2, 2]  # w2 is in both splits


@pytest.mark.parametrize("split", ["all_data", "train", "test"])
def test_writer_in_two_files_of_a_split_is_refused(split: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for needed in {"train", "test"} - {split} if split != "all_data" else ():
        write(root / needed / "0.json", {"w2": drawn(5, 1)})
    paths = [root / split / f"all_data_{number}_niid.json" for number in (0, 1)]
    write(paths[0], FIRST)
    write(paths[1], {"w1": drawn(3, 35), "w10": drawn(6, 36)})
    with pytest.raises(UserError, match="Empty the folder and preprocess again") as caught:
        read(tmp_path)
    assert f"{paths[1]}: writer w10 is also in {paths[0]}" in str(caught.value)


def test_pixels_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    pixels = np.arange(784) % 255
    write(tmp_path / "root/all_data_0.json", {"w": (np.stack([pixels + 0.4, pixels + 0.6]), [0, 0])})
    assert read(tmp_path).x.reshape(2, 784).tolist() == [pixels.tolist(), (pixels + 1).tolist()]


def test_fedreps_subset_leaves_out_other_samples_and_writers_without_any(tmp_path: Path) -> None:
    write(tmp_path / "root/all_data_0.json", FIRST)
    write(tmp_path / "root/all_data_1.json", SECOND)
    samples = read(tmp_path, classes=list("abcdefghij"), image_size=14, channels=3)
    assert samples.x.shape == (2, 14, 14, 3)
    assert samples.classes == tuple("abcdefghij")
    assert (samples.y.tolist(), samples.client.tolist(), samples.clients) == ([0, 9], [0, 1], ("w10", "w3"))


def test_no_samples_of_the_wanted_classes(tmp_path: Path) -> None:
    write(tmp_path / "root/all_data_0.json", FIRST)
    with pytest.raises(UserError, match=r"hold no samples of data\.classes=\['Q'\]"):
        read(tmp_path, classes=["Q"])
    with pytest.raises(UserError, match="no class 'ä'"):
        read(tmp_path, classes=["ä"])


@pytest.mark.parametrize("only", ["train/a.json", "test/a.json", "other.json", "data/all_data_0.json"])
def test_a_folder_of_something_else_is_refused(only: str, tmp_path: Path) -> None:
    write(tmp_path / "root" / only, FIRST)
    with pytest.raises(UserError, match=r"all_data_\*\.json.*train/\*\.json.*preprocess\.sh"):
        read(tmp_path)


def _set(*path: Any) -> Callable[[Any], None]:
    """Changes a file's content at a path of keys, whose last is the new value."""
    *keys, last, value = path

    def change(found: Any) -> None:
        for key in keys:
            found = found[key]
        found[last] = value

    return change


def _cut(found: Any) -> None:
    found["user_data"]["w2"]["x"].pop()


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "no writers": (_set("users", None), "users must be a list of names"),
    "writer twice": (_set("users", ["w2", "w2"]), "users must be a list of names, each there once"),
    "numbered writers": (_set("users", [[1], [2]]), "users must be a list of names"),
    "fewer counts": (_set("num_samples", [3]), "num_samples must be a list of 2"),
    "no data": (_set("user_data", []), "must be an object with users, num_samples and user_data"),
    "no record": (_set("user_data", {}), "user w2: must have in user_data lists x and y of 3"),
    "no labels": (_set("user_data", "w2", {"x": []}), "user w2: must have"),
    "other count": (_set("num_samples", [3, 2]), "user w10: must have in user_data lists x and y of 2"),
    "image too few": (_cut, "user w2: must have in user_data lists x and y of 3"),
    "label 62": (_set("user_data", "w10", "y", [62]), "user w10: y must be whole numbers of 0 to 61"),
    "label -1": (_set("user_data", "w10", "y", [-1]), "user w10: y must be"),
    "label 1.0": (_set("user_data", "w10", "y", [1.0]), "user w10: y must be"),
    "nested labels": (_set("user_data", "w2", "y", [[1], [1, 2], 3]), "user w2: y: is no array"),
    "pixel 2": (_set("user_data", "w2", "x", 1, 7, 2), r"user w2: x must be \[3, 784\] numbers of 0 to 1"),
    "pixel below 0": (_set("user_data", "w2", "x", 1, 7, -0.1), "user w2: x must be"),
    "pixel NaN": (_set("user_data", "w2", "x", 1, 7, float("nan")), "user w2: x must be"),
    "pixel null": (_set("user_data", "w2", "x", 1, 7, None), "user w2: x must be"),
    "short image": (_set("user_data", "w10", "x", 0, [0.5] * 783), "user w10: x must be"),
    "ragged images": (_set("user_data", "w2", "x", 0, [0.5] * 783), "user w2: x: is no array"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused_with_file_and_user(change: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    path = tmp_path / "root/all_data_0.json"
    found = content(FIRST)
    change(found)
    path.parent.mkdir()
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [(b'{"users": ["w', "no JSON, or cut short"), (b"\xff", "no JSON"), (b"[1]", "object"), (b"[" * 10**5, "no JSON")],
    ids=["cut", "binary", "list", "deep"],
)
def test_file_that_is_no_json_is_refused(text: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "root/all_data_0.json"
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_writer_without_samples_is_no_client(tmp_path: Path) -> None:
    write(tmp_path / "root/all_data_0.json", {**FIRST, "w0": (np.empty((0, 784)), [])})
    assert read(tmp_path).clients == ("w10", "w2")
