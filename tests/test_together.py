"""Several clients in one step: equal to one at a time, whatever the method, sizes, and number of those together."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks, states
from test_federation import NORM, build
from test_interface import alone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fedbsd_dist.batches import LARGE_BATCH
from fedbsd_dist.client import Turn
from fedbsd_dist.commandline import load
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.federation import Federation, Report
from fedbsd_dist.methods import METHODS, OPTIONS
from fedbsd_dist.methods.contract import Method, classify
from fedbsd_dist.optimizer import toward
from fedbsd_dist.plan import make_plan
from fedbsd_dist.together import Turns, groups
from fedbsd_dist.wire.world import World, meet

TOLERANCE = 1e-5
ROUNDS, CLIENTS = 2, 7
COMMON = (
    "data.source=python",
    f"data.factory={__name__}:few_samples",
    f"data.num_clients={CLIENTS}",
    "data.alpha=0.5",
    "data.size_alpha=1.0",
    "data.min_samples=3",
    f"model.factory={__name__}:smooth",
    "train.participation=0.7",
    f"train.rounds={ROUNDS}",
    "train.local_epochs=2",
    "train.batch_size=10",
    "train.lr=0.03",
    "train.momentum=0.8",
    "train.weight_decay=0.05",
    "wire.sum=exact",
    "evaluate.head_epochs=0",
    "evaluate.every=1",
)
AUGMENTED = ("augment.crop=2", "augment.flip=true", "augment.rotation=10.0")
CASES = {
    "fedbsd": (),
    "fedbsd, augmented": AUGMENTED,
    "fedbsd features_kl, own student, head first": (
        "method.distillation=features_kl",
        "method.student_start=own",
        "method.schedule=head_then_backbone",
    ),
    "fedbsd, an epoch of the head first, augmented": ("method.schedule=head_then_backbone", *AUGMENTED),
    "fedbsd features_mse, own student, head first, augmented": (
        "method.distillation=features_mse",
        "method.student_start=own",
        "method.schedule=head_then_backbone",
        *AUGMENTED,
    ),
    "fedbsd features_cosine": ("method.distillation=features_cosine", "model.head_layers=2"),
    "fedbsd teaching the head": ("method.distillation_teaches=backbone_and_head", "train.momentum=0.0"),
    "fedavg": ("method.name=fedavg",),
    "fedavg, augmented": ("method.name=fedavg", "method.mean=plain", *AUGMENTED),
    "fedavg, batches larger than any client": ("method.name=fedavg", "train.batch_size=1000"),
    "fedavg, rectified": ("method.name=fedavg", "model.factory=''", "train.batch_size=1000"),
    "fedavg_ft": ("method.name=fedavg_ft", "method.finetune_epochs=0"),
    "local": ("method.name=local",),
    "fedper": ("method.name=fedper",),
    "fedrep": ("method.name=fedrep", "method.head_epochs=2"),
    "fedrep, augmented": ("method.name=fedrep", "method.head_epochs=2", *AUGMENTED),
    "fedbabu": ("method.name=fedbabu", "method.finetune_epochs=0"),
    "lg_fedavg": ("method.name=lg_fedavg", "model.head_layers=2"),
    "moon": ("method.name=moon", "method.mu=2.0"),
    "moon, augmented": ("method.name=moon", *AUGMENTED),
}
TRIED = [
    *((case, 1, 3) for case in CASES),
    ("fedbsd", 1, 100),
    ("fedbsd features_mse, own student, head first, augmented", 1, 2),
    ("fedavg", 3, 100),
    ("fedrep, augmented", 3, 2),
]
"""(case, ranks, train.together)"""

Values = dict[str, np.ndarray]


def few_samples() -> dict[str, Any]:
    """A `data.factory`: noise around an image of each class."""
    rng = np.random.default_rng(0)
    y = np.arange(260) % 4
    x = rng.integers(0, 160, (4, 16, 16, 2 + 1))[y] + rng.integers(0, 90, (260, 16, 16, 3))
    return {"x": x.astype(np.uint8), "y": y, "split": np.repeat(["train", "test"], [220, 40])}


def smooth(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """A `model.factory`: without the kinks of ReLU and max-pooling, at which rounding would grow."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(shape[0], 6, 5), nn.Tanh(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        nn.Sequential(nn.Linear(8 * 2 * 2, 12), nn.Tanh()),
        nn.Linear(12, num_classes),
    )


def values_after(federation: Federation, reports: list[Report]) -> Values:
    """Everything that a rank holds or has reported."""
    values: Values = {}
    for report in reports:
        values |= {f"{name} in round {report.round}": np.array(loss) for name, loss in report.losses.items()}
        # the mean loss; the count of what is right may tip over
        for stage, table in report.stages.items():
            values[f"loss, {stage}, round {report.round}"] = table[:, 2] / np.maximum(table[:, 1], 1)
    values |= {name: values.cpu().numpy() for name, values in federation.shared.items()}
    for client, state in states(federation).items():
        values |= {f"{name} of {client}": group.cpu().numpy() for name, group in state.items()}
    return values


def rounds(world: World, *options: str) -> Values:
    federation = build(world, *COMMON, *options)
    reports = [federation.round(number) for number in range(1, ROUNDS + 1)]
    assert not any(report.diverged for report in reports)
    return values_after(federation, reports)


@pytest.fixture
def world() -> Iterator[World]:
    """Of one rank, this process."""
    yield meet()
    if dist.is_initialized():
        dist.destroy_process_group()


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    away = {name: float(np.abs(found[name] - values).max()) for name, values in expected.items()}
    assert not {name: by for name, by in away.items() if not by < TOLERANCE}


def test_every_method_that_stacks_is_tried():
    named = [[option for option in options if option.startswith("method.name=")] for options in CASES.values()]
    tried = {name[0].partition("=")[2] if name else "fedbsd" for name in named}
    assert tried == {name for name, method in METHODS.items() if method.stacks}


@functools.lru_cache
def one_at_a_time(*options: str) -> Values:
    values = here(*options)
    assert min(np.abs(found).max() for found in values.values()) > 100 * TOLERANCE  # there is something to be equal
    return values


def here(*options: str) -> Values:
    """On one rank, this process."""
    try:
        return rounds(meet(), *options)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize(("case", "ranks", "together"), TRIED)
def test_learning_together_equals_learning_one_at_a_time(case, ranks, together, monkeypatch):
    """And what vmap has no rule for, and would do client by client, is an error."""
    monkeypatch.setattr("fedbsd_dist.together.PREPARED", 25)  # few samples are many
    monkeypatch.setitem(LARGE_BATCH, "cpu", 2)  # fewer than clients
    options = (*CASES[case], f"train.together={together}")
    expected = one_at_a_time(*CASES[case])
    if ranks == 1:
        return assert_equal(here(*options), expected)
    by_rank = run_ranks(ranks, rounds, *options)
    assert_equal({name: value for values in by_rank for name, value in values.items()}, expected)


def _turns(federation: Federation, clients: list[int]) -> Turns:
    return Turns([federation.receive(client, 1) for client in clients])


class Counting(TorchDispatchMode):
    """Counts the operations that do something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.seen[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_of_many_clients_takes_no_more_operations_than_one_of_two(world):
    """Nor does it wait for a number."""
    options = ("method.name=fedavg", "data.partition=iid", "data.size_alpha=0.0", "data.num_clients=11")
    federation = build(world, *COMMON, *options)
    seen = []
    for clients in (2, 10):
        turns = _turns(federation, [*range(clients)])
        steps = [*turns._steps((), 1, "batches", ())]
        turns._steps = lambda *_, of=steps: iter(of)  # which clients draw for themselves, on the host
        with Counting() as counting:
            federation.method.learn(turns)
        seen.append(counting.seen)
    of_two, of_ten = seen
    assert len(steps) == 2
    # of two convolutions two products forward, and three backward: the images need no gradient
    assert of_two["aten.bmm.default"] >= 5 * len(steps)
    assert not any("convolution" in name for name in of_two)
    assert of_ten == of_two
    assert "aten._local_scalar_dense.default" not in of_ten


class Mine(MethodOptions):
    name: Literal["mine"] = "mine"


class Doubles(Method[Mine]):
    """What all clients have in common while they learn is each one's own to change where it is tested."""

    Options = Mine
    shared = ("backbone", "head")
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        return classify(turn, 1, parts=["backbone"])

    def deploy(self, turn: Turn) -> None:
        turn.model.buffers["head"].mul_(2)


def test_a_test_changes_nothing_that_others_have_in_common():
    mine = (f"method.factory={__name__}:Doubles",)
    found, expected = (here(*mine, "train.together=4", f"evaluate.every={every}") for every in (1, 0))
    assert_equal({name: found[name] for name in ("backbone", "head")}, {n: expected[n] for n in ("backbone", "head")})


def test_a_client_that_diverges_among_others_changes_none_of_them(world):
    options, late = ("method.name=fedper", "train.participation=1.0"), 3
    found = []
    for number in (1, 4):
        federation = build(world, *COMMON, *options, f"train.together={number}")
        states(federation)[late]["head"].fill_(1e30)
        report = federation.round(1)
        assert report.diverged == [late]
        assert (states(federation)[late]["head"] == 1e30).all()
        found.append(values_after(federation, [report]))
        dist.destroy_process_group()
    assert_equal(found[1], found[0])


def test_groups_are_of_clients_of_near_sizes_and_one_at_a_time_in_their_order():
    sizes = [5, 90, 40, 7, 80, 41, 6]
    assert groups([0, 1, 2, 3, 4, 5, 6], sizes, 3) == [[1, 4, 5], [2, 3, 6], [0]]
    assert groups([5, 0, 2], sizes, 1) == [[5], [0], [2]]
    assert groups([0, 5], sizes, 100) == [[5, 0]]
    assert groups([], sizes, 4) == []


class Noisy(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.dropout(images, 0.1, self.training))


class Centred(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0))


class Branching(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


def no_dropout(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """A `model.factory`, with a layer that does nothing."""
    return nn.Sequential(
        smooth(shape, num_classes), nn.Sequential(nn.Dropout(0.0), nn.Linear(num_classes, num_classes))
    )


def test_dropout_of_nothing_is_no_dropout():
    options = (f"model.factory={__name__}:no_dropout", "method.name=fedavg")
    assert_equal(here(*options, "train.together=3"), here(*options))


def _linear(kind: type[nn.Sequential]) -> Any:
    return lambda shape, num_classes: nn.Sequential(
        kind(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8)), nn.Linear(8, num_classes)
    )


noisy, centred, branching = _linear(Noisy), _linear(Centred), _linear(Branching)


class Held(Method[Mine]):
    """FedProx that says of itself what is not so."""

    Options = Mine
    shared = ("backbone", "head")
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        received = turn.model.views(turn.model.clone())
        return classify(turn, 1, correct=toward(received, 0.1))


REFUSED = {
    "a method": (("method.name=fedprox",), "method fedprox learns one client at a time"),
    "another method": (("method.name=scaffold",), "method scaffold"),
    "batch norm": ((NORM.replace(".2", "0"), "model.factory=test_parity:smooth_bn"), "batch norm"),
    "dropout": (("model.name=fedrep_cnn_cifar100", "model.factory=''"), "dropout"),
    "dropout that is no layer": ((f"model.factory={__name__}:noisy",), "cannot be stacked"),
    "samples that depend on each other": ((f"model.factory={__name__}:centred",), "samples depend on each other"),
    "a model that looks at values": ((f"model.factory={__name__}:branching",), "cannot be stacked"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_learn_together_is_refused_before_the_first_round(case, tmp_path: Path, capsys):
    options, said = REFUSED[case]
    assert alone(*COMMON, *options, "train.together=4", f"run.dir={tmp_path}/run") == 2
    error = capsys.readouterr().err
    assert "train.together" in error
    assert said in error
    assert "Set train.together=1" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


class Weighted(Method[Mine]):
    """FedAvg with a weight for each class: a mean over the batch that its other samples have a part in."""

    Options = Mine
    shared = ("backbone", "head")
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        weights = torch.tensor([0.1, 1.0, 5.0, 2.0])

        def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
            classification = F.cross_entropy(turn.model.module(images), labels, weights)
            return classification, [classification]

        return turn.sgd(loss, epochs=1)


class Asks(Method[Mine]):
    """FedAvg that wants to know who learns, which of several is nobody."""

    Options = Mine
    shared = ("backbone", "head")
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        return classify(turn, 1 + turn.client % 1)


class Waits(Method[Mine]):
    """FedAvg that looks at its loss."""

    Options = Mine
    shared = ("backbone", "head")
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
            classification = F.cross_entropy(turn.model.module(images), labels)
            return classification * (classification.item() >= 0), [classification]

        return turn.sgd(loss, epochs=1)


@pytest.mark.parametrize(("name", "said"), [("Asks", "has no attribute 'client'"), ("Waits", "item")])
def test_a_method_that_fails_together_alone_is_refused(name: str, said: str, tmp_path: Path, capsys):
    mine = (f"method.factory={__name__}:{name}", f"run.dir={tmp_path}/run")
    assert alone(*COMMON, *mine, "train.together=4") == 2
    error = capsys.readouterr().err
    assert f"clients cannot learn together by test_together:{name}" in error
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert alone(*COMMON, *mine) == 0


def test_a_loss_that_is_no_mean_of_terms_of_samples_is_refused(tmp_path: Path, capsys):
    mine = (f"method.factory={__name__}:Weighted", f"run.dir={tmp_path}/run")
    assert alone(*COMMON, *mine, "train.together=4") == 2
    error = capsys.readouterr().err
    assert "test_together:Weighted what each of them learns alone" in error
    assert "Set train.together=1" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert alone(*COMMON, *mine) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["cnn", "resnet18_gn"])
def test_rounding_is_not_refused(network, precision):
    """By the largest of differences there are: in half precision, and through many normalisations."""
    options = (
        f"method.factory={__name__}:Doubles",
        f"model.name={network}",
        "model.factory=''",
        f"train.precision={precision}",
        "train.together=2",
    )
    plan = make_plan(load([*COMMON, *options], OPTIONS), meet())
    assert plan.config.train.together == 2


def test_a_method_that_is_not_what_it_says_is_refused(tmp_path: Path, capsys):
    mine = (f"method.factory={__name__}:Held", f"run.dir={tmp_path}/run", "checkpoint.every=1")
    assert alone(*COMMON, *mine, "train.together=4") == 2
    assert "Set train.together=1" in capsys.readouterr().err
    assert alone(*COMMON, *mine, "run.overwrite=true") == 0
