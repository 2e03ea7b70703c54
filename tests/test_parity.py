"""Distributed runs equal the plain single-process reference: states, losses, accuracies.

Both compute in float32, but differently: other memory layouts, no fused optimizer, the teacher's features batch by
batch. They differ by rounding, 1e-7. Training amplifies that wherever it moves an activation across the kink of a
ReLU or another pixel to the top of a max-pool. So most cases use a smooth network, where nothing does, and the
package's own networks take few, large batches.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from ranks import federate
from torch import Tensor, nn

from fedbsd_dist.commandline import load
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data import sources
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import SplitModel, build_model
from fedbsd_dist.randomness import generator

TOLERANCE = 1e-6
FAR = 100 * TOLERANCE
"""What training, and distillation, must change at least for equality to mean something."""
ROUNDS, CLIENTS, COHORT, EPOCHS = 3, 8, 5, 3
"""EPOCHS: the most that any case has."""
COMMON = (
    "seed=1",
    f"train.rounds={ROUNDS}",
    "train.participation=0.6",
    "train.local_epochs=1",
    "train.lr=0.01",
    "train.momentum=0.5",
    f"data.num_clients={CLIENTS}",
    "data.alpha=0.3",
    "evaluate.every=0",
    "evaluate.head_epochs=2",
    f"checkpoint.every={ROUNDS}",
    "wire.sum=exact",
)
SMOOTH = (
    "model.factory=test_parity:smooth",
    "train.batch_size=128",
    "train.lr=0.05",
    "train.momentum=0.9",
    "train.weight_decay=0.001",
)
CASES = {
    "fedbsd": SMOOTH,
    "fedbsd features_kl": (
        *SMOOTH,
        "method.distillation=features_kl",
        "method.distillation_weight=3.0",
        "method.temperature=0.5",
        "method.temperature_squared=false",
        "method.mean=samples",
    ),
    "fedbsd features_mse, head first": (
        *SMOOTH,
        "method.distillation=features_mse",
        "method.schedule=head_then_backbone",
        "method.head_epochs=3",
    ),
    "fedbsd features_cosine, own student": (
        *SMOOTH,
        "method.distillation=features_cosine",
        "method.student_start=own",
        "train.local_epochs=2",
    ),
    "fedbsd, own student, head first, two-layer head": (
        *SMOOTH,
        "model.head_layers=2",
        "method.temperature=2.0",
        "method.student_start=own",
        "method.schedule=head_then_backbone",
        "method.mean=samples",
    ),
    "fedbsd teaching the head": (*SMOOTH, "method.distillation_teaches=backbone_and_head"),
    "fedbsd mlp": ("model.name=mlp", "train.batch_size=512", "train.lr=0.05"),
    "fedavg": (*SMOOTH, "method.name=fedavg"),
    "fedper": (*SMOOTH, "method.name=fedper"),
    "fedper plain, cnn": ("method.name=fedper", "method.mean=plain", "train.batch_size=1024"),
}


def smooth(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """A `model.factory`: small, and without the kinks of ReLU and max-pooling."""
    channels, height, width = shape
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 8, 5), nn.Tanh(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        nn.Sequential(nn.Linear(16 * rows * columns, 32), nn.Tanh()),
        nn.Linear(32, num_classes),
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    config: RunConfig
    run: Path
    """Run directory of the distributed run."""
    inputs: dict[str, Any]
    """The reference's, all but its settings."""
    expected: reference.Result


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request, tmp_path_factory) -> Case:
    overrides = (*COMMON, *request.param)
    run = tmp_path_factory.mktemp("parity") / "run"
    federate(run, 3, *overrides)
    config = load(overrides, OPTIONS)
    inputs = make_inputs(config)
    return Case(config=config, run=run, inputs=inputs, expected=reference.federate(**inputs, settings=settings(config)))


def make_inputs(config: RunConfig) -> dict[str, Any]:
    samples = sources.load(config.data)
    partition = make_partition(samples, config.data, config.seed)
    mean, std = samples.mean_and_std(partition.learned_from)
    images = torch.from_numpy(samples.x).float() / 255
    images = ((images - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(samples.y)
    clients = [
        reference.Client(
            train_images=images[train], train_labels=labels[train], test_images=images[test], test_labels=labels[test]
        )
        for train, test in zip(partition.train, partition.test, strict=True)
    ]
    network = "smooth" if config.model.factory else config.model.name
    model = reference.make_model(network, config.model.head_layers, images.shape[1:], len(samples.classes))
    return {
        "model": model,
        "initial": renamed(product_model(config).state_dict(), model),
        "clients": clients,
        "cohorts": [
            sorted(generator(config.seed, "cohort", round).choice(CLIENTS, COHORT, replace=False).tolist())
            for round in range(1, ROUNDS + 1)
        ],
        "orders": {
            (purpose, round, number): permutations(config, purpose, round, number, len(client.train_labels))
            for purpose in ("batches", "head tuning")
            for round in range(1, ROUNDS + 2)
            for number, client in enumerate(clients)
        },
    }


def permutations(config: RunConfig, purpose: str, round: int, client: int, rows: int) -> list[Tensor]:
    draw = generator(config.seed, purpose, round, client)
    return [torch.from_numpy(draw.permutation(rows)) for _ in range(EPOCHS)]


def settings(config: RunConfig, **changes: float) -> reference.Settings:
    train = config.train.model_dump(exclude={"rounds", "participation"})
    method = {"mean": "samples", **config.method.model_dump(exclude={"name"})}
    tuning = config.evaluate.head_epochs
    return reference.Settings(method=config.method.name, tuning_epochs=tuning, **{**train, **method, **changes})


def product_model(config: RunConfig) -> SplitModel:
    return build_model(config.model, (1, 16, 16), 10, config.seed)


def renamed(state: Mapping[str, Tensor], model: nn.Module) -> reference.State:
    """`state` under the names that the reference has for the same tensors, which come in the same order."""
    return dict(zip(model.state_dict(), state.values(), strict=True))


def saved(case: Case, name: str) -> reference.State:
    """The state in a file of the last checkpoint, under the reference's names."""
    buffers = torch.load(case.run / f"checkpoints/round-{ROUNDS:06d}" / name, weights_only=True)
    buffers = {group.removeprefix("own_"): buffer for group, buffer in buffers.items()}
    model = FlatModel(product_model(case.config), torch.device("cpu"))
    for group, buffer in buffers.items():
        model.buffers[group].copy_(buffer)
    state = renamed(model.module.state_dict(), case.inputs["model"])
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] in buffers}


def distance(one: reference.State, other: reference.State) -> float:
    """Largest absolute difference; not a number, and so not below anything, where a state has one."""
    assert one.keys() == other.keys()
    return float(torch.cat([(one[name] - other[name]).flatten().abs() for name in one]).max())


def test_shared_state(case):
    assert distance(saved(case, "shared.pt"), case.expected.shared) < TOLERANCE


def test_private_states(case):
    files = sorted(path.name for path in case.run.glob("checkpoints/*/client-*.pt"))
    expected = {f"client-{client:06d}.pt": state for client, state in enumerate(case.expected.private) if state}
    assert files == list(expected)
    assert all(distance(saved(case, name), state) < TOLERANCE for name, state in expected.items())


def test_losses(case):
    lines = [json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["cohort"] for line in lines] == [COHORT] * ROUNDS
    for line, expected in zip(lines, case.expected.losses, strict=True):
        assert list(line["loss"]) == ["classification", "distillation"][: len(expected)]
        assert list(line["loss"].values()) == pytest.approx(
            [float(term) for term in expected], rel=TOLERANCE, abs=TOLERANCE
        )


def test_accuracies_and_losses_on_the_test_sets(case):
    rows = list(csv.DictReader((case.run / "clients.csv").read_text().splitlines()))
    assert [(row["stage"], int(row["client"])) for row in rows] == [
        (stage, client) for stage in ("received", "trained", "head_tuned") for client in range(CLIENTS)
    ]
    expected = [test for tests in case.expected.tests.values() for test in tests]
    for row, (correct, loss) in zip(rows, expected, strict=True):
        assert float(row["accuracy"]) * int(row["num_test"]) == pytest.approx(correct, rel=0, abs=1e-9)
        assert float(row["loss"]) == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE)


def test_the_problem_is_not_trivial(case):
    first, *later = case.inputs["cohorts"]
    assert set().union(*later) - set(first), "a client joins late"
    assert set(range(CLIENTS)) - set(first).union(*later), "a client never joins"
    shared = case.expected.shared
    assert distance(shared, {name: case.inputs["initial"][name] for name in shared}) > FAR
    accuracies = [[correct for correct, _ in tests] for tests in case.expected.tests.values()]
    assert accuracies[0] != accuracies[1] != accuracies[2] != accuracies[0]
    if case.config.method.name == "fedbsd":
        undistilled = reference.federate(**case.inputs, settings=settings(case.config, distillation_weight=0.0))
        assert distance(shared, undistilled.shared) > FAR
