"""Validation samples: held out of each client's training samples, and what chooses the best round, never the test."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from ranks import federate
from test_interface import SHORT, alone
from test_resume import Stopped

from fedbsd_dist.commandline import load
from fedbsd_dist.data import manifest, sources
from fedbsd_dist.data.partition import Partition, make_partition
from fedbsd_dist.errors import UserError
from fedbsd_dist.evaluation import best_by_validation, last_rounds
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.record.recorder import Recorder

EVALUATED = (*SHORT, "train.rounds=4", "evaluate.every=1", "evaluate.last_rounds=3", "wire.sum=exact")
UNCHANGED = "b53b2d263faa7200a46583ed9b914991ec50723ff334dbdfb7cab5dd8af96634"
"""sha256 of the default partition, as it was before there were validation samples."""


def divide(*options: str) -> tuple[Partition, np.ndarray]:
    """The partition, and the labels of all samples."""
    config = load(options, OPTIONS)
    samples = sources.load(config.data)
    return make_partition(samples, config.data, config.seed), samples.y


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with validation samples; not to be changed."""
    path = tmp_path_factory.mktemp("validation") / "run"
    assert alone(*EVALUATED, "data.val_fraction=0.2", "checkpoint.every=1", f"run.dir={path}") == 0
    return path


def test_without_them_a_partition_is_what_it_always_was():
    assert divide()[0].sha256 == UNCHANGED
    assert divide()[0].val == ()


@pytest.mark.parametrize("kind", ["dirichlet", "iid", "pathological"])
@pytest.mark.parametrize("test_fraction", [0.0, 0.25])
def test_they_are_taken_off_the_training_samples_class_by_class(kind: str, test_fraction: float):
    options = (f"data.partition={kind}", f"data.test_fraction={test_fraction}", "data.num_new_clients=2", "seed=3")
    before, _ = divide(*options)
    after, y = divide(*options, "data.val_fraction=0.3")
    for client in range(22):
        train, val = after.train[client], after.val[client]
        assert not set(train) & set(val)
        assert sorted([*train, *val]) == before.train[client].tolist()
        assert after.test[client].tolist() == before.test[client].tolist()
        if client >= 20:
            assert len(val) == 0  # new clients keep theirs
            continue
        assert len(train) >= 10
        assert len(val) >= 1
        both, held = np.bincount(y[before.train[client]], minlength=10), np.bincount(y[val], minlength=10)
        assert (np.abs(held - 0.3 * both) <= 1).all()
    assert len(set(np.concatenate(after.val)) & set(np.concatenate(after.test))) == 0


def test_min_samples_are_for_training_or_the_message_says_what_would_do():
    options = ("data.num_clients=200", "data.min_samples=30")
    assert min(divide(*options, "data.val_fraction=0.1")[0].train_sizes) >= 30
    with pytest.raises(UserError, match=r"besides validation samples.*data\.val_fraction lower"):
        divide(*options, "data.val_fraction=0.5")
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        load(["data.val_fraction=0.95"], OPTIONS)


def test_a_manifest_keeps_them(run: Path):
    config = load([*EVALUATED, "data.val_fraction=0.2"], OPTIONS)
    samples = sources.load(config.data)
    drawn = make_partition(samples, config.data, config.seed)
    again = load([*EVALUATED, f"data.manifest={run / 'partition.json'}"], OPTIONS)
    data = manifest.options(again.data)
    assert data.val_fraction == 0.2
    assert manifest.partition(samples, data).sha256 == drawn.sha256
    saved = json.loads((run / "partition.json").read_text())["clients"]
    assert [client["val"] for client in saved] == [val.tolist() for val in drawn.val]


def test_evaluations_test_on_them_too(run: Path):
    for line in lines(run):
        assert line["validation"].keys() == {"received", "trained"}
        assert line["validation"]["received"] != line["accuracy"]["received"]
    rows = list(csv.DictReader((run / "clients.csv").read_text().splitlines()))
    for row in rows:
        assert bool(row["val_accuracy"]) == bool(row["num_val"]) == (row["stage"] in ("received", "trained"))
    last = [row for row in rows if row["round"] == "4" and row["stage"] == "received"]
    mean = float(np.mean([float(row["val_accuracy"]) for row in last]))
    assert lines(run)[-1]["validation"]["received"]["mean"] == pytest.approx(mean)


def test_the_summary_has_last_mean_and_best(run: Path):
    found, facts = lines(run), summary(run)
    assert facts["accuracy"] == found[-1]["accuracy"]
    several = facts["accuracy_last_rounds"]
    assert (several["rounds"], several["evaluations"]) == (3, 3)
    for key, value in several["received"].items():
        assert value == pytest.approx(np.mean([line["accuracy"]["received"][key] for line in found[1:]]))
    best = max(found, key=lambda line: line["validation"]["received"]["mean"])
    assert facts["best"] == {
        "round": best["round"],
        "validation": best["validation"]["received"]["mean"],
        "stage": "received",
        "received": best["accuracy"]["received"],
    }


def test_the_best_round_is_chosen_by_validation_where_the_test_disagrees():
    made = [
        {"round": number, "accuracy": {"received": {"mean": test}}, "validation": {"received": {"mean": val}}}
        for number, test, val in ((1, 0.5, 0.6), (2, 0.9, 0.7), (3, 0.4, 0.8), (4, 0.95, 0.8), (5, 0.99, 0.1))
    ]
    best = best_by_validation([{"round": 0, "accuracy": {}, "validation": {}}, *made])
    assert best is not None
    assert (best["round"], best["validation"], best["received"]["mean"]) == (3, 0.8, 0.4)  # the first of equals


def test_without_validation_there_is_no_best(tmp_path: Path):
    federate(tmp_path, 1, *SHORT)
    facts = summary(tmp_path)
    assert "best" not in facts
    assert "validation" not in lines(tmp_path)[-1]
    several = facts["accuracy_last_rounds"]
    assert (several["rounds"], several["evaluations"]) == (10, 1)
    assert several["received"] == facts["accuracy"]["received"]


def test_the_mean_is_over_the_evaluations_within_the_last_rounds():
    made = [
        {"round": number, "accuracy": {"received": {"mean": number / 10}} if number % 2 == 0 else {}}
        for number in range(1, 9)
    ]
    assert last_rounds(made, 4) == {"rounds": 4, "evaluations": 2, "received": {"mean": pytest.approx(0.7)}}
    assert last_rounds(made, 100)["evaluations"] == 4


def test_any_number_of_ranks_and_a_resumed_run_say_the_same(run: Path, tmp_path: Path):
    options = (*EVALUATED, "data.val_fraction=0.2", "checkpoint.every=1")
    federate(tmp_path / "3", 3, *options)
    recorded = Recorder.round

    def stop(self, report, entries) -> None:
        if report.round == 4:
            raise Stopped
        recorded(self, report, entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "round", stop)
        with pytest.raises(Stopped):
            alone(*options, f"run.dir={tmp_path / 'resumed'}")
    assert alone(*options, f"run.dir={tmp_path / 'resumed'}", "run.resume=auto") == 0
    for name in ("3", "resumed"):
        for key in ("state_sha256", "accuracy", "accuracy_last_rounds", "best"):
            assert summary(tmp_path / name)[key] == summary(run)[key], (name, key)
