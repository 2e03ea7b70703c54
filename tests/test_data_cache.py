"""The cache of samples: whole whoever makes it at the same time, and made anew where it is not what was written."""

import fcntl
import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbsd_dist.data import cache
from fedbsd_dist.data.samples import Samples, make_samples
from fedbsd_dist.errors import UserError

NAMES = ("a", "b")


def made(value: int = 1) -> Samples:
    return make_samples(name="made", x=np.full((2, 4, 4, 1), value, np.uint8), y=np.arange(2), classes=NAMES)


def origin(source: Path, counts: list[int] | None = None) -> cache.Origin:
    """Samples of one file, whose first byte they hold; `counts` gets an item each time they are made."""

    def read(folder: Path) -> Samples:
        if counts is not None:
            counts.append(1)
        return made(source.read_bytes()[0])

    return cache.Origin(files=[source], read=read)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(b"\1")
    return tmp_path / "source"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "made-0"


def left(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def _launch(path: Path, source: Path, barrier: Any, rounds: int) -> None:
    """All processes at once, as if each had the same pid, as in containers of their own."""
    os.getpid = lambda: 7
    for number in range(rounds):
        barrier.wait(20)
        target = path.with_name(f"{path.name}{number}")
        cache.ensure(target, origin(source))
        assert cache.load(target).classes == NAMES


@pytest.mark.parametrize("locks", [True, False])
def test_launches_at_the_same_time_all_get_it(
    path: Path, source: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", _without_locks)
    context = multiprocessing.get_context("fork")
    barrier, rounds = context.Barrier(4), 25
    processes = [context.Process(target=_launch, args=(path, source, barrier, rounds)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert left(path) == sorted([cache.LOCKS, *(f"{path.name}{number}" for number in range(rounds))])


def _without_locks(lock: int, operation: int) -> None:
    raise OSError(38, "Function not implemented")


def test_one_that_waited_does_not_make_it_again(path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another process holds the lock, makes the cache meanwhile, and is not hindered by the one that waits."""
    context = multiprocessing.get_context("fork")
    (path.parent / cache.LOCKS).mkdir(parents=True)
    lock = os.open(path.parent / cache.LOCKS / f"{path.name}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    ready = context.Event()

    def wait() -> None:
        os.close(lock)  # or this process would hold it as well
        ready.set()
        cache.ensure(path, cache.Origin(files=[source], read=lambda folder: pytest.fail("made again")))

    process = context.Process(target=wait)
    process.start()
    assert ready.wait(20)
    cache._make(path, origin(source), cache._fingerprint([source]))
    os.close(lock)
    process.join()
    assert process.exitcode == 0


def test_what_killed_processes_left_is_removed(path: Path, source: Path) -> None:
    others = [".made-0.7.making", ".made-0.7.stale", ".made-0.x1y2z3.making"]
    for name in [*others, ".made-01.7.making"]:
        (path.parent / name / "deep").mkdir(parents=True)
    cache.ensure(path, origin(source))
    assert left(path) == [cache.LOCKS, ".made-01.7.making", path.name]


def test_without_locks_nothing_of_others_is_removed(path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _without_locks)
    (path.parent / ".made-0.other.making").mkdir(parents=True)
    cache.ensure(path, origin(source))
    assert left(path) == [cache.LOCKS, ".made-0.other.making", path.name]


def test_lock_that_cannot_be_had_is_gone_without(path: Path, source: Path) -> None:
    path.parent.mkdir()
    (path.parent / cache.LOCKS).write_text("no folder")
    cache.ensure(path, origin(source))
    assert cache.load(path).classes == NAMES


def test_sound_cache_is_served_without_anything_written(path: Path, source: Path) -> None:
    cache.ensure(path, origin(source))
    (path.parent / cache.LOCKS / f"{path.name}.lock").unlink()
    (path.parent / cache.LOCKS).rmdir()
    cache.ensure(path, origin(source))
    assert left(path) == [path.name]


def test_cache_is_for_other_users_to_read(path: Path, source: Path) -> None:
    cache.ensure(path, origin(source))
    (path.parent / "plain").mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((path.parent / "plain").stat().st_mode)


@pytest.mark.parametrize("linked", [False, True])
def test_file_replaced_by_one_of_its_size_and_time_is_read_anew(tmp_path: Path, path: Path, linked: bool) -> None:
    files = [tmp_path / name for name in ("first", "second")]
    for value, file in enumerate(files):
        file.write_bytes(bytes([value]))
        os.utime(file, ns=(0, 0))
    source = tmp_path / "source"
    for value, file in enumerate(files):
        source.unlink(missing_ok=True)
        if linked:
            source.symlink_to(file)
        else:
            os.rename(file, source)
        cache.ensure(path, origin(source))
        assert cache.load(path).x.max() == value


def _change(*keys: Any) -> Callable[[Path], None]:
    """Changes meta.json at a path of keys, whose last is the new value; of a single one, all of it."""
    *path, last, value = ("all", *keys)

    def change(file: Path) -> None:
        meta = found = {"all": json.loads(file.read_text())}
        for key in path:
            found = found[key]
        found[last] = value
        file.write_text(json.dumps(meta["all"]))

    return change


MALFORMED: dict[str, Callable[[Path], Any]] = {
    "classes": _change("samples", "classes", ["b", "a"]),
    "classes' type": _change("samples", "classes", 3),
    "another field": _change("samples", "more", 1),
    "no columns": _change("sha256", {}),
    "columns' type": _change("sha256", []),
    "list": _change([]),
    "null": _change(None),
    "empty object": _change({}),
    "text": lambda file: file.write_text("meta"),
    "binary": lambda file: file.write_bytes(b"\xff"),
    "deep": lambda file: file.write_text("[" * 100_000),
    "none": Path.unlink,
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_cache_with_other_facts_is_refused_and_made_anew(
    path: Path, source: Path, change: Callable[[Path], Any]
) -> None:
    counts: list[int] = []
    cache.ensure(path, origin(source, counts))
    change(path / cache.META)
    with pytest.raises(UserError, match=r"data\.cache: .* cannot be read on every host"):
        cache.load(path)
    cache.ensure(path, origin(source, counts))
    assert cache.load(path).classes == NAMES
    assert len(counts) == 2
    assert left(path) == [cache.LOCKS, path.name]


@pytest.mark.parametrize("name", cache.COLUMNS)
def test_empty_column_is_refused(path: Path, source: Path, name: str) -> None:
    cache.ensure(path, origin(source))
    (path / f"{name}.npy").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read on every host"):
        cache.load(path)


def test_failure_leaves_nothing(path: Path, source: Path) -> None:
    def fail(folder: Path) -> Samples:
        raise UserError("wrong")

    with pytest.raises(UserError, match="wrong"):
        cache.ensure(path, cache.Origin(files=[source], read=fail))
    assert left(path) == [cache.LOCKS]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache: cannot write .*Set data\.cache"):
        cache.ensure(tmp_path / "file" / "made-0", origin(source))
