"""Where private state lives: the same numbers from every place, no room for who never learned, no file left behind."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from ranks import federate, run_ranks
from test_federation import FEW, build
from test_interface import SHORT, alone, tree
from torch import Tensor

from fedbsd_dist import private
from fedbsd_dist.errors import UserError
from fedbsd_dist.private import PrivateState, in_file, in_memory
from fedbsd_dist.randomness import generator
from fedbsd_dist.wire.world import World

STORES = ("device", "host", "mmap")
ROUNDS = [
    FEW,
    "train.rounds=4",
    "train.local_epochs=1",
    "train.participation=0.3",
    "checkpoint.every=1",
    "checkpoint.keep=4",
    "evaluate.every=0",
]
DITTO = ["method.name=ditto", "wire.sum=exact"]
START = {"head": torch.tensor([1.0, 2.0]), "statistics": torch.tensor([3.0])}


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run for each place, on three ranks."""
    folder = tmp_path_factory.mktemp("stores")
    for store in STORES:
        federate(folder / store, 3, *SHORT, *ROUNDS, *DITTO, f"client.store={store}")
    return {store: folder / store for store in STORES}


@pytest.mark.parametrize("store", ["host", "mmap"])
def test_the_numbers_do_not_depend_on_the_place(runs, store):
    assert summary(runs[store])["state_sha256"] == summary(runs["device"])["state_sha256"]
    assert (runs[store] / "clients.csv").read_bytes() == (runs["device"] / "clients.csv").read_bytes()


def test_a_clients_file_holds_nothing_of_others(runs):
    """Rows of a mapped file are views of one storage, which would be saved whole with each of them."""
    names = sorted(path.relative_to(runs["device"]) for path in runs["device"].rglob("client-*.pt"))
    assert names
    for name in names:
        assert (runs["mmap"] / name).read_bytes() == (runs["device"] / name).read_bytes()


def test_the_mapped_file_has_no_name(runs):
    top = {store: {path.name for path in run.iterdir()} for store, run in runs.items()}
    assert top["mmap"] == top["device"]


@pytest.mark.parametrize("store", STORES)
def test_a_run_goes_on_with_another_place(runs, store, tmp_path):
    run = shutil.copytree(runs["mmap"], tmp_path / "run")
    (run / "summary.json").unlink()
    for number in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"round-{number:06d}")
    federate(run, 1, *SHORT, *ROUNDS, *DITTO, "run.resume=auto", "run.rehost=true", f"client.store={store}")
    assert summary(run)["state_sha256"] == summary(runs["device"])["state_sha256"]


def cohorts(run: Path) -> list[set[int]]:
    """Of every round."""
    clients = summary(run)["num_clients"]
    return [
        set(generator(0, "cohort", number).choice(clients, round(0.3 * clients), replace=False).tolist())
        for number in range(1, 5)
    ]


def test_a_checkpoint_has_a_file_of_who_has_learned_and_shares_those_that_did_not_change(runs):
    folders = sorted((runs["device"] / "checkpoints").glob("round-*"))
    assert len(folders) == 4
    learned: set[int] = set()
    before: dict[int, int] = {}
    shared = written = 0
    for folder, cohort in zip(folders, cohorts(runs["device"]), strict=True):
        learned |= cohort
        inodes = {int(path.stem.rpartition("-")[2]): path.stat().st_ino for path in folder.glob("client-*.pt")}
        assert inodes.keys() == learned
        for client, inode in inodes.items():
            if client in cohort:
                written += 1
                assert inode != before.get(client)
            else:
                shared += 1
                assert inode == before[client]
        before = inodes
    assert shared > 3
    assert written == 4 * len(cohorts(runs["device"])[0])


def test_where_files_cannot_be_shared_they_are_written(runs, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert alone(*SHORT, *ROUNDS, *DITTO, f"run.dir={tmp_path}") == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/round-000004").glob("client-*.pt")}
    last = runs["device"] / "checkpoints/round-000004"
    assert files == {path.name: path.read_bytes() for path in last.glob("client-*.pt")}
    assert all(path.stat().st_nlink == 1 for path in tmp_path.rglob("client-*.pt"))


def _rooms(world: World) -> list[int]:
    """Rows made: before the first round, and after each of two."""
    federation = build(world, "method.name=ditto", "train.participation=0.2")
    made = [len(federation.private.learned())]
    for number in (1, 2):
        federation.round(number)
        made.append(len(federation.private.learned()))
    return [*made, len(set(federation.cohort(1)) | set(federation.cohort(2)))]


def test_who_never_learned_takes_no_room():
    before, one, two, learned = run_ranks(1, _rooms)[0]
    assert before == 0 < one < two == learned


def counts(yes: bool) -> Tensor:
    return torch.tensor(yes)


@pytest.mark.parametrize("store", ["memory", "file"])
def test_rows(store, tmp_path):
    rows = in_memory(3, 4, torch.device("cpu")) if store == "memory" else in_file(3, 4, tmp_path / "deep" / "rows")
    state = PrivateState(START, [7, 5, 2, 9], rows)
    assert state.of(5) is START
    assert (5 in state, 4 in state) == (True, False)
    new = {"head": torch.tensor([8.0, 9.0]), "statistics": torch.tensor([-1.0])}
    state.keep(5, new, counts(True))
    state.keep(2, new, counts(False))
    state.keep(7, {name: -values for name, values in new.items()}, counts(True))
    assert {name: values.tolist() for name, values in state.of(5).items()} == {"head": [8, 9], "statistics": [-1]}
    assert {name: values.tolist() for name, values in state.of(2).items()} == {"head": [1, 2], "statistics": [3]}
    assert list(state.learned()) == [7, 5, 2]
    assert state.changed == {7, 5, 2}
    state.changed.clear()
    state.keep(5, START, counts(True))
    assert state.of(5)["head"].tolist() == [1, 2]
    assert state.of(7)["head"].tolist() == [-8, -9]
    assert state.changed == {5}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_room_on_disk_is_told_before_the_mapped_file_is_written_to(tmp_path, monkeypatch):
    rows = in_file(3, 2, tmp_path / "rows")
    rows()

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(private.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"client.store=mmap: .*No space left on device.*client.store=host"):
        rows()


def test_a_mapped_file_that_cannot_be_made_is_told_once(tmp_path, capsys, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(private.os, "truncate", refuse)
    assert alone(*SHORT, *DITTO, "client.store=mmap", f"run.dir={tmp_path}") == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "Read-only file system" in err
    assert not [name for name in tree(tmp_path) if "private" in str(name)]
