"""Where the time goes: phases that add up, in the record and in traces, and that change no number."""

import contextlib
import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import federate, run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_channel import join, make_uploads, open_channel
from test_fedbsd import Participant
from test_federation import FEW, build
from test_interface import alone, tree
from test_resume import Stopped

from fedbsd_dist.batches import PREPARED
from fedbsd_dist.config import Augment, Train
from fedbsd_dist.methods.fedbsd import FedBSD
from fedbsd_dist.phases import NAMES, Phases
from fedbsd_dist.record import reading, spending
from fedbsd_dist.record.console import closing
from fedbsd_dist.record.recorder import Recorder
from fedbsd_dist.wire.world import World

OPTIONS = (
    "train.rounds=3",
    "train.local_epochs=1",
    "train.batch_size=256",
    "train.participation=1.0",
    "model.name=mlp",
    FEW,
    "data.num_clients=4",
    "evaluate.every=2",
    "evaluate.head_epochs=1",
    "checkpoint.every=1",
    "data.classes=['0', '1', '2', '3']",
    "wire.sum=exact",  # so that any number of ranks has the same bits
)
OF_CLIENTS = {"load", "train", "distil", "reduce", "evaluate"}


class Event:
    """As torch.cuda.Event: recorded when the host says so, passed when the device has come there."""

    now = 0.0
    """Milliseconds."""
    done = float("inf")
    """What the device has come to."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        assert stream == "the current one"
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.done

    def elapsed_time(self, later: "Event") -> float:
        assert later.query()
        return later.at - self.at


@pytest.fixture
def phases(monkeypatch) -> Phases:
    """Of a device whose clock the test sets."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the current one")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waited for the device"))
    monkeypatch.setattr(Event, "now", 0.0)
    monkeypatch.setattr(Event, "done", float("inf"))
    return Phases(torch.device("cuda", 0))


def pass_by(seconds: float) -> None:
    Event.now += 1000 * seconds


def spent(phases: Phases) -> dict[str, float]:
    return {name: seconds for name, seconds in phases.read().items() if seconds}


def test_of_nested_phases_the_inner_one_counts(phases: Phases) -> None:
    for _ in range(2):
        pass_by(100)
        with phases("train"):
            pass_by(1)
            with phases("distil"):
                pass_by(2)
            pass_by(4)
        with phases("load"):
            pass_by(8)
    assert spent(phases) == {"train": 10, "distil": 4, "load": 16}
    assert spent(phases) == {}
    with phases("train"):
        pass_by(1)
        assert spent(phases) == {}  # it is not over
    assert spent(phases) == {"train": 1}


def test_all_within_an_evaluation_is_evaluation(phases: Phases) -> None:
    with phases("evaluate"):
        with phases("load"):
            pass_by(1)
        with phases("train"), phases("distil"):
            pass_by(2)
    with phases("train"):
        pass_by(4)
    assert spent(phases) == {"evaluate": 3, "train": 4}


def test_what_is_apart_is_no_phases(phases: Phases) -> None:
    for name in ("reduce", "evaluate"):
        with phases(name):
            pass_by(1)
            with phases.apart("all-reduce"):
                pass_by(2)
            pass_by(4)
    assert spent(phases) == {"reduce": 5, "evaluate": 5}


def test_a_phase_ends_with_its_block_however_it_ends(phases: Phases) -> None:
    with contextlib.suppress(KeyError), phases("train"), phases("distil"):
        pass_by(1)
        raise KeyError
    pass_by(2)
    assert spent(phases) == {"distil": 1}


def test_what_the_device_has_not_come_to_is_told_later_and_not_waited_for(phases: Phases) -> None:
    for name in ("load", "train"):
        with phases(name):
            pass_by(1)
    Event.done = 1500
    assert spent(phases) == {"load": 1}
    assert spent(phases) == {}
    Event.done = 2000
    assert spent(phases) == {"train": 1}


def test_phases_are_ranges_where_somebody_wants_them(phases: Phases) -> None:
    seen = []

    @contextlib.contextmanager
    def annotate(name: str):
        seen.append(f"+{name}")
        yield
        seen.append(f"-{name}")

    phases.annotate = annotate
    with phases("evaluate"), phases("train"), phases.apart("all-reduce"):
        pass
    assert seen == ["+evaluate", "+train", "+all-reduce", "-all-reduce", "-train", "-evaluate"]


def test_on_the_host_the_time_of_the_clock_counts() -> None:
    phases = Phases()
    with phases("load"):
        time.sleep(0.05)
    seconds = phases.read()
    assert 0.05 <= seconds.pop("load") < 5
    assert set(seconds.values()) == {0}
    assert tuple(phases.read()) == NAMES


@pytest.mark.parametrize("augmentation", [Augment(), Augment(flip=True)], ids=str)
def test_what_is_said_of_samples_is_distillation(augmentation: Augment) -> None:
    """Once of each, or where images differ each time, of many at once in every epoch."""
    method = FedBSD(FedBSD.Options(), Train(local_epochs=2))
    turn = Participant(0).turn(method, augmentation=augmentation)
    seen: list[str] = []
    turn.phases.annotate = lambda name: contextlib.nullcontext(seen.append(name))
    with turn.phases("train"):
        method.learn(turn)
    once = -(-len(turn.images) // PREPARED)
    assert seen[0] == "train"
    assert set(seen[1:]) == {"distil"}
    assert (len(seen) == 2) if augmentation == Augment() else (2 * once <= len(seen) - 1 <= 2 * once + 4)
    turn.tune_head(1)
    assert seen.pop() == "distil"
    seconds = turn.phases.read()
    assert min(seconds.pop("train"), seconds.pop("distil")) > 0
    assert set(seconds.values()) == {0}


def _order(world: World) -> list[str]:
    """Begin and end of what a rank does in a round with an evaluation, until the sum is there."""
    federation = build(world, "evaluate.every=1", "train.participation=1.0")
    seen: list[str] = []

    @contextlib.contextmanager
    def annotate(name: str) -> Iterator[None]:
        seen.append(f"+{name}")
        yield
        seen.append(f"-{name}")

    federation.phases.annotate = annotate
    federation.round(1)
    return seen[: seen.index("-all-reduce") + 1]


def test_the_last_client_is_tested_while_the_sum_is_on_its_way() -> None:
    server, *others = run_ranks(3, _order)
    assert server == ["+reduce", "+all-reduce", "-all-reduce"]
    for seen in others:
        assert seen[-5:] == ["+reduce", "+all-reduce", "+evaluate", "-evaluate", "-all-reduce"]
        assert seen.count("+evaluate") == seen.count("+train") > 1


def _late(world: World) -> tuple[list[dict[str, list[float]]], float]:
    """What two rounds and a table bring, where rank 1 learns half a second and the server records; and the seconds of
    the rounds' collectives.
    """
    channel, _ = open_channel(world, join(world), True, make_uploads(1, (0.1, 1)))
    channel.start()
    for _ in range(2):
        with channel.phases("train"):
            time.sleep(0.5 if world.rank == 1 else 0)
        channel.reduce(1)
    first, communication = channel.spent(), sum(entry.seconds for entry in channel._ledger.drain())
    with channel.phases("record"):
        time.sleep(0.25 if world.rank == 0 else 0)
    channel.gather({}, 1, 1, round=2, purpose="table")
    both = [{name: seconds.tolist() for name, seconds in of.items()} for of in (first, channel.spent())]
    return both, communication


def test_every_rank_learns_what_each_has_spent() -> None:
    by_rank = run_ranks(3, _late)
    for (first, second), communication in by_rank:
        assert list(first) == [*NAMES, "waiting"]
        assert first["train"][1] >= 1.0 > 0.5 > max(first["train"][0], first["train"][2])
        assert first["waiting"][1] < 0.5 < 0.6 < min(first["waiting"][0], first["waiting"][2])
        assert set(first["record"] + first["evaluate"]) == {0}
        assert second["record"][0] >= 0.25
        assert max(second["train"]) == 0
        assert min(second["waiting"][1:]) > 0.1
        for name in set(first) - {"reduce"}:  # to which each adds what it measured
            assert first[name] == by_rank[0][0][0][name]
        assert first["reduce"] == pytest.approx([communication] * 3)


def test_the_means_of_a_round_are_those_of_ranks_that_host() -> None:
    phases = {name: np.zeros(4) for name in (*NAMES, "waiting")}
    phases["train"] += [9.0, 1.0, 2.0, 0.0]
    phases["distil"] += [0.0, 1.0, 2.0, 0.0]
    phases["record"] += [0.5, 0.0, 0.0, 0.0]
    line = spending.of_round(phases, [[], [0, 1], [2], [3]])
    assert line["phases"] == {**dict.fromkeys((*NAMES, "waiting"), 0.0), "train": 1.0, "distil": 1.0}
    assert line["balance"] == 2.0  # 4 over (2 + 4 + 0) / 3
    assert line["server"] == {"record": 0.5, "checkpoint": 0.0}
    assert spending.of_round({**phases, "train": np.zeros(4), "distil": np.zeros(4)}, [[0]] * 4)["balance"] == 1.0


def test_the_balance_of_a_run_weighs_its_rounds_by_their_length() -> None:
    plain = dict.fromkeys(("total", "training", "communication", "evaluation"), 2.0)
    rest = {"server": {"record": 0.5, "checkpoint": 0.0}}
    lines = [
        dict(plain),  # of an older version
        {**plain, **rest, "phases": {"train": 3.0, "distil": 1.0}, "balance": 1.0},
        {**plain, **rest, "phases": {"train": 1.0, "distil": 0.0}, "balance": 3.5},
    ]
    whole = spending.of_run(lines)
    assert whole["total"] == 6.0
    assert whole["phases"] == {"train": 4.0, "distil": 1.0}
    assert whole["balance"] == (1.0 * 4 + 3.5 * 1) / 5
    assert whole["server"] == {"record": 1.0, "checkpoint": 0.0}


def test_shares_are_of_what_can_be_seen() -> None:
    seconds = {"train": 71.4, "load": 0.31, "distil": 0.951, "record": 0.04, "waiting": 9.0}
    assert spending.shares(seconds, 100.0) == "train 71 %, load 0.3 %, distil 1 %, waiting 9 %"


@pytest.fixture(scope="module", params=[1, 3])
def traced(request, tmp_path_factory) -> tuple[int, Path]:
    """A run of so many ranks with traces of two of its rounds."""
    path = tmp_path_factory.mktemp("traced") / "run"
    options = (*OPTIONS, "profile.trace=true", "profile.rounds=[2, 3]")
    assert federate(path, request.param, *options) == [None] * request.param
    return request.param, path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def summary_of(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_phases_of_a_run_are_parts_of_its_time(traced: tuple[int, Path]) -> None:
    size, path = traced
    lines, whole = lines_of(path), summary_of(path)["seconds"]
    assert list(whole["phases"]) == [*NAMES, "waiting"]
    assert all(whole["phases"][name] > 0 for name in OF_CLIENTS)
    assert all(whole["server"][name] > 0 for name in ("record", "checkpoint"))
    assert sum(whole["phases"].values()) <= whole["total"]
    for line in lines:
        seconds = line["seconds"]
        assert 1 <= seconds["balance"] <= max(1, size - 1)
        assert (seconds["phases"]["evaluate"] > 0) == bool(line["accuracy"])
        # what other numbers say as well: of the slowest rank, and of the all-reduce alone
        assert seconds["phases"]["train"] + seconds["phases"]["distil"] <= seconds["training"] + 1e-4
        assert seconds["phases"]["reduce"] >= seconds["communication"] - 1e-4
    for name, seconds in whole["phases"].items():
        assert seconds == pytest.approx(sum(line["seconds"]["phases"][name] for line in lines))


def test_the_closing_table_says_where_the_time_went(traced: tuple[int, Path]) -> None:
    size, path = traced
    told = closing(summary_of(path), str(path)).splitlines()
    (shares,) = (line for line in told if line.startswith("where it goes"))
    numbers = [float(part.split()[-2]) for part in shares.partition(": ")[2].split(",")]
    assert sum(numbers) == pytest.approx(100, abs=4)  # each is rounded
    assert "train" in shares
    assert "evaluate" in shares
    # alone, it is the server whose phases these are
    assert [line.split("  ")[0] for line in told if line.startswith(("on the server", "balance"))] == (
        ["on the server", "balance"] if size > 1 else []
    )


def test_tensorboard_shows_the_phases(traced: tuple[int, Path]) -> None:
    _, path = traced
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    for tag, key in (("seconds/phase_train", "phases"), ("seconds/server_record", "server")):
        name = tag.rpartition("_")[2]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [
            (line["round"], pytest.approx(line["seconds"][key][name], rel=1e-6)) for line in lines_of(path)
        ]
    assert len(events.Scalars("seconds/balance")) == 3


def test_a_trace_of_every_rank_and_chosen_round(traced: tuple[int, Path]) -> None:
    size, path = traced
    expected = {f"round-00000{number}-rank-{rank}.json.gz" for number in (2, 3) for rank in range(size)}
    assert {found.name for found in (path / "traces").iterdir()} == expected
    for name in expected:
        content = json.loads(gzip.decompress((path / "traces" / name).read_bytes()))
        number, rank = int(name[6:12]), int(name.split(".")[0].split("-")[3])
        about = content["fedbsd_dist"]
        assert (about["rank"], about["round"]) == (rank, number)
        ranges = [event for event in content["traceEvents"] if event.get("cat") == "user_annotation"]
        found = {event["name"] for event in ranges}
        hosts = rank > 0 or size == 1
        assert {f"round {number}", "record", "checkpoint", "reduce", "all-reduce", "evaluate"} <= found
        assert (found >= OF_CLIENTS) == hosts
        operators = {event["name"] for event in content["traceEvents"] if event.get("cat") == "cpu_op"}
        assert ("aten::addmm" in operators) == hosts
        # no shapes and no stacks, which would make it many times as large
        assert not any({"Input Dims", "Call stack"} & event.get("args", {}).keys() for event in content["traceEvents"])
        for inner, outer in (("distil", "train"), ("all-reduce", f"round {number}")):
            within(ranges, inner, outer if found >= {inner, outer} else inner)


def within(ranges: Sequence[dict], inner: str, outer: str) -> None:
    """The first range of the one name lies in one of the other."""
    first = next((event for event in ranges if event["name"] == inner), None)
    assert first is None or any(
        event["ts"] <= first["ts"] and first["ts"] + first["dur"] <= event["ts"] + event["dur"]
        for event in ranges
        if event["name"] == outer
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The run of one rank, without a trace; the profiler is left alone."""
    path = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.profiler.profile", lambda **_: pytest.fail("a profiler"))
        assert alone(*OPTIONS, f"run.dir={path}") == 0
    return path


def test_a_trace_changes_no_number(traced: tuple[int, Path], plain: Path) -> None:
    _, path = traced
    assert not (plain / "traces").exists()
    assert summary_of(plain)["state_sha256"] == summary_of(path)["state_sha256"]
    assert (plain / "clients.csv").read_text() == (path / "clients.csv").read_text()


def test_a_run_goes_on_with_other_options_of_the_profile(plain: Path, tmp_path, monkeypatch) -> None:
    """A chosen round that is already done is not done again for its trace."""
    path, recorded = tmp_path / "run", Recorder.round

    def stop(self, report, entries) -> None:
        if report.round == 3:
            raise Stopped
        recorded(self, report, entries)

    monkeypatch.setattr(Recorder, "round", stop)
    with pytest.raises(Stopped):
        alone(*OPTIONS, f"run.dir={path}", "profile.trace=true", "profile.rounds=[3]")
    assert not (path / "traces").exists()  # a round that was not finished has none
    monkeypatch.undo()
    assert alone(*OPTIONS, f"run.dir={path}", "run.resume=auto", "profile.trace=true", "profile.rounds=[1,3]") == 0
    assert [found.name for found in (path / "traces").iterdir()] == ["round-000003-rank-0.json.gz"]
    assert {**summary_of(path), "seconds": None} == {**summary_of(plain), "seconds": None}
    assert not [key for key in reading.read(path).settings if key.startswith("profile")]
    # and a finished run with other options of the profile is the same run
    assert alone(*OPTIONS, f"run.dir={path}", "run.resume=auto") == 0
    assert alone(*OPTIONS, f"run.dir={path}", "run.overwrite=true", "train.rounds=1") == 0
    assert not (path / "traces").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("profile.trace=true", "profile.rounds=[1,4]"), "there is no round 4 in a run of train.rounds=3"),
        (("profile.trace=true", "train.rounds=1"), "there is no round 2 in a run of train.rounds=1"),
        (("profile.rounds=[0]",), "profile.rounds.0=0: "),
        (("profile.rounds=[]",), "profile.rounds=[]: "),
        (("profile.rounds=2",), "profile.rounds=2: "),
        (("profile.trace=2",), "profile.trace=2: should be a boolean"),
    ],
    ids=str,
)
def test_wrong_options_are_told_before_anything(options: tuple[str, ...], told: str, tmp_path, capsys) -> None:
    assert alone(*OPTIONS, f"run.dir={tmp_path / 'run'}", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert told in err
    assert tree(tmp_path) == {}


def test_the_rounds_chosen_do_not_matter_without_a_trace(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert alone(*OPTIONS, "train.rounds=1", "--check") == 0
    assert capsys.readouterr().err == ""


def keeps_silent(self: object, path: str) -> None:
    """As the profiler does where the disk is full."""


def fails(self: object, path: str) -> None:
    Path(path).write_text("half of")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("export", "why"), [(keeps_silent, "the trace does not fit"), (fails, "No space left on device")]
)
def test_a_trace_that_cannot_be_written_is_told_and_leaves_no_half(
    export: Callable[[object, str], None], why: str, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", export)
    path = tmp_path / "run"
    assert alone(*OPTIONS, f"run.dir={path}", "profile.trace=true") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{path}: cannot be written ({why})" in err
    assert [*(path / "traces").iterdir()] == []
    # the rounds up to it are there to go on from
    monkeypatch.undo()
    assert [line["round"] for line in lines_of(path)] == [1, 2]
