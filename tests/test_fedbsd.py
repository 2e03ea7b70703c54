"""What makes FedBSD FedBSD: its identities, its losses and their gradients, what it sends and what it keeps."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from ranks import federate
from torch import Tensor, nn
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import Augment, Model, Train
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.methods.fedbsd import FedBSD, Options
from fedbsd_dist.models.flat import FlatModel, frozen, snapshot
from fedbsd_dist.models.split import SplitModel, build_model
from fedbsd_dist.wire.collectives import CLOCKS

FORMS = ("logits_kl", "features_kl", "features_mse", "features_cosine")
VARIANTS = [*((form, "backbone") for form in FORMS), ("logits_kl", "backbone_and_head")]
"""Form of the distillation, and what it teaches."""
ROUNDING = 5e-6
"""Bound of a distillation loss that is 0 but for rounding: float32's 6e-8 in log-probabilities or a cosine, times
tau squared = 16, with room."""
SHORT = (
    "model.name=mlp",
    "train.rounds=2",
    "train.local_epochs=1",
    "train.batch_size=256",
    "train.lr=0.05",
    "train.participation=0.5",
    "data.num_clients=8",
    "evaluate.every=0",
    "evaluate.head_epochs=1",
    "checkpoint.every=2",
)
COHORT, BACKBONE = 4, 256 * 512 + 512 + 512 * 256 + 256 + 256 * 64 + 64
"""Clients of a round; parameters of the backbone of `mlp` for 16 x 16 pixels."""

Array = NDArray[np.float64]


# whole runs


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def fedper(tmp_path_factory) -> str:
    run = tmp_path_factory.mktemp("fedper")
    federate(run, 1, *SHORT, "method.name=fedper", "method.mean=plain")
    return summary(run)["state_sha256"]


@pytest.mark.parametrize("form", FORMS)
def test_without_weight_on_distillation_it_is_fedper_bit_for_bit(tmp_path, fedper, form):
    federate(tmp_path, 1, *SHORT, f"method.distillation={form}", "method.distillation_weight=0.0")
    assert summary(tmp_path)["state_sha256"] == fedper


@pytest.fixture(scope="module", params=["received", "own"])
def start_and_run(request, tmp_path_factory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp(request.param)
    federate(run, 3, *SHORT, f"method.student_start={request.param}")
    return request.param, run


def test_distillation_changes_the_run(start_and_run, fedper):
    assert summary(start_and_run[1])["state_sha256"] != fedper


def test_only_the_backbone_crosses(start_and_run):
    _, run = start_and_run
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    aggregates = [entry["elements_by_group"] for entry in entries if entry["purpose"] == "aggregate"]
    # weight, refusals, two losses and their samples, asked to stop, and the clocks of every rank
    assert aggregates == [{"backbone": BACKBONE, "scalars": 2 + 3 + 1 + CLOCKS * 3}] * 2
    others = [entry for entry in entries if entry["purpose"] != "aggregate"]
    assert {entry["purpose"] for entry in others} == {"evaluation", "state digest"}
    assert all(entry["elements_by_group"] == {"scalars": entry["elements"]} for entry in others)
    # a row of 3 numbers for each of 3 stages, or of 32 bytes of a digest, for every client
    assert all(entry["elements"] <= 32 * (1 + 8) + CLOCKS * 3 for entry in others)
    sent = summary(run)["bytes"]
    assert sent["federated_up"] == sent["federated_down"] == 4 * BACKBONE * 2 * COHORT


def test_what_a_client_keeps(start_and_run):
    start, run = start_and_run
    states = [torch.load(path, weights_only=True) for path in sorted(run.glob("checkpoints/*/client-*.pt"))]
    kept = {"own_backbone", "head"} if start == "own" else {"head"}
    assert len(states) >= COHORT  # of who has learned
    assert all(set(state) == kept for state in states)
    shared = torch.load(run / "checkpoints/round-000002/shared.pt", weights_only=True)
    assert set(shared) == {"backbone"}
    if start == "own":
        trained = {tuple(state["own_backbone"][:100].tolist()) for state in states}
        assert len(trained) > COHORT, "each client that has trained has a backbone of its own"
        assert not any(torch.equal(state["own_backbone"], shared["backbone"]) for state in states)


# one client's turn


class Recorded(FedBSD):
    """Keeps what the loss was asked and what it reported, step by step."""

    def __init__(self, options: Options, train: Train) -> None:
        super().__init__(options, train)
        self.distillation: list[float] = []
        self.teachers: list[Tensor] = []

    def loss(self, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
        total, reported = super().loss(*inputs)
        self.distillation.append(float(reported[1].detach()))
        self.teachers.append(inputs[-1])
        return total, reported


def method(batch_size: int = 64, local_epochs: int = 1, **options: Any) -> Recorded:
    return Recorded(Options(**options), Train(batch_size=batch_size, local_epochs=local_epochs, lr=0.05))


def make_shard(client: int, size: int = 600) -> Shard:
    """More samples than the teacher's batches of 512 hold."""
    draw = torch.Generator().manual_seed(client)
    images = torch.randint(256, (size, 16, 16, 1), generator=draw, dtype=torch.uint8)
    labels = torch.randint(10, (size,), generator=draw)
    return Shard(
        train_images=images,
        train_labels=labels,
        test_images=images[:10],
        test_labels=labels[:10],
        mean=torch.tensor([0.5]),
        std=torch.tensor([0.3]),
    )


class Participant:
    """One client with a live model; every turn begins with a received backbone."""

    def __init__(self, client: int, network: str = "mlp") -> None:
        self.client, self.shard = client, make_shard(client)
        self.model = FlatModel(build_model(Model(name=network), (1, 16, 16), 10, seed=0), torch.device("cpu"))
        self.private = {name: buffer.clone() for name, buffer in self.model.buffers.items()}

    def turn(
        self, method: FedBSD, round: int = 1, received: Tensor | None = None, augmentation: Augment | None = None
    ) -> Turn:
        """The live model is `received`, or else the client's own backbone, and its own head."""
        for name, kept in self.private.items():
            self.model.buffers[name].copy_(kept)
        if received is not None:
            self.model.buffers["backbone"].copy_(received)
        return Turn(
            client=self.client,
            round=round,
            seed=0,
            options=method.train,
            augmentation=augmentation or Augment(),
            model=self.model,
            shard=self.shard,
            private=self.private,
        )

    def learn(self, method: FedBSD, round: int = 1, received: Tensor | None = None) -> None:
        method.learn(self.turn(method, round, received))
        for name, kept in self.private.items():
            kept.copy_(self.model.buffers[name])


def loss_of(
    method: FedBSD, model: SplitModel, images: Tensor, labels: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    """L and L_BSD of one batch. `teacher`: features."""
    total, (_, distillation) = method.loss(model, frozen(model.head), images, labels, teacher)
    return total, distillation.detach()


def l_bsd(form: str, student: Tensor, teacher: Tensor, head: nn.Module, tau: float = 4.0) -> Tensor:
    """As the reference has it, with KLs times tau squared."""
    options = {"distillation": form, "temperature": tau, "temperature_squared": True}
    return reference.distill(student, head(student), teacher, head(teacher), options)


@pytest.mark.parametrize("network", ["cnn", "mlp"])
@pytest.mark.parametrize(("form", "teaches"), VARIANTS)
def test_distillation_is_0_at_the_first_step_and_grows(form, teaches, network):
    """Rounding apart, since the teacher's features come from larger batches than the student's."""
    learner = method(distillation=form, distillation_teaches=teaches)
    Participant(0, network).learn(learner)
    first, *later = learner.distillation
    assert len(later) == 9
    assert abs(first) < (1e-10 if form == "features_mse" else ROUNDING)
    assert min(later) > 0
    assert later[-1] > 20 * abs(first)
    assert later[-1] > later[0]


@pytest.mark.parametrize("form", FORMS)
def test_of_augmented_images_the_teacher_sees_the_very_ones_that_the_student_sees(form):
    """Else distillation would not begin at 0; and the teacher stays what was received while the student learns."""
    participant, learner = Participant(0), method(distillation=form, local_epochs=2)
    turn = participant.turn(learner, augmentation=Augment(crop=3, flip=True, rotation=20.0))
    received = snapshot(turn.model.module.backbone)
    images: list[Tensor] = []
    loss, learner.loss = learner.loss, lambda model, head, x, *more: (images.append(x), loss(model, head, x, *more))[1]
    learner.learn(turn)
    first, *later = learner.distillation
    assert abs(first) < (1e-10 if form == "features_mse" else ROUNDING)
    assert min(later) > 0
    with torch.no_grad():
        for x, teacher in zip(images, learner.teachers, strict=True):
            torch.testing.assert_close(teacher, received(x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(images[0], images[10])


@pytest.mark.parametrize(("form", "teaches"), VARIANTS)
def test_distillation_from_equal_features_is_exactly_0(form, teaches):
    """The same numbers on both sides leave no rounding, but in the norms of a cosine."""
    learner, features = method(distillation=form, distillation_teaches=teaches), torch.randn(50, 6)
    _, distillation = loss_of(learner, linear_model(), features, torch.zeros(50).long(), features.clone())
    assert abs(float(distillation)) <= (1e-6 if form == "features_cosine" else 0.0)


def linear_model() -> SplitModel:
    """Its features are its images."""
    return SplitModel(nn.Flatten(), nn.Linear(6, 10))


@pytest.fixture(scope="module")
def after_round_1() -> tuple[Participant, Tensor]:
    """A client that has learned, from labels alone, and the mean of its backbone and another's."""
    first, second = Participant(0), Participant(1)
    for client in (first, second):
        client.learn(method(local_epochs=4, distillation_weight=0.0))
    return first, (first.private["backbone"] + second.private["backbone"]) / 2


@pytest.mark.parametrize("form", FORMS)
def test_a_student_with_a_backbone_of_its_own_starts_away_from_the_teacher(after_round_1, form):
    first, mean = after_round_1
    own = first.private["backbone"]
    learner = method(distillation=form, student_start="own", batch_size=600)
    turn = first.turn(learner, 2, mean)
    first.model.buffers["own_backbone"] = own.clone()
    with torch.no_grad():
        teacher = turn.model.module.backbone(turn.shard.normalized(turn.images))
        first.model.buffers["backbone"].copy_(own)
        student = turn.model.module.backbone(turn.shard.normalized(turn.images))
        expected = l_bsd(form, student, teacher, turn.model.module.head)
        first.model.buffers["backbone"].copy_(mean)
    learner.learn(turn)
    assert learner.distillation[0] == pytest.approx(float(expected), rel=1e-3)
    assert learner.distillation[0] > 20 * ROUNDING
    # what it keeps is what it learned
    assert torch.equal(first.model.buffers.pop("own_backbone"), first.model.buffers["backbone"])
    # and the same round from the received backbone
    received = method(distillation=form, batch_size=600)
    received.learn(first.turn(received, 2, mean))
    assert abs(received.distillation[0]) < ROUNDING


def test_the_teacher_stays_what_was_received():
    participant, learner = Participant(0), method(local_epochs=2)
    turn = participant.turn(learner)
    before = turn.outputs(turn.model.module.backbone, turn.images)
    learner.learn(turn)
    assert not any(teacher.requires_grad for teacher in learner.teachers)
    for epoch in (learner.teachers[:10], learner.teachers[10:]):
        rows = torch.cat(epoch)
        assert torch.equal(rows.unique(dim=0), before.unique(dim=0))
    assert not torch.allclose(turn.outputs(turn.model.module.backbone, turn.images), before, atol=1e-3)


# L_BSD by hand, in NumPy


def log_softmax(x: Array) -> Array:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def distillation_by_hand(
    form: str, student: Array, teacher: Array, head: Callable[[Array], Array], tau: float
) -> float:
    """Without the factor tau squared."""
    if form == "features_mse":
        return float(((student - teacher) ** 2).sum() / student.size)
    if form == "features_cosine":
        lengths = np.sqrt((student**2).sum(1) * (teacher**2).sum(1))
        return float(np.mean(1 - (student * teacher).sum(1) / lengths))
    q, p = (head(student), head(teacher)) if form == "logits_kl" else (student, teacher)
    log_q, log_p = log_softmax(q / tau), log_softmax(p / tau)
    return float((np.exp(log_p) * (log_p - log_q)).sum() / len(p))


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("form", "teaches"), VARIANTS)
def test_distillation_by_hand(form, teaches, tau, squared):
    student, teacher = np.random.default_rng(0).normal(size=(2, 7, 6))
    model = linear_model().double()
    weight, bias = (parameter.detach().numpy() for parameter in model.head.parameters())
    learner = method(
        distillation=form,
        distillation_teaches=teaches,
        distillation_weight=3.0,
        temperature=tau,
        temperature_squared=squared,
    )
    labels = torch.arange(7)
    total, found = loss_of(learner, model, torch.tensor(student), labels, torch.tensor(teacher))
    expected = distillation_by_hand(form, student, teacher, lambda features: features @ weight.T + bias, tau)
    expected *= tau**2 if squared and form.endswith("kl") else 1.0
    assert float(found) == pytest.approx(expected, rel=1e-9)
    classification = -log_softmax(student @ weight.T + bias)[range(7), range(7)].mean()
    assert float(total.detach()) == pytest.approx(classification + 3.0 * expected, rel=1e-9)


# gradients


class Halfway(Participant):
    """A participant that has learned for an epoch, so that student and teacher differ."""

    def __init__(self, learner: FedBSD) -> None:
        super().__init__(0)
        turn = self.turn(learner)
        self.images, self.labels = turn.shard.normalized(turn.images[:100]), turn.labels[:100]
        self.teacher = turn.outputs(turn.model.module.backbone, turn.images[:100])
        learner.learn(turn)
        self.model.train_only(("backbone", "head"))
        self.loss, _ = loss_of(learner, self.model.module, self.images, self.labels, self.teacher)


@pytest.mark.parametrize(("form", "teaches"), VARIANTS)
def test_the_teacher_receives_no_gradient(form, teaches):
    """The gradient of L is the one with the teacher's features and logits as constants."""
    lam = 2.0
    halfway = Halfway(method(distillation=form, distillation_teaches=teaches, distillation_weight=lam))
    model = halfway.model.module
    parts = [list(part.parameters()) for part in (model.backbone, model.head)]

    def gradients(loss: Tensor) -> list[Tensor]:
        """Of backbone and head, flat."""
        flat = torch.autograd.grad(loss, parts[0] + parts[1])
        return [torch.cat([g.flatten() for g in group]) for group in (flat[: len(parts[0])], flat[len(parts[0]) :])]

    def by_hand(teacher_head: nn.Module) -> list[Tensor]:
        student = model.backbone(halfway.images)
        student_head = model.head if teaches == "backbone_and_head" else constant_head

        def head(features: Tensor) -> Tensor:
            return (student_head if features is student else teacher_head)(features)

        classification = F.cross_entropy(model.head(student), halfway.labels)
        return gradients(classification + lam * l_bsd(form, student, halfway.teacher, head))

    constant_head = copy.deepcopy(model.head).requires_grad_(False)
    found, constant, through = gradients(halfway.loss), by_hand(constant_head), by_hand(model.head)
    for gradient, expected in zip(found, constant, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
    # only logits have a teacher's side through the head, and there a gradient would show
    assert ((found[1] - through[1]).abs().max() > 1e-3) == (form == "logits_kl")


@pytest.mark.parametrize(("form", "teaches"), VARIANTS)
def test_the_gradient_of_the_head_by_hand(form, teaches):
    """Of its weights: the mean over the batch of (q - y + lambda tau (q_tau - p_tau)) outer s where distillation
    teaches the head, and of (q - y) outer s elsewhere.
    """
    lam, tau = 3.0, 4.0
    halfway = Halfway(method(distillation=form, distillation_teaches=teaches, distillation_weight=lam, temperature=tau))
    head = halfway.model.module.head.classifier
    weight, bias = torch.autograd.grad(halfway.loss, [head.weight, head.bias])

    w, b = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    with torch.no_grad():
        s, t = halfway.model.module.backbone(halfway.images).double().numpy(), halfway.teacher.double().numpy()
    delta = np.exp(log_softmax(s @ w.T + b)) - np.eye(10)[halfway.labels.numpy()]
    if teaches == "backbone_and_head":
        # tau squared, times 1 / tau from the softened logits
        softened = [np.exp(log_softmax((features @ w.T + b) / tau)) for features in (s, t)]
        delta = delta + lam * tau * (softened[0] - softened[1])
    np.testing.assert_allclose(weight.numpy(), delta.T @ s / 100, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), delta.mean(0), rtol=1e-4, atol=1e-6)
