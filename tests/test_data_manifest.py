"""A partition written, read and used again; and what is no manifest, or not of these samples, refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import federate
from test_interface import SHORT, alone, summary

from fedbsd_dist.config import Data
from fedbsd_dist.data import manifest
from fedbsd_dist.data.digits import load_digits
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

ASKED = Data(partition="label_domain", alpha=0.3, num_clients=7, num_new_clients=2, test_fraction=0.2, min_samples=12)


@pytest.fixture(scope="module")
def digits() -> Samples:
    return load_digits(Data())


@pytest.fixture
def written(digits: Samples, tmp_path: Path) -> Path:
    path = tmp_path / "partition.json"
    path.write_text(manifest.text(make_partition(digits, ASKED, 3), digits, ASKED, 3))
    return path


def test_what_is_written_is_read_back(digits: Samples, written: Path) -> None:
    made, data = make_partition(digits, ASKED, 3), manifest.options(Data(manifest=str(written)))
    assert data.model_dump(exclude={"manifest"}) == ASKED.model_dump(exclude={"manifest"})
    found = manifest.partition(digits, data)
    assert (found.sha256, found.num_new, found.left_out) == (made.sha256, 2, 0)
    assert all(map(np.array_equal, (*found.train, *found.test), (*made.train, *made.test)))


def test_a_person_finds_sizes_and_class_counts_in_it(digits: Samples, written: Path) -> None:
    facts = json.loads(written.read_text())
    made = make_partition(digits, ASKED, 3)
    assert facts["sha256"] == made.sha256
    assert [client["num_train"] for client in facts["clients"]] == list(made.train_sizes)
    assert [client["new"] for client in facts["clients"]] == [False] * 7 + [True] * 2
    for client, row in zip(facts["clients"], made.class_table(digits), strict=True):
        assert client["classes"] == {str(c): int(count) for c, count in enumerate(row) if count}
    assert len(written.read_text().splitlines()) < 40  # a line a client


def test_another_method_and_seed_get_the_same_clients(tmp_path: Path) -> None:
    assert alone(*SHORT, f"run.dir={tmp_path / 'one'}", "data.test_fraction=0.3", "data.partition=iid") == 0
    path = tmp_path / "one/partition.json"
    options = ("method.name=fedavg", "seed=5", f"data.manifest={path}")
    federate(tmp_path / "two", 3, *SHORT, *options)
    one, two = (json.loads((tmp_path / name / "partition.json").read_text()) for name in ("one", "two"))
    assert one["sha256"] == two["sha256"]
    assert one["options"] == two["options"]
    assert summary(tmp_path / "two")["num_clients"] == 4
    # its own config.yaml is a configuration like any other
    again = ("run.overwrite=true", "train.rounds=1", f"run.dir={tmp_path / 'three'}")
    assert alone(str(tmp_path / "two/config.yaml"), *again) == 0
    assert json.loads((tmp_path / "three/partition.json").read_text())["sha256"] == one["sha256"]


def test_an_option_that_contradicts_the_manifest_is_refused(written: Path) -> None:
    path = str(written)
    assert manifest.options(Data(manifest=path, num_clients=7)).num_clients == 7
    for key, value in {"num_clients": 8, "alpha": 0.1, "partition": "dirichlet", "test_fraction": 0.0}.items():
        with pytest.raises(UserError, match=rf"data\.{key}={value}: data\.manifest=.*Leave out one"):
            manifest.options(Data(**{"manifest": path, key: value}))


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(facts: Any) -> None:
        for key in path[:-1]:
            facts = facts[key]
        facts[path[-1]] = to

    return change


def _twice(facts: Any) -> None:
    facts["clients"][1]["train"][0] = facts["clients"][0]["train"][0]


def _moved(facts: Any) -> None:
    """A sample from one client to another: all counts of samples stay right."""
    facts["clients"][1]["train"].append(facts["clients"][0]["train"].pop())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("identity", to="0" * 64), "another data set"),
        (_set("clients", 0, "train", 0, to=10**7), "do not exist"),
        (_set("clients", 0, "train", 0, to=10**30), "do not exist"),
        (_set("clients", 0, "train", 0, to=-1), "do not exist"),
        (_set("clients", 0, "test", to=[]), "without test samples"),
        (_set("clients", 0, "train", to=[]), "without training samples"),
        (_twice, "two clients"),
        (_moved, "changed after it was written"),
        (_set("sha256", to="0" * 64), "changed after it was written"),
        (_set("format", to=2), "format 2"),
        (_set("clients", to=[]), "not the clients"),
        (_set("options", "num_clients", to=3), "not the clients"),
        (_set("options", "num_clients", to="three"), "options"),
        (_set("options", to={}), "options"),
        (_set("clients", 0, "train", to="x"), "damaged"),
        (_set("identity", to=None), "damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    change: Callable[[Any], None], says: str, digits: Samples, written: Path
) -> None:
    facts = json.loads(written.read_text())
    change(facts)
    written.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=says) as caught:
        manifest.partition(digits, manifest.options(Data(manifest=str(written))))
    assert f"data.manifest={written}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "null", "[" * 100_000, '{"format": 1}', b"\xff\xfe"])
def test_a_file_that_is_no_manifest_is_refused(content: str | bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"data\.manifest=.*x\.json"):
        manifest.options(Data(manifest=str(path)))


def test_a_run_goes_on_only_with_the_same_clients(tmp_path: Path, capsys) -> None:
    options = (*SHORT, f"run.dir={tmp_path / 'run'}", "checkpoint.every=1", "run.resume=auto")
    assert alone(*options, "train.rounds=1") == 0
    (tmp_path / "run/summary.json").unlink()
    path = tmp_path / "run/partition.json"
    facts = json.loads(path.read_text())
    for changed in ("sha256", "identity"):
        path.write_text(json.dumps({**facts, changed: "0" * 64}))
        capsys.readouterr()
        assert alone(*options) == 2
        assert "other samples" in capsys.readouterr().err
    path.write_text(json.dumps(facts))
    assert alone(*options) == 0
