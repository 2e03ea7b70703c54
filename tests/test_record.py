"""The run directory agrees with itself: rows recompute the summary, lines add up to it, TensorBoard shows them."""

import csv
import json
import math
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from ranks import federate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedbsd_dist.record import files
from fedbsd_dist.record.console import duration, size

ROUNDS, CLIENTS, COHORT = 4, 6, 3
OPTIONS = (
    f"train.rounds={ROUNDS}",
    "train.local_epochs=1",
    f"data.num_clients={CLIENTS}",
    "train.participation=0.5",
    "train.batch_size=64",
    "model.name=mlp",
    "evaluate.every=2",
    "evaluate.head_epochs=1",
    "checkpoint.every=2",
)
SECONDS = ("total", "training", "communication", "evaluation")
STAGES = ["received", "trained", "head_tuned"]


class Run:
    """A run directory, read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = json.loads((path / "summary.json").read_text())
        self.metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        self.ledger = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
        self.clients = list(csv.DictReader((path / "clients.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    path = tmp_path_factory.mktemp("record") / "run"
    assert federate(path, 3, *OPTIONS) == [None] * 3
    return Run(path)


def accuracy_of(rows: list[dict[str, str]]) -> dict[str, float]:
    """The four numbers of a stage, from rows of clients.csv."""
    tests = np.array([int(row["num_test"]) for row in rows])
    accuracy = np.array([float(row["accuracy"]) for row in rows])
    worst = np.sort(accuracy)[: math.ceil(len(rows) / 10)]
    return {
        "mean": accuracy.mean(),
        "weighted_mean": (accuracy * tests).sum() / tests.sum(),
        "std": accuracy.std(),
        "worst_10pct": worst.mean(),
    }


def test_the_summary_has_every_key(run: Run) -> None:
    facts = run.summary
    assert (facts["method"], facts["seed"], facts["rounds"], facts["num_clients"]) == ("fedbsd", 0, ROUNDS, CLIENTS)
    assert (facts["world_size"], facts["device"], facts["backend"]) == (3, "cpu", "gloo")
    assert list(facts["accuracy"]) == STAGES
    assert set(facts["bytes"]) == {"federated_up", "federated_down", "payload", "wire"}
    assert set(facts["seconds"]) == {*SECONDS, "checkpoint", "phases", "balance", "server"}
    assert len(bytes.fromhex(facts["state_sha256"])) == 32
    for stage in STAGES:
        assert set(facts["accuracy"][stage]) == {"mean", "weighted_mean", "std", "worst_10pct"}
        assert 0 <= facts["accuracy"][stage]["worst_10pct"] <= facts["accuracy"][stage]["mean"] <= 1


def test_client_rows_recompute_every_accuracy(run: Run) -> None:
    rows = defaultdict(list)
    for row in run.clients:
        rows[int(row["round"]), row["stage"]].append(row)
    for line in run.metrics:
        for stage, accuracy in line["accuracy"].items():
            assert accuracy == pytest.approx(accuracy_of(rows.pop((line["round"], stage))), rel=1e-12, abs=1e-12)
    assert not rows
    assert run.summary["accuracy"] == run.metrics[-1]["accuracy"]


def test_stages_during_the_run_and_at_its_end(run: Run) -> None:
    everyone = list(range(CLIENTS))
    at = {round: Counter() for round in range(1, ROUNDS + 1)}
    clients = defaultdict(list)
    for row in run.clients:
        at[int(row["round"])][row["stage"]] += 1
        clients[int(row["round"]), row["stage"]].append(int(row["client"]))
    assert at[1] == at[3] == {}
    assert at[2] == {"received": CLIENTS, "trained": COHORT}  # only the cohort has just trained
    assert at[4] == dict.fromkeys(STAGES, CLIENTS)
    assert all(clients[4, stage] == everyone for stage in STAGES)
    assert [list(line["accuracy"]) for line in run.metrics] == [[], ["received", "trained"], [], STAGES]


def test_client_rows_carry_the_partition(run: Run) -> None:
    sizes = {row["client"]: (int(row["num_train"]), int(row["num_test"])) for row in run.clients}
    assert sum(train for train, _ in sizes.values()) == 7823
    assert sum(test for _, test in sizes.values()) == 2797
    # a number of correct test samples, no more digits than that and none lost
    for row in run.clients:
        correct = float(row["accuracy"]) * int(row["num_test"])
        assert correct == pytest.approx(round(correct), abs=1e-9)
        assert float(row["loss"]) > 0


def test_rounds_add_up_to_the_bytes_of_the_run(run: Run) -> None:
    assert [line["round"] for line in run.metrics] == list(range(1, ROUNDS + 1))
    assert [line["cohort"] for line in run.metrics] == [COHORT] * ROUNDS
    total = run.summary["bytes"]
    for key in ("federated_up", "federated_down"):
        assert total[key] == sum(line["bytes"][key] for line in run.metrics) == ROUNDS * COHORT * 4 * 279_360
    for key in ("payload", "wire"):
        assert total[key] == sum(entry[f"{key}_bytes"] for entry in run.ledger)
        # the digest at the end is no round's
        rounds = [entry for entry in run.ledger if entry["purpose"] in ("aggregate", "evaluation")]
        for line in run.metrics:
            assert line["bytes"][key] == sum(e[f"{key}_bytes"] for e in rounds if e["round"] == line["round"])


def test_every_collective_has_its_line(run: Run) -> None:
    found = Counter((entry["round"], entry["purpose"]) for entry in run.ledger)
    expected = [(round, "aggregate") for round in range(1, ROUNDS + 1)]
    expected += [(2, "evaluation"), (4, "evaluation"), (4, "state digest")]
    assert found == Counter(expected)
    item = {"float32": 4, "int64": 8, "float64": 8}
    for entry in run.ledger:
        assert entry["payload_bytes"] == entry["elements"] * item[entry["dtype"]]
        assert entry["wire_bytes"] == 2 * (3 - 1) * entry["payload_bytes"]
        assert entry["elements"] == sum(entry["elements_by_group"].values())
        assert "head" not in entry["elements_by_group"]


def test_seconds_are_parts_of_the_total(run: Run) -> None:
    """Each is that of the rank that took longest, so that on a busy machine their sum may be more than the total."""
    for line in [*run.metrics, run.summary]:
        seconds = line["seconds"]
        assert all(0 <= seconds[key] <= seconds["total"] * 1.05 + 0.05 for key in SECONDS)
    seconds = run.summary["seconds"]
    assert 0 < seconds["checkpoint"] < 60  # beside the rounds, so in none of them
    for key in SECONDS:
        assert seconds[key] == pytest.approx(sum(line["seconds"][key] for line in run.metrics))


def test_seconds_of_one_rank_add_up_to_no_more_than_the_total(tmp_path) -> None:
    federate(tmp_path / "run", 1, *OPTIONS)
    alone = Run(tmp_path / "run")
    for line in [*alone.metrics, alone.summary]:
        seconds = line["seconds"]
        assert seconds["training"] + seconds["communication"] + seconds["evaluation"] <= seconds["total"] * 1.05 + 0.05


def test_tensorboard_shows_the_metrics_against_the_rounds(run: Run) -> None:
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    shown = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    for key in ("classification", "distillation"):
        assert shown[f"loss/{key}"] == {
            line["round"]: pytest.approx(line["loss"][key], rel=1e-6) for line in run.metrics
        }
    for key in ("federated_up", "federated_down", "payload", "wire"):
        assert shown[f"bytes/{key}"] == {
            line["round"]: pytest.approx(line["bytes"][key], rel=1e-6) for line in run.metrics
        }
    for stage in STAGES:
        assert shown[f"accuracy/{stage}_mean"] == {
            line["round"]: pytest.approx(line["accuracy"][stage]["mean"], rel=1e-6)
            for line in run.metrics
            if stage in line["accuracy"]
        }


def test_an_atomic_write_makes_the_file_with_its_mode(tmp_path) -> None:
    files.write_atomically(tmp_path / "file", b"new", 0o600)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    files.write_atomically(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_in_an_atomic_write_leaves_the_old_file(step: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(tmp_path / "file", b"new" * 100_000)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_in_an_atomic_write_leaves_the_old_file(step: str, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    child = os.fork()
    if child == 0:
        setattr(files.os, step, lambda *_: os.kill(os.getpid(), 9))
        files.write_atomically(tmp_path / "file", b"new" * 100_000)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / "file").read_bytes() == b"old"
    # and what the killed one left is in nobody's way
    files.write_atomically(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"


def test_an_atomic_write_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch) -> None:
    """A power cut after the rename must not find an empty file: content, then name, then directory."""
    steps = []
    for step in ("fsync", "replace"):
        done = getattr(os, step)
        monkeypatch.setattr(files.os, step, lambda *a, step=step, done=done: (steps.append(step), done(*a)))
    files.write_atomically(tmp_path / "file", b"new")
    assert steps == ["fsync", "replace", "fsync"]


def test_appended_lines_are_on_disk(tmp_path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(files.os, "fsync", lambda _: synced.append((tmp_path / "file").read_text()))
    files.append(tmp_path / "file", "one\n")
    files.append(tmp_path / "file", "two\n")
    assert synced == ["one\n", "one\ntwo\n"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (5e15, "5000.0 TB")],
)
def test_sizes_are_in_decimal_units(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4.2 s"), (59.9, "59.9 s"), (185, "3 min 05 s"), (3600, "1 h 00 min"), (7800, "2 h 10")]
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds).startswith(text)
