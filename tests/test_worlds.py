"""The same numbers from any number of ranks."""

import json
from pathlib import Path

import pytest
import torch
from ranks import federate

SHORT = (
    "train.rounds=3",
    "train.local_epochs=1",
    "train.batch_size=64",
    "evaluate.every=1",
    "evaluate.head_epochs=1",
    "data.num_clients=12",
    "data.classes=[0,1,2,3]",  # fewer samples, less time
    "checkpoint.every=0",
)


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("method", ["fedbsd", "fedavg"])
def test_exact_sums_give_the_same_bits_on_1_2_3_and_8_ranks(tmp_path, method):
    options = (*SHORT, f"method.name={method}", "wire.sum=exact", "train.participation=0.7")
    runs = []
    for size in (1, 2, 3, 8):
        federate(tmp_path / str(size), size, *options)
        runs.append(summary(tmp_path / str(size)))
    assert [run["world_size"] for run in runs] == [1, 2, 3, 8]
    assert len({run["state_sha256"] for run in runs}) == 1
    assert all(run["accuracy"] == runs[0]["accuracy"] for run in runs)


def test_augmentation_and_samples_read_at_each_turn_do_not_depend_on_ranks_either(tmp_path):
    """On three ranks no image is held on the device, and each client's are read when it has its turn."""
    options = (
        *SHORT,
        "wire.sum=exact",
        "augment.crop=2",
        "augment.flip=true",
        "augment.rotation=10.0",
        "train.rounds=2",
    )
    federate(tmp_path / "1", 1, *options)
    federate(tmp_path / "3", 3, *options, "data.device_memory=0.0")
    federate(tmp_path / "plain", 1, *(option for option in options if not option.startswith("augment")))
    one, three, plain = (summary(tmp_path / name) for name in ("1", "3", "plain"))
    assert one["state_sha256"] == three["state_sha256"] != plain["state_sha256"]
    assert one["accuracy"] == three["accuracy"]


def test_float32_sums_agree_to_1e_5(tmp_path):
    for size in (1, 3):
        federate(tmp_path / str(size), size, *SHORT, "checkpoint.every=3")
    states = [torch.load(tmp_path / size / "checkpoints/round-000003/shared.pt", weights_only=True) for size in "13"]
    assert states[0].keys() == states[1].keys() == {"backbone"}
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-5)
