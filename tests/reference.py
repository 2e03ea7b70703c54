"""The round of every method in one process, said as plainly as possible: what a distributed run must equal.

FedAvg, FedPer and FedBSD are here, the other methods in `reference_methods` and `reference_extra`. None shares code
with the package, and none draws at random: the initial state, the data, the cohorts and the order of the samples come
from outside.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from reference_models import State, frozen, live, load, state_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Orders = Mapping[str, Sequence[Tensor]]
"""A client's in a round: purpose -> for every epoch, the order of the training rows."""
AllOrders = Mapping[tuple[str, int, int], Sequence[Tensor]]
"""(purpose, round, client) -> the same. Rounds count from 1."""
Steps = list[tuple[int, Tensor]]
"""Batch size and loss of every step."""
Loss = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
"""Rows of the batch -> (loss to descend, losses to report)."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """Images float32 [n, channels, height, width], normalised; labels int64 [n]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Settings:
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    local_epochs: int
    tuning_epochs: int
    """Of the head, before the stage `head_tuned`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The method's own, where they are not its defaults."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a client's local learning gives."""

    upload: State
    private: State
    steps: Sequence[Steps]
    """Of each reported loss."""


Tests = dict[str, list[tuple[int, float]]]
"""Stage -> by client: correct test samples, mean test loss."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the rounds give."""

    shared: State
    private: list[State]
    """By client."""
    losses: list[list[Tensor]]
    """By round: the method's losses, means over the cohort."""
    joined: frozenset[int]
    """Clients that were in any cohort."""


def published(**options: Any) -> Mapping[str, Any]:
    """Options of a method, as they are where nothing else is said."""
    return MappingProxyType(options)


class Method:
    """One algorithm: states go in and come out, and the model is a workbench."""

    defaults = published(mean="samples")
    """The method's options as published."""
    losses = ("classification",)
    """Names of what is reported."""
    finetunes = False
    """Whether it has a step of its own at test time."""

    def __init__(self, model: nn.Sequential, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.options = {**self.defaults, **settings.options}

    def shares(self, name: str) -> bool:
        """Whether a tensor of the model crosses; the others are private."""
        return True

    def start(self, initial: State) -> tuple[State, State]:
        """Shared state, and the private state that every client begins with."""
        return self.divided(initial)

    def divided(self, state: State) -> tuple[State, State]:
        """What is shared of a model, and what is private."""
        private = {name: tensor for name, tensor in state.items() if not self.shares(name)}
        return {name: tensor for name, tensor in state.items() if name not in private}, private

    def receive(self, shared: State, private: State) -> None:
        """The model is the shared state, and the client's own where none is shared."""
        both = {**private, **shared}
        load(self.model, {name: both[name] for name in live(self.model)})

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        """A client's local learning in a round."""
        self.receive(shared, private)
        steps = self.train(client, orders)
        upload, private = self.divided(state_of(self.model))
        return Learned(upload=upload, private=private, steps=steps)

    def train(self, client: Client, orders: Orders) -> Sequence[Steps]:
        """From the model as received: joint SGD."""
        return joint(self.model, client, self.epochs(orders), self.settings)

    def epochs(self, orders: Orders) -> Sequence[Tensor]:
        """Of the ordinary local learning."""
        return orders["batches"][: self.settings.local_epochs]

    def weight(self, client: Client) -> int:
        """Of its upload in the mean."""
        return len(client.train_labels) if self.options["mean"] == "samples" else 1

    def update(self, shared: State, average: State, participation: float) -> State:
        """New shared state from the old and the mean upload. `participation`: cohort / all clients."""
        return average

    def deploy(self, shared: State, private: State) -> State:
        """The model that is evaluated. `shared`: as received, or as just learned by the client."""
        both = {**private, **shared}
        return {name: both[name] for name in live(self.model)}

    def welcome(self, shared: State, private: State, client: Client) -> State:
        """What is private to a client that never learned, where its model is evaluated as received."""
        return private

    def finetune(self, client: Client, orders: Orders) -> None:
        """The step at test time, from the model as received."""
        raise NotImplementedError


class FedAvg(Method):
    pass


class FedPer(Method):
    def shares(self, name: str) -> bool:
        return name.startswith("backbone.")


class FedBSD(FedPer):
    defaults = published(
        mean="plain",
        distillation="logits_kl",
        distillation_teaches="backbone",
        distillation_weight=0.3,
        temperature=4.0,
        temperature_squared=True,
        student_start="received",
        schedule="joint",
        head_epochs=1,
        private_head=True,
    )
    losses = ("classification", "distillation")

    def shares(self, name: str) -> bool:
        return not self.options["private_head"] or super().shares(name)

    def divided(self, state: State) -> tuple[State, State]:
        shared, private = super().divided(state)
        return shared, dict(state) if self.options["student_start"] == "own" else private

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        self.receive(shared, private)
        teacher = frozen(self.model.backbone)
        if self.options["student_start"] == "own":
            load(self.model, private)
        trained: nn.Module = self.model
        if self.options["schedule"] == "head_then_backbone":
            tune_head(self.model, client, orders["head tuning"][: self.options["head_epochs"]], self.settings)
            trained = self.model.backbone

        def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            features = self.model.backbone(client.train_images[rows])
            logits = self.model.head(features)
            classification = cross_entropy(logits, client.train_labels[rows])
            # the present head, as a constant: its gradient is that of the labels alone
            head = frozen(self.model.head)
            teacher_features = teacher(client.train_images[rows])
            if self.options["distillation_teaches"] == "backbone":
                logits = head(features)
            distillation = distill(features, logits, teacher_features, head(teacher_features), self.options)
            return classification + self.options["distillation_weight"] * distillation, (classification, distillation)

        steps = descend(trained.parameters(), self.epochs(orders), loss, self.settings)
        upload, private = self.divided(state_of(self.model))
        return Learned(upload=upload, private=private, steps=steps)


def distill(
    student: Tensor, logits: Tensor, teacher: Tensor, teacher_logits: Tensor, options: Mapping[str, Any]
) -> Tensor:
    """L_BSD between features, or logits, of student and teacher: mean over the batch."""
    if options["distillation"] == "features_mse":
        return ((student - teacher) ** 2).mean()
    if options["distillation"] == "features_cosine":
        return 1 - cosine(student, teacher).mean()
    pair = {"logits_kl": (logits, teacher_logits), "features_kl": (student, teacher)}[options["distillation"]]
    divergence = kl(*pair, options["temperature"])
    return divergence * options["temperature"] ** 2 if options["temperature_squared"] else divergence


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of what is softened by the temperature, [n, d] each: mean over the batch."""
    log_q, log_p = (torch.log_softmax(side / temperature, dim=1) for side in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of vectors [n, d]: [n]."""
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def federate(
    method: Method,
    initial: State,
    clients: Sequence[Client],
    cohorts: Sequence[Sequence[int]],
    orders: AllOrders,
) -> Trained:
    """`initial`: the model that all begin with. `cohorts`: of every round, who trains and counts."""
    shared, fresh = method.start(initial)
    private = [fresh] * len(clients)
    losses = []
    for round, cohort in enumerate(cohorts, start=1):
        turns = [
            method.learn(shared, private[number], clients[number], orders_of(number, round, orders))
            for number in cohort
        ]
        for number, learned in zip(cohort, turns, strict=True):
            private[number] = learned.private
        weights = [method.weight(clients[number]) for number in cohort]
        if cohort:
            average = {name: mean([learned.upload[name] for learned in turns], weights) for name in shared}
            shared = method.update(shared, average, len(cohort) / len(clients))
        losses.append(mean_losses(turns))

    return Trained(shared=shared, private=private, losses=losses, joined=frozenset().union(*cohorts))


def evaluate(method: Method, trained: Trained, clients: Sequence[Client], orders: AllOrders) -> Tests:
    """All clients at every stage, after the last round; nothing is kept."""
    stages = ["received", "trained", "head_tuned", *(["finetuned"] if method.finetunes else [])]
    tests: Tests = {stage: [] for stage in stages}
    for number, (client, private) in enumerate(zip(clients, trained.private, strict=True)):
        mine = orders_of(number, len(trained.losses) + 1, orders)
        present = private if number in trained.joined else method.welcome(trained.shared, private, client)
        load(method.model, method.deploy(trained.shared, present))
        tests["received"].append(test(method.model, client))
        learned = method.learn(trained.shared, private, client, mine)
        load(method.model, method.deploy(learned.upload, learned.private))
        tests["trained"].append(test(method.model, client))
        load(method.model, method.deploy(trained.shared, present))
        tune_head(method.model, client, mine["head tuning"][: method.settings.tuning_epochs], method.settings)
        tests["head_tuned"].append(test(method.model, client))
        if method.finetunes:
            method.receive(trained.shared, private)
            method.finetune(client, mine)
            tests["finetuned"].append(test(method.model, client))
    return tests


def orders_of(client: int, round: int, orders: AllOrders) -> Orders:
    return {purpose: order for (purpose, *turn), order in orders.items() if turn == [round, client]}


def mean_losses(turns: Sequence[Learned]) -> list[Tensor]:
    """Each client's means over the samples of its steps, weighted by the samples of the first loss's steps."""
    samples = [sum(size for size, _ in learned.steps[0]) for learned in turns]
    by_client = [
        [mean([loss for _, loss in steps], [size for size, _ in steps]) for steps in learned.steps] for learned in turns
    ]
    return [mean(losses, samples) for losses in zip(*by_client, strict=True)]


def joint(model: nn.Sequential, client: Client, orders: Sequence[Tensor], settings: Settings) -> list[Steps]:
    """SGD on the whole model with cross-entropy."""

    def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        classification = cross_entropy(model(client.train_images[rows]), client.train_labels[rows])
        return classification, (classification,)

    return descend(model.parameters(), orders, loss, settings)


def tune_head(model: nn.Sequential, client: Client, orders: Sequence[Tensor], settings: Settings) -> None:
    """The head alone, on the features of the backbone as it is."""
    features = frozen(model.backbone)(client.train_images)

    def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        return cross_entropy(model.head(features[rows]), client.train_labels[rows]), ()

    descend(model.head.parameters(), orders, loss, settings)


def descend(
    parameters: Iterable[nn.Parameter], orders: Sequence[Tensor], loss: Loss, settings: Settings
) -> list[Steps]:
    """The steps of each reported loss."""
    optimizer = sgd(parameters, settings)
    steps = []
    for rows in batches(orders, settings):
        total, reported = loss(rows)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        steps.append([(len(rows), term.detach()) for term in reported])
    return [list(of_one) for of_one in zip(*steps, strict=True)]


def sgd(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.SGD:
    """With momentum from zero, and weight decay on weights, not on biases."""
    every = list(parameters)
    weights = [parameter for parameter in every if parameter.dim() > 1]
    biases = [parameter for parameter in every if parameter.dim() == 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def batches(orders: Sequence[Tensor], settings: Settings) -> Iterator[Tensor]:
    """Rows of every batch of every epoch."""
    for order in orders:
        yield from order.split(settings.batch_size)


def mean(tensors: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Weighted mean, summed in double precision."""
    total = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
    return (total / sum(weights)).to(tensors[0].dtype)


@torch.no_grad()
def test(model: nn.Sequential, client: Client) -> tuple[int, float]:
    logits = frozen(model)(client.test_images)
    correct = int((logits.argmax(1) == client.test_labels).sum())
    return correct, float(cross_entropy(logits, client.test_labels))
