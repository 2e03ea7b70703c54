"""Distributed runs equal the plain single-process reference: states, losses, accuracies.

Both compute in float32, but differently: other memory layouts, no fused optimizer, the teacher's features batch by
batch. They differ by rounding, 1e-7. Training amplifies that wherever it moves an activation across the kink of a
ReLU or another pixel to the top of a max-pool. So most cases use a smooth network, where nothing does, and the
package's own networks take few, large batches.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from ranks import federate
from reference_methods import METHODS
from reference_models import State, live, make_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedbsd_dist.commandline import load
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data import sources
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.split import build_model
from fedbsd_dist.randomness import generator

TOLERANCE = 1e-6
FAR = 100 * TOLERANCE
"""What training, and a method's own rule, must change at least for equality to mean something."""
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
    "data.classes=[0,1,2,3]",  # fewer samples, less time
    "evaluate.every=0",
    "evaluate.head_epochs=2",
    f"checkpoint.every={ROUNDS}",
    "wire.sum=exact",
)
SMOOTH = (
    "model.factory=test_parity:smooth",
    "train.batch_size=64",
    "train.lr=0.05",
    "train.momentum=0.9",
    "train.weight_decay=0.001",
)
# with the statistics of a small last batch, rounding is more
NORMALISED = ("model.factory=test_parity:smooth_bn", "train.batch_size=128", *SMOOTH[2:])
CASES = {
    "fedbsd": SMOOTH,
    "fedbsd, more of it": (*SMOOTH, "method.distillation_weight=3.0"),
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
    "fedbsd without a private head": (*SMOOTH, "method.private_head=false"),
    "fedbsd mlp": ("model.name=mlp", "train.batch_size=256", "train.lr=0.05"),
    "fedavg": (*SMOOTH, "method.name=fedavg"),
    "fedper": (*SMOOTH, "method.name=fedper"),
    "fedper plain, cnn": ("method.name=fedper", "method.mean=plain", "train.batch_size=256"),
    "fedper, batch norm": (*NORMALISED, "method.name=fedper"),
    "local": (*SMOOTH, "method.name=local"),
    "fedavg_ft": (*SMOOTH, "method.name=fedavg_ft", "method.finetune_epochs=3"),
    "fedavg_ft, all": (*SMOOTH, "method.name=fedavg_ft", "method.finetune=all", "method.finetune_epochs=2"),
    "fedprox": (*SMOOTH, "method.name=fedprox", "method.mu=0.5", "method.mean=plain"),
    "scaffold": (*SMOOTH, "method.name=scaffold", "train.local_epochs=2"),
    "scaffold without momentum": (
        *SMOOTH,
        "method.name=scaffold",
        "method.server_lr=0.7",
        "train.momentum=0.0",
        "train.lr=0.2",
    ),
    "scaffold, batch norm": (*NORMALISED, "method.name=scaffold", "method.server_lr=1.5"),
    "per_fedavg": (*SMOOTH, "method.name=per_fedavg", "method.alpha=0.1", "method.beta=0.2"),
    "pfedme": (*SMOOTH, "method.name=pfedme", "method.beta=0.5", "method.lr=0.03", "method.steps=3"),
    # with the published rate of theta, rounding grows some hundredfold a round
    "pfedme, batch norm": (
        *NORMALISED,
        "method.name=pfedme",
        "method.beta=1.5",
        "method.lr=0.03",
        "method.personal_lr=0.01",
        "method.steps=2",
    ),
    "apfl": (*SMOOTH, "method.name=apfl", "method.alpha=0.4", "method.mean=samples"),
    "apfl learning alpha": (*SMOOTH, "method.name=apfl", "method.learn_alpha=true", "train.local_epochs=2"),
    "ditto": (*SMOOTH, "method.name=ditto", "method.lam=0.5", "method.personal_epochs=2"),
    "lg_fedavg": (*SMOOTH, "method.name=lg_fedavg", "model.head_layers=2"),
    "fedrep": (*SMOOTH, "method.name=fedrep", "method.head_epochs=2", "method.mean=samples"),
    "fedbabu": (*SMOOTH, "method.name=fedbabu", "method.finetune_epochs=2"),
    "fedbabu, head alone": (*SMOOTH, "method.name=fedbabu", "method.finetune=head", "method.finetune_epochs=3"),
    "moon": (*SMOOTH, "method.name=moon", "method.mu=2.0", "method.mean=plain"),
    "moon, batch norm": (*NORMALISED, "method.name=moon", "method.temperature=1.0"),
    "fedrod": (*SMOOTH, "method.name=fedrod"),
    "pfedsd": (*SMOOTH, "method.name=pfedsd", "method.lam=0.5", "method.temperature=2.0"),
    "fedbn": (*NORMALISED, "method.name=fedbn"),
    "fedbn in a two-layer head": (*NORMALISED, "method.name=fedbn", "method.mean=samples", "model.head_layers=2"),
}
NEUTRAL = {
    "fedbsd": {"distillation_weight": 0.0},
    "fedprox": {"mu": 0.0},
    "per_fedavg": {"alpha": 0.0},
    "pfedme": {"steps": 1},
    "apfl": {"alpha": 1.0},
    "ditto": {"lam": 0.0},
    "fedrep": {"head_epochs": 0},
    "moon": {"mu": 0.0},
    "pfedsd": {"lam": 0.0},
}
"""Options that leave a method's own rule out, or change it."""
MEMORYLESS = {"fedavg", "fedavg_ft", "fedprox", "per_fedavg", "pfedme", "fedbabu"}
"""Methods whose local learning does not depend on what the client has learned before."""
PURPOSES = ("batches", "outer batches", "personal batches", "head tuning", "finetuning")
PREFIXES = ("control_", "own_control_", "personal_", "previous_")
"""Of the groups of a checkpoint that are shaped like one of the model's."""


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


def smooth_bn(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """The same with batch norm."""
    channels, height, width = shape
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 8, 5), nn.Tanh(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 16, 5), nn.AvgPool2d(2), nn.BatchNorm2d(16), nn.Tanh(), nn.Flatten()),
        nn.Sequential(nn.Linear(16 * rows * columns, 32), nn.BatchNorm1d(32), nn.Tanh()),
        nn.Linear(32, num_classes),
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    config: RunConfig
    run: Path
    """Run directory of the distributed run."""
    method: reference.Method
    inputs: dict[str, Any]
    """The reference's, all but its method."""
    expected: reference.Trained
    tests: reference.Tests


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request, tmp_path_factory) -> Case:
    overrides = (*COMMON, *request.param)
    run = tmp_path_factory.mktemp("parity") / "run"
    federate(run, 3, *overrides)
    config = load(overrides, OPTIONS)
    method, inputs = make_inputs(config)
    expected = reference.federate(method, **inputs)
    tests = reference.evaluate(method, expected, inputs["clients"], inputs["orders"])
    return Case(config=config, run=run, method=method, inputs=inputs, expected=expected, tests=tests)


def make_inputs(config: RunConfig) -> tuple[reference.Method, dict[str, Any]]:
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
    network = config.model.factory.rpartition(":")[2] or config.model.name
    model = make_model(network, config.model.head_layers, images.shape[1:], len(samples.classes))
    product = build_model(config.model, (1, 16, 16), len(samples.classes), config.seed)
    # the same tensors under other names, in the same order
    initial = dict(zip(live(model), live(product).values(), strict=True))
    return METHODS[config.method.name](model, settings(config)), {
        "initial": initial,
        "clients": clients,
        "cohorts": [
            sorted(generator(config.seed, "cohort", round).choice(CLIENTS, COHORT, replace=False).tolist())
            for round in range(1, ROUNDS + 1)
        ],
        "orders": {
            (purpose, round, number): permutations(config, purpose, round, number, len(client.train_labels))
            for purpose in PURPOSES
            for round in range(1, ROUNDS + 2)
            for number, client in enumerate(clients)
        },
    }


def permutations(config: RunConfig, purpose: str, round: int, client: int, rows: int) -> list[Tensor]:
    draw = generator(config.seed, purpose, round, client)
    return [torch.from_numpy(draw.permutation(rows)) for _ in range(EPOCHS)]


def settings(config: RunConfig, **changes: float) -> reference.Settings:
    train = config.train.model_dump(exclude={"rounds", "participation", "precision", "together", "cuda_graphs"})
    options = {**config.method.model_dump(exclude={"name"}), **changes}
    return reference.Settings(tuning_epochs=config.evaluate.head_epochs, options=options, **train)


def saved(case: Case, name: str) -> State:
    """The state in a file of the last checkpoint, under the reference's names."""
    buffers = torch.load(case.run / f"checkpoints/round-{ROUNDS:06d}" / name, weights_only=True)
    state = {}
    for stored, buffer in buffers.items():
        # a student of one's own starts from what the reference calls the client's backbone
        group = stored.removeprefix("own_") if case.config.method.name == "fedbsd" else stored
        prefix = next((prefix for prefix in PREFIXES if group.startswith(prefix)), "")
        members = [member for member in case.inputs["initial"] if group_of(case, member) == group.removeprefix(prefix)]
        if members:
            shapes = [case.inputs["initial"][member].shape for member in members]
            parts = buffer.split([shape.numel() for shape in shapes])
            state |= {prefix + m: as_stored(*of_one) for m, *of_one in zip(members, parts, shapes, strict=True)}
        else:
            state[group] = buffer
    return state


def group_of(case: Case, name: str) -> str:
    """That a tensor of the model is stored in, one after another."""
    layer, _, tensor = name.rpartition(".")
    part = name.partition(".")[0]
    if tensor.startswith("running_"):
        return {"backbone": "statistics", "head": "head_statistics"}[part]
    normalises = isinstance(case.method.model.get_submodule(layer), _BatchNorm)
    return "norm" if normalises and case.config.method.name == "fedbn" else part


def as_stored(numbers: Tensor, shape: torch.Size) -> Tensor:
    """The weights of a convolution have their input channels last."""
    if len(shape) < 4:
        return numbers.view(shape)
    out, into, height, width = shape
    return numbers.view(out, height, width, into).permute(0, 3, 1, 2)


def distance(one: State, other: State) -> float:
    """Largest absolute difference; not a number, and so not below anything, where a state has one."""
    assert one.keys() == other.keys()
    return float(torch.cat([torch.zeros(1), *((one[name] - other[name]).flatten().abs() for name in one)]).max())


def farthest(one: reference.Trained, other: reference.Trained) -> float:
    """Of the shared states, or of any client's."""
    return max(map(distance, [one.shared, *one.private], [other.shared, *other.private]))


def test_shared_state(case):
    assert distance(saved(case, "shared.pt"), case.expected.shared) < TOLERANCE


def test_private_states(case):
    files = sorted(path.name for path in case.run.glob("checkpoints/*/client-*.pt"))
    expected = {f"client-{client:06d}.pt": state for client, state in enumerate(case.expected.private) if state}
    if case.config.method.name == "fedbabu":  # a head that stays as it began is kept for nobody
        initial = case.inputs["initial"]
        assert all(distance(state, {name: initial[name] for name in state}) == 0 for state in expected.values())
        expected = {}
    # a client that never learned has no file: it is as all began
    learned = sorted(
        {f"client-{client:06d}.pt" for cohort in case.inputs["cohorts"] for client in cohort} & expected.keys()
    )
    assert files == learned
    assert all(distance(saved(case, name), expected[name]) < TOLERANCE for name in learned)


def test_losses(case):
    lines = [json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["cohort"] for line in lines] == [COHORT] * ROUNDS
    for line, expected in zip(lines, case.expected.losses, strict=True):
        assert list(line["loss"]) == list(case.method.losses)
        assert list(line["loss"].values()) == pytest.approx(
            [float(term) for term in expected], rel=TOLERANCE, abs=TOLERANCE
        )


def test_accuracies_and_losses_on_the_test_sets(case):
    rows = list(csv.DictReader((case.run / "clients.csv").read_text().splitlines()))
    assert [(row["stage"], int(row["client"])) for row in rows] == [
        (stage, client) for stage in case.tests for client in range(CLIENTS)
    ]
    expected = [test for tests in case.tests.values() for test in tests]
    for row, (correct, loss) in zip(rows, expected, strict=True):
        assert float(row["accuracy"]) * int(row["num_test"]) == pytest.approx(correct, rel=0, abs=1e-9)
        assert float(row["loss"]) == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE)


def test_the_problem_is_not_trivial(case):
    first, *later = case.inputs["cohorts"]
    assert set().union(*later) - set(first), "a client joins late"
    assert set(first) & set().union(*later), "a client comes back"
    assert set(range(CLIENTS)) - set(first).union(*later), "a client never joins"
    shared, private = case.method.start(case.inputs["initial"])
    if shared:
        assert distance(case.expected.shared, shared) > FAR
    deployed = case.method.deploy(case.expected.shared, case.expected.private[first[0]])
    assert distance(deployed, case.method.deploy(shared, private)) > FAR
    accuracies = [tuple(correct for correct, _ in tests) for tests in case.tests.values()]
    assert len(set(accuracies)) == len(accuracies)


def test_the_methods_own_rule_makes_a_difference(case):
    if case.config.method.name in NEUTRAL:
        neutral = settings(case.config, **NEUTRAL[case.config.method.name])
        other = reference.federate(type(case.method)(case.method.model, neutral), **case.inputs)
        assert farthest(case.expected, other) > FAR
    alphas = [private["alpha"] for private in case.expected.private if "alpha" in private]
    assert not alphas or max(alphas) - min(alphas) > FAR


def test_what_a_client_remembers_makes_a_difference(case):
    class Forgetful(type(case.method)):
        def learn(self, shared, private, client, orders):
            return super().learn(shared, self.start(case.inputs["initial"])[1], client, orders)

    if case.config.method.name not in MEMORYLESS and case.expected.private[0]:
        other = reference.federate(Forgetful(case.method.model, case.method.settings), **case.inputs)
        assert farthest(case.expected, other) > FAR


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_those_published(name):
    ours = OPTIONS[name]().model_dump(exclude={"name", "factory"})
    assert ours.items() <= METHODS[name].defaults.items()


def test_every_method_is_compared():
    assert METHODS.keys() == OPTIONS.keys()
    named = {load((*COMMON, *overrides), OPTIONS).method.name for overrides in CASES.values()}
    assert named == METHODS.keys()
