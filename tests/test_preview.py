"""A preview shows the very clients that a run would have, and a mistake is told before the work."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_interface import alone, tree

from fedbsd_dist import preview
from fedbsd_dist.commandline import load
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.plan import make_plan
from fedbsd_dist.wire.world import meet


def show(monkeypatch, *arguments: str) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedbsd_dist.data", *arguments])
    try:
        preview.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


OF_DIGITS = ("data.partition=pathological", "data.num_clients=12", "data.num_new_clients=2", "seed=3")


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, Path]:
    """(printed, folder) of a preview; not to be changed."""
    folder = tmp_path_factory.mktemp("preview") / "new" / "folder"
    return preview.preview([f"--preview={folder}", *OF_DIGITS]), folder


def test_what_is_printed_of_the_digits(shown) -> None:
    printed, folder = shown
    lines = printed.splitlines()
    assert lines[0] == "source     digits: 10620 samples, 16x16 grey, 10 classes, 2 domains: optdigits, mnist"
    assert lines[1] == "partition  pathological, data.classes_per_client=2, seed=3"
    assert lines[2] == "clients    12, and 2 new"
    facts = json.loads((folder / "partition.json").read_text())
    assert facts["sha256"] in printed
    start = next(number for number, line in enumerate(lines) if line.startswith("client "))
    assert lines[start].split() == ["client", "train", "test", *"0123456789"]
    for client, line in zip(facts["clients"], lines[start + 1 : start + 15], strict=True):
        counts = [str(client["classes"].get(name, ".")) for name in "0123456789"]
        assert counts.count(".") == 8
        assert line.replace(" new", "").split() == [
            str(client["client"]), str(client["num_train"]), str(client["num_test"]), *counts
        ]  # fmt: skip
        assert (" new " in line) == client["new"] == (client["client"] >= 12)
    assert "mean number of classes                  2.00" in printed


def test_the_manifest_is_the_one_of_the_run(shown, tmp_path) -> None:
    _, folder = shown
    run = (
        "train.rounds=1",
        "train.local_epochs=1",
        "evaluate.head_epochs=0",
        "model.name=mlp",
        "train.batch_size=64",
        "checkpoint.every=0",
    )
    assert alone(*OF_DIGITS, *run, f"run.dir={tmp_path}/run") == 0
    assert (folder / "partition.json").read_bytes() == (tmp_path / "run/partition.json").read_bytes()
    again = make_plan(load([f"data.manifest={folder}/partition.json"], OPTIONS), meet())
    assert again.partition.sha256 in shown[0]


def test_a_manifest_is_previewed(shown, tmp_path) -> None:
    printed, folder = shown
    again = preview.preview([f"--preview={tmp_path}", f"data.manifest={folder}/partition.json"])
    assert "data.classes_per_client=2, as in the manifest" in again
    assert (
        again.partition("sha256")[2].partition("written")[0] == printed.partition("sha256")[2].partition("written")[0]
    )


def test_pictures_are_whole_pngs_of_a_size_to_look_at(shown) -> None:
    _, folder = shown
    assert {path.name for path in folder.iterdir()} == {"partition.json", "clients.png", "samples.png"}
    for name in ("clients.png", "samples.png"):
        content = (folder / name).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG"
            assert 600 <= picture.width <= 2500
            assert 500 <= picture.height <= 2500
            assert len(picture.convert("L").getcolors()) > 3  # not blank


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h", "--preview"]])
def test_the_usage(arguments: list[str], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert show(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: python -m fedbsd_dist.data --preview[=FOLDER]")
    assert "data.partition=pathological" in out
    assert err == ""
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--prewiev", "--preview[=FOLDER]"),
        ("--preview --check", "--check: no such flag"),
        ("--preview=", "--preview[=FOLDER]"),
        ("--preview=a --preview=b", "once"),
        ("data.num_clients=5", "--preview"),
        ("--preview train.rounds=0", "train.rounds"),
        ("--preview data.num_client=5", "data.num_clients"),
        ("--preview nowhere.yaml", "No such file"),
        ("--preview=a/b data.num_clients=100000", "data.num_clients to"),
        ("--preview data.manifest=nowhere.json", "data.manifest"),
        ("--preview=file", "--preview=file: cannot write"),
        ("--preview=file/below", "--preview=file/below: cannot write"),
        ("--preview=run", "holds a run"),
        (f"--preview={'x' * 300}", "cannot write"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(
    arguments: str, hint: str, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("run").mkdir()
    Path("run/metrics.jsonl").touch()
    before = tree(tmp_path)
    assert show(monkeypatch, *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedbsd_dist: ")
    assert hint in err
    assert err.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that refuses even root")
@pytest.mark.parametrize("folder", ["/proc/preview", "/proc/self/fd"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(folder: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(preview.sources, "load", lambda _: pytest.fail("the samples were loaded first"))
    assert show(monkeypatch, f"--preview={folder}") == 2
    assert capsys.readouterr().err.startswith(f"fedbsd_dist: --preview={folder}: cannot write files there")


def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "ascii"}
    run = (
        "train.rounds=1",
        "train.local_epochs=1",
        "evaluate.head_epochs=0",
        "model.name=mlp",
        "checkpoint.every=0",
        "data.num_clients=2",
    )
    commands = [
        (["fedbsd_dist.data", "--preview=größe", "data.num_clients=4"], 0, r"written: gr\xf6\xdfe/partition.json"),
        (["fedbsd_dist.main", *run, "run.dir=größe/run"], 0, r"gr\xf6\xdfe/run"),
        (["fedbsd_dist.main", "data.root=caf\udce9"], 2, r"fedbsd_dist: data.root=caf\udce9"),
    ]
    for command, code, says in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr
        assert says in (done.stderr if code else done.stdout)


def test_a_disk_that_fills_up_is_told(tmp_path, monkeypatch, capsys) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview, "write_atomically", full)
    assert show(monkeypatch, f"--preview={tmp_path}") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "No space left" in err


def test_the_command_writes_to_preview_and_again(tmp_path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "fedbsd_dist.data", "--preview", "data.num_clients=4"]
    printed = []
    for _ in range(2):  # files of an earlier preview are replaced
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert printed[0].endswith("written: preview/partition.json, preview/clients.png, preview/samples.png\n")
    assert set(tree(tmp_path)) == {f"preview{name}" for name in ("", "/partition.json", "/clients.png", "/samples.png")}
