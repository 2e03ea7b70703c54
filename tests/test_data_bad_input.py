"""Wrong data, met by the program itself: one message with the file and what to do, exit code 2, nothing written."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ranks import run_ranks
from test_bad_input import overheard
from test_interface import SHORT, alone

from fedbsd_dist.data.cache import LOCKS

COLOURS = {"train": 12, "test": 4}


def folder(root: Path) -> Path:
    """Two classes of small images, with a split."""
    rng = np.random.default_rng(0)
    for split, count in COLOURS.items():
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
                image.save(root / split / name / f"{number:02d}.png")
    return root


def arrays(path: Path, **changes) -> Path:
    """As an array file should be, but for `changes`."""
    good = {"x": np.zeros((40, 16, 16), np.uint8), "y": np.arange(40) % 2, "split": np.arange(40) % 4 == 3}
    np.savez(path, **{**good, **changes})
    return path


def _folder(change: Callable[[Path], object], *options: str) -> Callable[[Path], list[str]]:
    def make(tmp: Path) -> list[str]:
        change(folder(tmp / "images"))
        return ["data.source=folder", f"data.root={tmp / 'images'}", "data.min_samples=2", *options]

    return make


def _npz(*options: str, **changes) -> Callable[[Path], list[str]]:
    return lambda tmp: [
        *("data.source=npz", f"data.root={arrays(tmp / 'mine.npz', **changes)}", "data.min_samples=2", *options)
    ]


def _truncated(root: Path) -> None:
    path = root / "train/dog/03.png"
    path.write_bytes(path.read_bytes()[:300])


def _larger(root: Path) -> None:
    Image.new("RGB", (20, 16)).save(root / "test/cat/00.png")


def _escaping(tmp: Path) -> list[str]:
    with tarfile.open(tmp / "images.tar", "w") as archive:
        member = tarfile.TarInfo("../outside/cat/1.png")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    return ["data.source=folder", f"data.root={tmp / 'images.tar'}"]


def _another_manifest(tmp: Path) -> list[str]:
    assert alone(*SHORT, "train.rounds=1", f"run.dir={tmp / 'digits'}") == 0
    return [*_npz("data.min_samples=10")(tmp), f"data.manifest={tmp / 'digits/partition.json'}"]


def _untested_client(tmp: Path) -> list[str]:
    where = (f"run.dir={tmp / 'run'}", f"data.cache={tmp / 'cache'}")
    assert alone(*SHORT, "train.rounds=1", *where, *_npz()(tmp)) == 0
    path = tmp / "run/partition.json"
    facts = json.loads(path.read_text())
    facts["clients"][1]["test"] = []
    path.write_text(json.dumps(facts))
    return [*_npz()(tmp), f"data.manifest={path}"]


NATURAL = ("data.partition=natural", "data.num_clients=0")
BAD = {
    "nothing there": (lambda tmp: ["data.source=folder", f"data.root={tmp / 'none'}"], "none"),
    "no root": (lambda tmp: ["data.source=npz"], "data.root"),
    "files to fetch": (
        lambda tmp: ["data.source=cifar10", f"data.root={tmp / 'mine'}"],
        "mine/cifar-10-python.tar.gz\n    from https://",
    ),
    "wrong checksum": (
        lambda tmp: [(tmp / "cifar-10-python.tar.gz").write_bytes(b"x"), "data.source=cifar10", f"data.root={tmp}"][1:],
        "md5",
    ),
    "truncated image": (_folder(_truncated), "train/dog/03.png"),
    "image of another size": (_folder(_larger), "data.image_size"),
    "no image": (_folder(lambda root: (root / "train/cat/11.png").write_text("text")), "train/cat/11.png"),
    "a class that is not UTF-8": (
        _folder(lambda root: os.rename(root / "train/cat", os.fsencode(root / "train") + b"/c\xe4t")),
        r"'c\udce4t', is not UTF-8",
    ),
    "no such class": (_folder(lambda root: None, "data.classes=[cat, bird]"), "'bird'"),
    "images too small": (_folder(lambda root: None, "model.name=fedrep_cnn", "data.image_size=8"), "8x8"),
    "grey for torchvision": (_npz("model.name=mobilenet_v2"), "data.channels=3"),
    "labels out of range": (_npz(y=np.arange(40) - 1), "label -1"),
    "objects inside": (_npz(x=np.array([{}] * 40)), "objects"),
    "floats": (_npz(x=np.zeros((40, 16, 16))), "multiply by 255"),
    "a class that nobody has": (_npz(y=np.arange(40) % 2 * 2), "class 1"),
    "no split": (_npz(split=np.zeros(40, int)), "data.test_fraction"),
    "clients without test samples": (_npz(*NATURAL, client=np.arange(40) % 4 // 3), "no test sample"),
    "a manifest of other data": (_another_manifest, "another data set"),
    "a client without test samples": (_untested_client, "without test samples"),
    "a path that escapes": (_escaping, "../outside/cat/1.png"),
    "a root that nothing reads": (lambda tmp: [f"data.root={folder(tmp / 'images')}"], "data.source=digits"),
    "a factory that nothing calls": (lambda tmp: ["data.factory=math:sqrt"], "data.source=python"),
    "no factory": (lambda tmp: ["data.source=python"], "data.factory"),
    "a factory that fails": (lambda tmp: ["data.source=python", "data.factory=math:sqrt"], "TypeError"),
    "batch norm on one sample": (_npz("train.batch_size=1", "model.name=digits_cnn_bn"), "train.batch_size=2"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_message_and_nothing_written(name: str, tmp_path: Path, capsys) -> None:
    make, hint = BAD[name]
    options = [*SHORT, f"run.dir={tmp_path / 'out'}", f"data.cache={tmp_path / 'cache'}", *make(tmp_path)]
    capsys.readouterr()
    assert alone(*options) == 2
    err = capsys.readouterr().err
    assert err.startswith("fedbsd_dist: ")
    assert hint in err
    assert "Traceback" not in err
    assert err.count("\n") == 1 or "put there by hand" in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path.parent / "outside").exists()
    # of what is refused while it is read, no cache is left
    assert all((made / "meta.json").exists() for made in (tmp_path / "cache").glob("[!.]*") if made.is_dir())
    assert {entry.name for entry in (tmp_path / "cache").glob(".*")} <= {LOCKS}


@pytest.mark.parametrize("name", ["nothing there", "truncated image", "objects inside", "a class that nobody has"])
def test_several_ranks_tell_it_once(name: str, tmp_path: Path) -> None:
    make, hint = BAD[name]
    options = [*SHORT, f"run.dir={tmp_path / 'out'}", f"data.cache={tmp_path / 'cache'}", *make(tmp_path)]
    assert run_ranks(3, overheard, options, tmp_path) == [("exit", 2)] * 3
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)]
    assert said[0].count("fedbsd_dist: ") == 1
    assert hint in said[0]
    assert said[1:] == ["", ""]


def test_one_rank_decodes_and_all_read_it(tmp_path: Path) -> None:
    options = [
        *(*SHORT, "data.num_clients=3", "data.min_samples=2", "data.alpha=1.0", "train.rounds=1"),
        *("data.source=folder", f"data.root={folder(tmp_path / 'images')}", f"data.cache={tmp_path / 'cache'}"),
    ]
    for run in ("cold", "warm"):
        run_ranks(3, overheard, [*options, f"run.dir={tmp_path / run}"], tmp_path)
        said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)]
        assert ("decoding 32 images" in said[0]) == (run == "cold")
        assert "24 training, 8 test" in said[0]
        assert said[1:] == ["", ""]
    states = [json.loads((tmp_path / run / "summary.json").read_text())["state_sha256"] for run in ("cold", "warm")]
    assert states[0] == states[1]
