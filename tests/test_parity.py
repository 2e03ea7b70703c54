"""Distributed runs equal the plain single-process reference: states, losses, accuracies.

Both compute in float32 but in another order (the reference has contiguous images and weights, no fused optimizer,
the teacher's features batch by batch), so they differ by rounding, which training amplifies a little.
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
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.data.sources import SOURCES
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model
from fedbsd_dist.randomness import generator

TOLERANCE = 1e-6
FAR = 1000 * TOLERANCE
"""What a run, and the options under test, must change for its equality to mean something."""
ROUNDS, CLIENTS, COHORT = 3, 8, 5
COMMON = (
    "seed=1",
    f"train.rounds={ROUNDS}",
    "train.batch_size=64",
    "train.participation=0.6",
    f"data.num_clients={CLIENTS}",
    "data.alpha=0.3",
    "evaluate.every=0",
    "evaluate.head_epochs=2",
    f"checkpoint.every={ROUNDS}",
    "wire.sum=exact",
)
CASES = {
    "fedbsd": (),
    "fedbsd features_kl": (
        "model.name=mlp",
        "method.distillation=features_kl",
        "method.distillation_weight=3.0",
        "method.temperature=0.5",
        "method.temperature_squared=false",
        "method.mean=samples",
    ),
    "fedbsd features_mse, head first": (
        "model.name=mlp",
        "method.distillation=features_mse",
        "method.distillation_weight=5.0",
        "method.schedule=head_then_backbone",
        "method.head_epochs=3",
    ),
    "fedbsd features_cosine, own student": (
        "method.distillation=features_cosine",
        "method.distillation_weight=2.0",
        "method.student_start=own",
    ),
    "fedbsd logits_kl, own student, head first": (
        "model.name=mlp",
        "model.head_layers=2",
        "method.temperature=2.0",
        "method.temperature_squared=false",
        "method.student_start=own",
        "method.schedule=head_then_backbone",
        "method.mean=samples",
    ),
    "fedavg": ("method.name=fedavg",),
    "fedper": ("method.name=fedper", "model.name=mlp", "train.local_epochs=2"),
    "fedper plain": ("method.name=fedper", "method.mean=plain", "train.momentum=0.9", "train.weight_decay=0.01"),
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
    samples, data = SOURCES[config.data.source](), config.data
    partition = make_partition(
        samples,
        kind=data.partition,
        num_clients=data.num_clients,
        alpha=data.alpha,
        min_samples=data.min_samples,
        seed=config.seed,
    )
    images = torch.from_numpy(samples.x).float() / 255
    images = ((images - torch.tensor(samples.mean)) / torch.tensor(samples.std)).permute(0, 3, 1, 2).contiguous()
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
    """Of more epochs than any case has."""
    draw = generator(config.seed, purpose, round, client)
    return [torch.from_numpy(draw.permutation(rows)) for _ in range(5)]


def settings(config: RunConfig, **changes: float) -> reference.Settings:
    train = config.train.model_dump(exclude={"rounds", "participation"})
    method = {"mean": "samples", **config.method.model_dump(exclude={"name"})}
    tuning = config.evaluate.head_epochs
    return reference.Settings(method=config.method.name, tuning_epochs=tuning, **{**train, **method, **changes})


def product_model(config: RunConfig) -> nn.Module:
    return build_model(config.model, (1, 16, 16), 10, config.seed)


def renamed(state: Mapping[str, Tensor], model: nn.Module) -> reference.State:
    """`state` under the names that the reference has for the same tensors, which come in the same order."""
    return dict(zip(model.state_dict(), state.values(), strict=True))


def saved(case: Case, name: str) -> reference.State:
    """The state in a file of the last checkpoint, under the reference's names."""
    buffers = torch.load(case.run / f"checkpoints/round-{ROUNDS:06d}" / name, weights_only=True)
    model = FlatModel(product_model(case.config), torch.device("cpu"))
    for group, buffer in buffers.items():
        model.buffers[group].copy_(buffer)
    state = renamed(model.module.state_dict(), case.inputs["model"])
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] in buffers}


def distance(one: reference.State, other: reference.State) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_states(case):
    states = [saved(case, path.name) for path in sorted((case.run / "checkpoints").glob("*/client-*.pt"))]
    expected, initial = case.expected, case.inputs["initial"]
    d = [distance(saved(case, "shared.pt"), expected.shared)]
    for state, private in zip(states, [private for private in expected.private if private], strict=True):
        d.append(distance(state, private))
    print("DIST", case.config.method, max(d), d)
    print("MOVED", distance(expected.shared, {n: initial[n] for n in expected.shared}))
    if case.config.method.name == "fedbsd":
        r = reference.federate(**case.inputs, settings=settings(case.config, distillation_weight=0.0))
        print("UNDIST", distance(expected.shared, r.shared))
    print(case.inputs["cohorts"], [len(c.train_labels) for c in case.inputs["clients"]])
    lines = [json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines()]
    for l, e in zip(lines, expected.losses): print("LOSS", list(l["loss"].values()), [float(x) for x in e])
    for row in csv.DictReader((case.run/"clients.csv").read_text().splitlines()):
        c, l = expected.tests[row["stage"]][int(row["client"])]
        n = int(row["num_test"])
        cc = float(row["accuracy"])*n
        print(row["stage"], row["client"], cc, c, n, float(row["loss"])-l)
