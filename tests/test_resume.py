"""A run that was stopped at any instant and resumed ends as one that never stopped."""

import hashlib
import json
import os
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_interface import alone, tree

from fedbsd_dist.record import checkpoint, claim, saved
from fedbsd_dist.record.recorder import Recorder

OPTIONS = (
    "train.rounds=4",
    "train.local_epochs=1",
    "train.batch_size=256",
    "train.participation=0.5",
    "model.name=mlp",
    "data.num_clients=4",
    "data.classes=[0,1,2,3]",  # fewer samples, less time
    "evaluate.every=1",
    "evaluate.head_epochs=1",
    "checkpoint.every=1",
)
LONGER = ("train.rounds=5", "checkpoint.every=2")
FOLDERS = "checkpoints/round-*"


def outcome(path: Path) -> dict[str, object]:
    """All that must not depend on whether the run was ever stopped: everything but seconds."""
    lines = {}
    for name in ("metrics.jsonl", "ledger.jsonl"):
        lines[name] = [json.loads(line) for line in (path / name).read_text().splitlines()]
        for line in lines[name]:
            del line["seconds"]
    summary = json.loads((path / "summary.json").read_text())
    del summary["seconds"]
    return {**lines, "summary": summary, "clients.csv": (path / "clients.csv").read_text()}


class Stopped(BaseException):
    """As a signal would end the process: no `except Exception` holds it up."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert alone(*OPTIONS, f"run.dir={path}") == 0
    return path


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    """The same run, stopped in the middle of its last round; not to be changed."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    stop_in_round(4, path)
    return path


@pytest.fixture
def stopped(stopped_once: Path, tmp_path) -> Path:
    """The run stopped in its last round, with checkpoints of rounds 2 and 3: a copy of its own."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def stop_in_round(number: int, path: Path, *options: str) -> None:
    """A run that ends just before it records round `number`."""
    recorded = Recorder.round

    def stop(self, report, entries) -> None:
        if report.round == number:
            raise Stopped
        recorded(self, report, entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "round", stop)
        with pytest.raises(Stopped):
            alone(*OPTIONS, f"run.dir={path}", *options)


def resume(path: Path, *options: str) -> int:
    return alone(*OPTIONS, f"run.dir={path}", "run.resume=auto", *options)


def start(path: Path, size: int) -> list:
    """Processes of a run on `size` ranks that is not waited for."""
    port, processes = ranks.free_port(), []
    for rank in range(size):
        _, sender = ranks._CONTEXT.Pipe(duplex=False)
        arguments = [*OPTIONS, *LONGER, f"run.dir={path}", "run.resume=auto"]
        process = ranks._CONTEXT.Process(target=ranks._rank, args=(sender, rank, size, port, ranks._run, (arguments,)))
        process.start()
        processes.append(process)
    return processes


def test_ranks_killed_at_random_instants(tmp_path) -> None:
    """SIGKILL for three ranks, in random order, twice; whatever they were doing."""
    draw = random.Random()
    ranks.federate(tmp_path / "whole", 3, *OPTIONS, *LONGER)
    path = tmp_path / "run"
    for lines in (1, 3):
        processes = start(path, 3)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            written = (path / "metrics.jsonl").read_text().count("\n") if (path / "metrics.jsonl").exists() else 0
            if written >= lines or not any(process.is_alive() for process in processes):
                break
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        for process in draw.sample(processes, 3):
            process.kill()
        for process in processes:
            process.join()
    ranks.federate(path, 3, *OPTIONS, *LONGER, "run.resume=auto")
    assert outcome(path) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("seed", [0, 1])
def test_stopped_again_and_again_at_waits_for_the_disk(seed: int, whole: Path, tmp_path, monkeypatch) -> None:
    """Whatever the record and the checkpoints write waits for the disk: between any two of their steps."""
    draw, synced, left, stops = random.Random(seed), os.fsync, 0, 0

    def stop(handle: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped
        synced(handle)

    monkeypatch.setattr(os, "fsync", stop)
    while not (tmp_path / "run/summary.json").exists():
        left = draw.randint(2, 12 * (stops + 1))  # a start waits about 15 times, a round with its checkpoint 10 times
        try:
            assert resume(tmp_path / "run") == 0
        except Stopped:
            stops += 1
    assert stops >= 2
    assert outcome(tmp_path / "run") == outcome(whole)


def test_stopped_before_a_checkpoint_counts(whole: Path, tmp_path, monkeypatch, capsys) -> None:
    """All its files are there, and the manifest is not: the one before is gone on from, and no damage is told of."""
    committed = checkpoint.Checkpoints._commit

    def stop(self, round, digests, start) -> None:
        if round == 2:
            raise Stopped
        committed(self, round, digests, start)

    monkeypatch.setattr(checkpoint.Checkpoints, "_commit", stop)
    with pytest.raises(Stopped):
        resume(tmp_path / "run")
    files = {path.name for path in (tmp_path / "run/checkpoints/round-000002").iterdir()}
    assert {"shared.pt", "client-000001.pt"} <= files
    assert "manifest.json" not in files
    monkeypatch.undo()
    capsys.readouterr()
    assert resume(tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert "after round 1" in out
    assert err == ""
    assert outcome(tmp_path / "run") == outcome(whole)


def test_resumed_from_the_newest_checkpoint(stopped: Path, whole: Path, capsys) -> None:
    assert [folder.name for folder in sorted(stopped.glob(FOLDERS))] == ["round-000002", "round-000003"]
    capsys.readouterr()
    assert resume(stopped) == 0
    out = capsys.readouterr().out
    assert "after round 3" in out
    assert "round 4/4" in out
    assert "round 3/4" not in out
    assert outcome(stopped) == outcome(whole)
    assert {path for path in tree(stopped) if "events" not in path} == {
        path for path in tree(whole) if "events" not in path
    }


def test_tensorboard_shows_every_round_once(stopped: Path, whole: Path) -> None:
    """Also round 3, which is done again after it was shown."""
    flip_a_byte(stopped / "checkpoints/round-000003")
    resume(stopped)
    shown = []
    for path in (stopped, whole):
        events = EventAccumulator(str(path / "tensorboard"))
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("seconds")]
        shown.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(tags)})
    assert shown[0] == shown[1]
    assert [step for step, _ in shown[0]["loss/classification"]] == [1, 2, 3, 4]


def flip_a_byte(folder: Path) -> None:
    path = folder / "client-000001.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(name: str, change) -> object:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def swap(folder: Path) -> None:
    """Two clients' files, each whole."""
    first, second = (folder / f"client-00000{client}.pt" for client in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def replace_by_an_older_one(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("round-000002"), folder)


DAMAGE = {
    "a byte flipped": flip_a_byte,
    "two files swapped": swap,
    "an older one in its place": replace_by_an_older_one,
    "a file cut short": lambda folder: os.truncate(folder / "shared.pt", 1000),
    "a file empty": lambda folder: os.truncate(folder / "client-000000.pt", 0),
    "a file missing": lambda folder: (folder / "client-000002.pt").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut short": lambda folder: os.truncate(folder / "manifest.json", 40),
    "manifest empty": lambda folder: os.truncate(folder / "manifest.json", 0),
    "manifest not of ours": rewrite("manifest.json", lambda _: "[]"),
    "manifest of bytes": lambda folder: (folder / "manifest.json").write_bytes(b"\xff" * 100),
    # the manifest vouches for the files; nothing may go wrong when it is the one that rotted
    "manifest with another round": rewrite("manifest.json", lambda text: text.replace('"round": 3', '"round": 7')),
    "manifest with another size": rewrite(
        "manifest.json", lambda text: text.replace('"world_size": 1', '"world_size": 3')
    ),
    "manifest without a file": rewrite("manifest.json", lambda text: text.replace("client-000002.pt", "shared.pt")),
    "manifest with a key that rotted": rewrite("manifest.json", lambda text: text.replace("settings", "settjngs")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, stopped: Path, whole: Path, capsys) -> None:
    damage(stopped / "checkpoints/round-000003")
    capsys.readouterr()
    named = (stopped / "checkpoints/round-000003/manifest.json").exists()  # else it was never finished
    assert resume(stopped) == 0
    out, err = capsys.readouterr()
    assert "after round 2" in out
    assert err.count(f"fedbsd_dist: {stopped / 'checkpoints/round-000003'} is damaged: ") == named
    assert outcome(stopped) == outcome(whole)


def drop_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    del lines[number]
    path.write_text("".join(lines))


LACKING = {
    "metrics.jsonl": "metrics.jsonl does not know round 2",
    "ledger.jsonl": "ledger.jsonl lacks collectives of round",
    "clients.csv": "clients.csv lacks clients of round 1, received",
}


@pytest.mark.parametrize("name", LACKING)
def test_a_record_that_lacks_something_is_not_gone_on_from(name: str, stopped: Path, whole: Path, capsys) -> None:
    """What the summary says would be without it. A line of the checkpoint before is missed by that one, too."""
    drop_line(stopped / name, 1)
    before = tree(stopped)
    capsys.readouterr()
    assert resume(stopped) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("fedbsd_dist: ") == 1
    assert LACKING[name] in err
    assert "Bring back the files" in err
    assert tree(stopped) == before
    (stopped / name).unlink()
    assert resume(stopped) == 2


def test_a_record_that_lacks_its_last_round_goes_on_from_the_one_before(stopped: Path, whole: Path, capsys) -> None:
    drop_line(stopped / "metrics.jsonl", 2)
    assert resume(stopped) == 0
    assert "metrics.jsonl does not know round 3" in capsys.readouterr().err
    assert outcome(stopped) == outcome(whole)


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
@pytest.mark.parametrize("line", ["{", "{}", "[1]", "nothing"])
def test_a_line_that_is_none_is_named(name: str, line: str, stopped: Path, capsys) -> None:
    text = (stopped / name).read_text()
    (stopped / name).write_text(f"{line}\n{text}")
    before = tree(stopped)
    capsys.readouterr()
    assert resume(stopped) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{name}: line 1 is no line of a record" in err
    assert tree(stopped) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_summary_that_is_none_is_named(text: str, whole: Path, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "summary.json").write_text(text)
    before = tree(run)
    capsys.readouterr()
    assert resume(run) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "summary.json: is no summary of a run" in err
    assert tree(run) == before


def test_a_partition_that_is_none_is_the_runs_own(stopped: Path, capsys) -> None:
    (stopped / "partition.json").write_text("{")
    before = tree(stopped)
    capsys.readouterr()
    assert resume(stopped) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "its partition.json is not as it was written" in err
    assert tree(stopped) == before


def test_a_run_does_not_end_at_a_checkpoint_without_its_last_tests(stopped: Path, capsys) -> None:
    before = tree(stopped)
    assert resume(stopped, "train.rounds=3") == 2
    assert "Use train.rounds=4 or more" in capsys.readouterr().err
    assert tree(stopped) == before


@pytest.mark.parametrize("option", ["run.resume=never", "run.resume=auto"])
def test_another_launch_may_have_finished_while_the_lock_was_waited_for(
    option: str, whole: Path, tmp_path, monkeypatch, capsys
) -> None:
    """Then its run is not run over, and not taken for this one."""
    run, claimed = tmp_path / "run", claim.claim

    def late(*arguments: Any) -> Any:
        shutil.copytree(whole, run, dirs_exist_ok=True)
        return claimed(*arguments)

    monkeypatch.setattr(claim, "claim", late)
    assert alone(*OPTIONS, f"run.dir={run}", option, "train.lr=0.03") == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert outcome(run) == outcome(whole)


def test_without_any_good_checkpoint_nothing_is_started_again_unasked(stopped: Path, whole: Path, capsys) -> None:
    for folder in stopped.glob(FOLDERS):
        flip_a_byte(folder)
    before = tree(stopped)
    capsys.readouterr()
    assert resume(stopped) == 2
    err = capsys.readouterr().err
    assert err.count("fedbsd_dist: ") == 1
    for folder in stopped.glob(FOLDERS):
        assert f"{folder} is damaged: client-000001.pt is not as it was written" in err
    assert tree(stopped) == before
    assert alone(*OPTIONS, f"run.dir={stopped}", "run.overwrite=true") == 0
    assert outcome(stopped) == outcome(whole)


def test_a_damaged_checkpoint_does_not_outlive_good_ones(stopped: Path) -> None:
    """With one checkpoint kept, that one must be good; what is damaged is set aside."""
    flip_a_byte(stopped / "checkpoints/round-000003")
    stop_in_round(4, stopped, "checkpoint.keep=1", "run.resume=auto")
    folders = sorted(folder.name for folder in (stopped / "checkpoints").iterdir())
    assert folders == ["damaged-round-000003", "round-000003"]


@pytest.mark.parametrize("begun", [False, True])
def test_stopped_before_the_oldest_checkpoint_is_deleted(begun: bool, whole: Path, tmp_path, monkeypatch) -> None:
    """After the last round, so that no later checkpoint would do it; its manifest may be gone already."""
    run, delete = tmp_path / "run", shutil.rmtree

    def stop(folder: Path, **options: Any) -> None:
        if folder.name != "round-000002":
            return delete(folder, **options)
        if begun:
            (folder / saved.MANIFEST).unlink()
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", stop)
        with pytest.raises(Stopped):
            alone(*OPTIONS, f"run.dir={run}")
    assert (run / "checkpoints/round-000002").exists()
    assert resume(run) == 0
    assert outcome(run) == outcome(whole)
    of_run, of_whole = (sorted(path.name for path in of.glob(FOLDERS)) for of in (run, whole))
    assert of_run == of_whole == ["round-000003", "round-000004"]


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("metrics.jsonl", '{"round": 4, "coho'),
        ("ledger.jsonl", '{"round": 4, "purpose": "aggr'),
        ("clients.csv", "4,received,2,17"),
        ("clients.csv", "1"),  # of 12, or 100
    ],
)
def test_a_half_written_last_line_is_repaired(name: str, half: str, stopped: Path, whole: Path) -> None:
    with (stopped / name).open("a") as file:
        file.write(half)
    assert resume(stopped) == 0
    assert outcome(stopped) == outcome(whole)


def test_more_rounds_may_be_asked_for(tmp_path, whole: Path) -> None:
    stop_in_round(3, tmp_path / "run", "train.rounds=3")
    assert resume(tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(whole)


def test_resuming_from_the_runs_own_config_yaml(stopped: Path, whole: Path) -> None:
    assert alone(str(stopped / "config.yaml"), f"run.dir={stopped}", "run.resume=auto") == 0
    assert outcome(stopped) == outcome(whole)


@pytest.mark.parametrize("option", ["checkpoint.every=3", "checkpoint.keep=5", "wire.timeout=77"])
def test_what_numbers_do_not_depend_on_may_change(option: str, stopped: Path, whole: Path) -> None:
    assert resume(stopped, option) == 0
    assert outcome(stopped)["summary"]["state_sha256"] == outcome(whole)["summary"]["state_sha256"]


@pytest.mark.parametrize(
    "option",
    ["train.lr=0.123", "seed=1", "method.temperature=2.5", "data.alpha=0.77", "wire.sum=exact", "train.rounds=2"],
)
def test_other_settings_are_refused(option: str, stopped: Path, capsys) -> None:
    before = tree(stopped)
    capsys.readouterr()
    assert resume(stopped, option) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    key, _, value = option.partition("=")
    assert re.search(
        rf"settings: {key} was \S+ and is {value}\. " if key != "train.rounds" else "rounds=4 or more", err
    )
    assert tree(stopped) == before


def test_another_number_of_ranks_is_refused(stopped: Path) -> None:
    before = tree(stopped)
    options = (*OPTIONS, "run.resume=auto")
    assert ranks.federate(stopped, 2, *options) == [("exit", 2)] * 2
    assert tree(stopped) == before


def test_resuming_a_finished_run_says_so_and_changes_nothing(whole: Path, capsys) -> None:
    before = tree(whole)
    capsys.readouterr()
    assert resume(whole) == 0
    out, err = capsys.readouterr()
    assert "finished" in out
    assert err == ""
    assert tree(whole) == before


@pytest.mark.parametrize("option", ["train.lr=0.123", "train.rounds=9"])
def test_a_finished_run_of_other_settings_is_not_passed_off_as_this_one(option: str, tmp_path) -> None:
    """Also where no checkpoint tells the difference."""
    path = tmp_path / "run"
    settings = ("checkpoint.every=0", "train.rounds=1")
    assert alone(*OPTIONS, f"run.dir={path}", *settings) == 0
    before = tree(path)
    assert resume(path, *settings, option) == 2
    assert tree(path) == before


def test_there_is_nothing_to_resume_in_a_new_directory(tmp_path, whole: Path) -> None:
    assert resume(tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(whole)


def test_stopped_while_it_overwrites(whole: Path, tmp_path, monkeypatch) -> None:
    """No half of the old run is taken for the new one's."""
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    unlink, unlinked = Path.unlink, []

    def stop(self: Path, *arguments: object, **options: object) -> None:
        if len(unlinked) == 3:
            raise Stopped
        unlinked.append(self)
        unlink(self, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", stop)
    with pytest.raises(Stopped):
        alone(*OPTIONS, f"run.dir={path}", "run.overwrite=true")
    monkeypatch.undo()
    assert resume(path) == 0
    assert outcome(path) == outcome(whole)


def test_a_clients_head_is_in_its_own_file_alone_for_its_owner_alone(stopped: Path) -> None:
    heads = {}
    folder = stopped / "checkpoints/round-000003"
    for client in range(4):
        path = folder / f"client-{client:06d}.pt"
        assert path.stat().st_mode & 0o777 == 0o600
        state = torch.load(path, weights_only=True)
        assert set(state) == {"head"}
        # no storage of other clients' comes with it
        assert state["head"].untyped_storage().nbytes() == 4 * state["head"].numel() == 4 * (64 * 4 + 4)
        heads[path.relative_to(stopped)] = state["head"].numpy().tobytes()[:64]
    assert set(torch.load(folder / "shared.pt", weights_only=True)) == {"backbone"}
    assert len(set(heads.values())) == 4
    for name, content in tree(stopped).items():
        for owner, head in heads.items():
            # a head that has not changed since is in its owner's older file too
            assert head not in (content or b"") or Path(name).name == owner.name


def vouch(folder: Path, name: str) -> None:
    """Make the manifest stand for a file as it is now."""
    manifest = saved.Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    manifest.files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest.own_sha256 = manifest.digest()
    (folder / "manifest.json").write_text(manifest.model_dump_json())


class Code:
    """A pickle that runs something when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["code", "another model", "no tensors"])
def test_a_file_that_the_manifest_vouches_for_is_still_not_believed(
    content: str, stopped: Path, tmp_path, capsys
) -> None:
    folder = stopped / "checkpoints/round-000003"
    states = {"code": {"head": Code(tmp_path / "ran")}, "another model": {"head": torch.zeros(649)}, "no tensors": [3]}
    torch.save(states[content], folder / "client-000000.pt")
    vouch(folder, "client-000000.pt")
    before = tree(stopped)
    capsys.readouterr()
    assert resume(stopped) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"fedbsd_dist: \S+/client-000000\.pt: holds .+\n", err)
    assert not (tmp_path / "ran").exists()
    assert tree(stopped) == before
