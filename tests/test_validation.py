"""Validation: samples that are neither trained on nor tested with, and a best round that only they choose."""

import csv
import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import federate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_data_partition import _random_request, _random_samples
from test_interface import SHORT, alone, summary
from test_overview import dealt
from test_resume import OPTIONS as RESUMABLE
from test_resume import outcome, resume, stop_in_round

from fedbsd_dist import overview
from fedbsd_dist.config import Data
from fedbsd_dist.data import feasible, manifest
from fedbsd_dist.data.digits import load_digits
from fedbsd_dist.data.partition import Partition, make_partition
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.data.shards import Shards
from fedbsd_dist.errors import UserError
from fedbsd_dist.evaluation import best_by_validation, last_rounds

HELD_OUT = Data(num_clients=6, num_new_clients=2, val_fraction=0.2, alpha=0.5)
ROUNDS = 4
OPTIONS = (
    *SHORT,
    *(f"train.rounds={ROUNDS}", "evaluate.every=1", "evaluate.last_rounds=3", "data.val_fraction=0.25"),
    *("data.num_new_clients=1", "wire.sum=exact", "checkpoint.every=2"),
)


@pytest.fixture(scope="module")
def digits() -> Samples:
    return load_digits(Data())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("validation") / "run"
    assert alone(*OPTIONS, f"run.dir={path}") == 0
    return path


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_seconds(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics, without what depends on the number of ranks or the machine."""
    return [{key: value for key, value in line.items() if key not in ("seconds", "bytes")} for line in lines(run)]


# --- who holds what


@pytest.mark.filterwarnings("error")
def test_validation_samples_are_split_off_what_would_be_trained_on() -> None:
    """The same clients as ones with samples enough for both, but for the samples taken off the training samples."""
    rng, made = np.random.default_rng(1), 0
    for trial in range(600):
        samples = _random_samples(rng)
        fraction = float(rng.choice([0.05, 0.2, 0.5, 0.9]))
        data = _random_request(rng, trial, samples)
        data = data.model_copy(update={"val_fraction": fraction, "min_samples": min(data.min_samples, 3)})
        try:
            found = make_partition(samples, data, trial)
        except UserError:
            continue
        made += 1
        training = feasible.needed(data.min_samples, data.model_copy(update={"test_fraction": 0.0}))
        whole = make_partition(samples, data.model_copy(update={"val_fraction": 0.0, "min_samples": training}), trial)
        assert all(map(np.array_equal, found.test, whole.test))
        assert (found.left_out, found.num_new) == (whole.left_out, whole.num_new)
        for client, (train, val, before) in enumerate(zip(found.train, found.val, whole.train, strict=True)):
            assert np.array_equal(np.sort(np.concatenate([train, val])), before)
            assert not (np.diff(val) <= 0).any()
            if client >= found.num_clients:
                assert len(val) == 0
                continue
            assert len(train) >= data.min_samples
            assert len(val) == max(1, math.floor(len(before) * fraction + 0.5))
            counts = np.bincount(samples.y[before], minlength=len(samples.classes))
            held = np.bincount(samples.y[val], minlength=len(samples.classes))
            assert (np.abs(held - counts * len(val) / len(before)) <= 1).all()
    assert made > 150


def test_they_are_the_same_on_every_platform_and_in_the_fingerprint(digits: Samples) -> None:
    found = make_partition(digits, HELD_OUT, 0)
    assert found.sha256 == "1f34189cdd3d0a71b8a00763a405ef0cba4577072a5211ac61a89d355e91d0f8"
    moved = Partition(train=found.train, test=found.test, val=found.val[::-1], num_new=found.num_new)
    assert found.sha256 != moved.sha256


@pytest.mark.parametrize(
    ("options", "sha256"),
    [
        ({}, "e2e45bb3e4d1619f3d16d383bd1c60da292424ee51cf5f596dc61bfb02157414"),
        (
            {"partition": "label_domain", "test_fraction": 0.25, "num_new_clients": 3},
            "4b0f74aaa6acc9add9a2ea6642219a58599e92aecd4db757a196deb8eff7afc5",
        ),
    ],
)
def test_without_them_a_manifest_is_what_it_was_before_there_were_any(
    digits: Samples, options: dict[str, Any], sha256: str
) -> None:
    text = manifest.text(make_partition(digits, Data(**options), 0), digits, Data(**options), 0)
    assert hashlib.sha256(text.encode()).hexdigest() == sha256


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # 7,823 training samples: 10 of 13 stay when 3 (3.25) are held out
        ({"val_fraction": 0.25, "num_clients": 602}, ["val_fraction=0.25", "1..601", "data.val_fraction lower"]),
        ({"val_fraction": 0.9, "num_clients": 100}, ["data.val_fraction=0.9", "data.min_samples to 1..8"]),
        ({"val_fraction": 0.5, "num_clients": 0}, ["data.num_clients=0", "data.num_clients to 1.."]),
        ({"val_fraction": 0.5, "partition": "pathological", "min_samples": 195}, ["data.val_fraction=0.5", "lower"]),
    ],
)
def test_too_large_a_fraction_is_refused_with_what_is_possible(
    digits: Samples, change: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        make_partition(digits, Data(**change), 0)
    assert all(part in str(caught.value) for part in says), str(caught.value)
    assert change.get("num_clients") != 0 or "val_fraction lower" not in str(caught.value)  # which would not help


def test_the_ends_of_the_stated_range_work(digits: Samples) -> None:
    for change in ({"num_clients": 601, "val_fraction": 0.25}, {"num_clients": 100, "val_fraction": 0.9}):
        data = Data(min_samples=10 if change["num_clients"] == 601 else 8, **change)
        assert min(make_partition(digits, data, 0).train_sizes) >= data.min_samples


@pytest.mark.parametrize("value", ["-0.1", "0.95", "half"])
def test_no_fraction_is_refused(value: str, capsys) -> None:
    assert alone(f"data.val_fraction={value}") == 2
    assert "data.val_fraction" in capsys.readouterr().err


def test_nothing_is_normalized_by_them_and_a_shard_holds_them(digits: Samples) -> None:
    found = make_partition(digits, HELD_OUT, 0)
    assert not np.isin(found.learned_from, np.concatenate(found.val)).any()
    shards = Shards(digits, found, [0, 7], torch.device("cpu"), most_bytes=1e9)
    assert np.array_equal(shards[0].val_images, digits.x[found.val[0]])
    assert np.array_equal(shards[0].val_labels, digits.y[found.val[0]])
    assert len(shards[7].val_images) == len(shards[7].val_labels) == 0
    mean, _ = digits.mean_and_std(np.concatenate(found.train[:6]))
    assert shards[0].mean.tolist() == torch.tensor(mean).tolist()


def test_a_preview_and_a_plan_tell_of_them(digits: Samples, capsys) -> None:
    samples, partition = dealt([("aab", "c"), ("c", "cc"), ("ba", "a")], num_new=1)
    assert "val" not in overview.clients(samples, partition)[0].split()
    val = (partition.train[0][:1], partition.train[1][:0], partition.train[2][:0])
    held_out = Partition(train=partition.train, test=partition.test, val=val, num_new=1)
    assert [row.split()[:4] for row in overview.clients(samples, held_out)[:2]] == [
        ["client", "train", "val", "test"],
        ["0", "3", "1", "1"],
    ]
    assert alone("--check=1", "data.val_fraction=0.25") == 0
    assert "validation, 2797 test samples" in capsys.readouterr().out


# --- a manifest


@pytest.fixture
def written(digits: Samples, tmp_path: Path) -> Path:
    path = tmp_path / "partition.json"
    path.write_text(manifest.text(make_partition(digits, HELD_OUT, 3), digits, HELD_OUT, 3))
    return path


def test_a_manifest_gives_them_back(digits: Samples, written: Path) -> None:
    made, data = make_partition(digits, HELD_OUT, 3), manifest.options(Data(manifest=str(written)))
    assert data.model_dump(exclude={"manifest"}) == HELD_OUT.model_dump(exclude={"manifest"})
    found = manifest.partition(digits, data)
    assert (found.sha256, found.left_out) == (made.sha256, 0)
    assert all(map(np.array_equal, found.val, made.val))
    clients = json.loads(written.read_text())["clients"]
    assert [client["num_val"] for client in clients] == list(made.val_sizes)


def test_a_manifest_without_them_is_not_taken_for_one_with_them(digits: Samples, tmp_path: Path) -> None:
    path = tmp_path / "partition.json"
    path.write_text(manifest.text(make_partition(digits, Data(), 0), digits, Data(), 0))
    assert manifest.options(Data(manifest=str(path))).val_fraction == 0
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.2: data\.manifest=.* has 0\.0"):
        manifest.options(Data(manifest=str(path), val_fraction=0.2))


def test_a_manifest_whose_validation_samples_are_not_right_is_refused(digits: Samples, written: Path) -> None:
    whole = json.loads(written.read_text())

    def refused() -> str:
        written.write_text(json.dumps(facts))
        with pytest.raises(UserError) as caught:
            manifest.partition(digits, manifest.options(Data(manifest=str(written))))
        facts.update(json.loads(json.dumps(whole)))
        return str(caught.value)

    facts = json.loads(json.dumps(whole))
    facts["clients"][0]["val"][0] = facts["clients"][1]["train"][0]
    assert "validation" in refused()
    facts["clients"][0]["val"] = []
    assert "not the validation samples" in refused()
    facts["clients"][7]["val"] = [facts["clients"][7]["train"].pop()]  # a new client's
    assert "not the validation samples" in refused()
    facts["options"]["val_fraction"] = 0.0
    assert "not the validation samples" in refused()
    facts["clients"][0]["train"].append(facts["clients"][0]["val"].pop())
    assert "changed after it was written" in refused()
    facts["options"]["val_fraction"] = "some"
    assert "options" in refused()


# --- training, and testing


def test_training_is_to_the_bit_as_if_they_were_not_there(run: Path, tmp_path: Path) -> None:
    """A manifest that leaves them to nobody."""
    facts = json.loads((run / "partition.json").read_text())
    train, test = (tuple(np.array(client[part]) for client in facts["clients"]) for part in ("train", "test"))
    facts["sha256"] = Partition(train=train, test=test).sha256
    del facts["options"]["val_fraction"]
    for client in facts["clients"]:
        del client["val"]
    path = tmp_path / "without.json"
    path.write_text(json.dumps(facts))
    options = [option for option in OPTIONS if not option.startswith("data.")]
    assert alone(*options, f"data.manifest={path}", f"run.dir={tmp_path / 'run'}") == 0
    assert summary(run)["state_sha256"] == summary(tmp_path / "run")["state_sha256"]
    for line, other in zip(lines(run), lines(tmp_path / "run"), strict=True):
        assert (line["loss"], line["accuracy"]) == (other["loss"], other["accuracy"])
        assert "validation" in line
        assert "validation" not in other
    without = summary(tmp_path / "run")
    assert "best" not in without
    assert without["accuracy_last_rounds"] == summary(run)["accuracy_last_rounds"]


def test_rows_recompute_the_validation_accuracies(run: Path) -> None:
    rows = defaultdict(list)
    for row in csv.DictReader((run / "clients.csv").read_text().splitlines()):
        rows[int(row["round"]), row["stage"]].append(row)
    sizes = [client["num_val"] for client in json.loads((run / "partition.json").read_text())["clients"]]
    for line in lines(run):
        assert list(line["validation"]) == ["received", "trained"]
        for stage, of in line["validation"].items():
            found = rows.pop((line["round"], stage))
            num, accuracy = (np.array([float(row[key]) for row in found]) for key in ("num_val", "val_accuracy"))
            assert num.tolist() == [sizes[int(row["client"])] for row in found]
            correct = accuracy * num
            assert correct == pytest.approx(correct.round(), abs=1e-9)
            assert of["mean"] == pytest.approx(accuracy.mean())
            assert of["weighted_mean"] == pytest.approx(correct.sum() / num.sum())
            assert all(float(row["val_loss"]) > 0 for row in found)
    # the other stages are of test samples alone
    assert {stage for _, stage in rows} == {"head_tuned", "new_client"}
    assert all(row["num_val"] == row["val_accuracy"] == row["val_loss"] == "" for of in rows.values() for row in of)


def test_validation_accuracy_is_that_of_the_samples_held_out(tmp_path: Path) -> None:
    """Where the labels of the training samples are others than the test samples', a model that has learned them is
    right on validation samples and wrong on test samples.
    """
    path = npz(tmp_path / "shifted.npz", train_shift=1)
    options = (
        "train.rounds=6",
        "train.lr=0.1",
        "data.partition=iid",
        "train.participation=1.0",
        "data.val_fraction=0.3",
    )
    assert alone(*SHORT, *options, f"run.dir={tmp_path / 'run'}", *from_file(path)) == 0
    last = lines(tmp_path / "run")[-1]
    assert last["validation"]["received"]["mean"] > 0.6
    assert last["accuracy"]["received"]["mean"] < 0.3


def test_every_number_of_ranks_gives_the_same(run: Path, tmp_path: Path) -> None:
    federate(tmp_path / "run", 3, *OPTIONS)
    assert without_seconds(tmp_path / "run") == without_seconds(run)
    assert (tmp_path / "run/clients.csv").read_text() == (run / "clients.csv").read_text()
    for key in ("state_sha256", "accuracy", "accuracy_last_rounds", "best"):
        assert summary(tmp_path / "run")[key] == summary(run)[key]


def test_tensorboard_shows_them(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for stage in ("received", "trained"):
        shown = {event.step: event.value for event in events.Scalars(f"validation/{stage}_mean")}
        assert shown == {
            line["round"]: pytest.approx(line["validation"][stage]["mean"], rel=1e-6) for line in lines(run)
        }


def test_a_resumed_run_has_lost_nothing(tmp_path: Path) -> None:
    options = ("data.val_fraction=0.25", "evaluate.last_rounds=3")
    assert alone(*RESUMABLE, *options, f"run.dir={tmp_path / 'whole'}") == 0
    stop_in_round(4, tmp_path / "run", *options)
    assert resume(tmp_path / "run", *options) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert summary(tmp_path / "run")["accuracy_last_rounds"]["evaluations"] == 3
    assert summary(tmp_path / "run")["best"]["round"] in range(1, 5)


# --- the summary


def line_of(round: int, test: float, validation: float | None = None) -> dict[str, Any]:
    """A line of metrics; where it was not evaluated, `test` is negative."""
    numbers = {"mean": test, "weighted_mean": test / 2, "std": test / 4, "worst_10pct": test / 8}
    line: dict[str, Any] = {"round": round, "accuracy": {"received": numbers, "trained": {}} if test >= 0 else {}}
    if validation is not None:
        line["validation"] = {"received": {"mean": validation}, "trained": {"mean": 1 - validation}}
    elif test < 0:
        line["validation"] = {}
    return line


def test_the_best_round_is_chosen_by_validation_alone() -> None:
    """Test samples would choose round 2, the stage `trained` round 1, and the last of equals round 4."""
    found = [line_of(1, 0.5, 0.1), line_of(2, 0.9, 0.6), line_of(3, 0.4, 0.7), line_of(4, 0.8, 0.7), line_of(5, -1)]
    best = best_by_validation(found)
    assert best == {"round": 3, "validation": 0.7, "stage": "received", "received": found[2]["accuracy"]["received"]}
    assert best_by_validation([line_of(1, 0.5), line_of(2, 0.9)]) is None


@pytest.mark.parametrize(
    ("rounds", "evaluations", "mean"), [(1, 1, 0.6), (2, 1, 0.6), (3, 2, 0.4), (5, 3, 0.4), (100, 3, 0.4)]
)
def test_the_mean_of_the_last_rounds_by_hand(rounds: int, evaluations: int, mean: float) -> None:
    found = [line_of(1, 0.4), line_of(2, -1), line_of(3, 0.2), line_of(4, -1), line_of(5, 0.6)]
    several = last_rounds(found, rounds)
    assert (several["rounds"], several["evaluations"]) == (rounds, evaluations)
    assert several["received"] == pytest.approx(
        {"mean": mean, "weighted_mean": mean / 2, "std": mean / 4, "worst_10pct": mean / 8}
    )


def test_the_summary_is_worked_out_from_the_lines(run: Path) -> None:
    found, facts = lines(run), summary(run)
    assert facts["accuracy"] == found[-1]["accuracy"]
    assert facts["accuracy_last_rounds"] == last_rounds(found, 3)
    assert facts["accuracy_last_rounds"]["evaluations"] == 3
    validation = [line["validation"]["received"]["mean"] for line in found]
    best = found[validation.index(max(validation))]
    assert facts["best"] == {
        "round": best["round"],
        "validation": max(validation),
        "stage": "received",
        "received": best["accuracy"]["received"],
    }


def test_the_closing_table_has_a_row_for_each(tmp_path: Path, capsys) -> None:
    options = ("evaluate.last_rounds=2", "evaluate.every=2", "train.rounds=3")
    assert alone(*SHORT, *options, "data.val_fraction=0.25", f"run.dir={tmp_path / 'run'}") == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  received, ")]
    rows = dict(line.split("  ", 1) for line in shown)
    best, several = summary(tmp_path / "run")["best"], summary(tmp_path / "run")["accuracy_last_rounds"]
    assert len(rows) == 2
    for name, of in {
        f"received, best by validation (round {best['round']})": best["received"],
        "received, mean of last 2 rounds (2 evaluated)": several["received"],
    }.items():
        assert rows[name].split() == [f"{100 * of[key]:.2f}" for key in ("mean", "weighted_mean", "std", "worst_10pct")]


def npz(path: Path, *, train_shift: int = 0, test_shift: int = 0) -> Path:
    """A file of the embedded digits, with labels that are moved on by so many."""
    samples = load_digits(Data())
    y = (samples.y + np.where(samples.is_test, test_shift, train_shift)) % 10
    np.savez(path, x=samples.x, y=y, split=samples.is_test.astype(int))
    return path


def from_file(path: Path) -> tuple[str, ...]:
    return ("data.source=npz", f"data.root={path}", f"data.cache={path.parent / 'cache'}")


def test_other_test_labels_choose_the_same_round(tmp_path: Path) -> None:
    options = ("evaluate.every=1", "train.rounds=5", "data.val_fraction=0.25", "data.partition=iid")
    for shift in (0, 3):
        path = npz(tmp_path / f"{shift}.npz", test_shift=shift)
        assert alone(*SHORT, *options, f"run.dir={tmp_path / str(shift)}", *from_file(path)) == 0
    right, wrong = summary(tmp_path / "0"), summary(tmp_path / "3")
    assert right["state_sha256"] == wrong["state_sha256"]
    assert right["best"]["received"]["mean"] > wrong["best"]["received"]["mean"] + 0.2
    for key in ("round", "validation"):
        assert right["best"][key] == wrong["best"][key]
    tested = [line["accuracy"]["received"]["mean"] for line in lines(tmp_path / "3")]
    assert tested.index(max(tested)) + 1 != wrong["best"]["round"]  # as a look at test samples would have chosen
