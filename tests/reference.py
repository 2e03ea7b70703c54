"""FedAvg, FedPer and FedBSD in one process, said as plainly as possible: what a distributed run must equal.

It shares no code with the package and draws nothing at random: the initial state, the data, the cohorts and the
order of the samples come from outside.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
"""State dict of `make_model`, or the part of it whose names begin with backbone. or head."""
Orders = Mapping[tuple[str, int, int], Sequence[Tensor]]
"""(purpose, round, client) -> for every epoch, the order of the training rows; purpose `batches` or `head tuning`."""
Losses = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Client:
    """Images float32 [n, channels, height, width], normalised; labels int64 [n]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Settings:
    method: str
    """`fedavg`, `fedper` or `fedbsd`."""
    mean: str
    """`samples` or `plain`."""
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    local_epochs: int
    tuning_epochs: int
    """Of the head, before the stage `head_tuned`."""
    distillation: str = ""
    distillation_teaches: str = "backbone"
    distillation_weight: float = 0.0
    temperature: float = 1.0
    temperature_squared: bool = False
    student_start: str = "received"
    schedule: str = "joint"
    head_epochs: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    shared: State
    private: list[State]
    """By client."""
    losses: list[Losses]
    """By round: classification, and for FedBSD distillation; means over all samples of all steps of the cohort."""
    tests: dict[str, list[tuple[int, float]]]
    """Stage -> by client: correct test samples, mean test loss."""


def make_model(network: str, head_layers: int, image: Sequence[int], classes: int) -> nn.Sequential:
    """`backbone` and `head`, the last `head_layers` layers of the network, for images [channels, height, width]."""
    channels, height, width = image
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    if network == "smooth":
        layers = [
            [nn.Conv2d(channels, 8, 5), nn.Tanh(), nn.AvgPool2d(2)],
            [nn.Conv2d(8, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()],
            [nn.Linear(16 * rows * columns, 32), nn.Tanh()],
            [nn.Linear(32, classes)],
        ]
    elif network == "cnn":
        layers = [
            [nn.Conv2d(channels, 32, 5), nn.ReLU(), nn.MaxPool2d(2)],
            [nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()],
            [nn.Linear(64 * rows * columns, 512), nn.ReLU()],
            [nn.Linear(512, classes)],
        ]
    else:
        assert network == "mlp"
        layers = [
            [nn.Flatten(), nn.Linear(channels * height * width, 512), nn.ReLU()],
            [nn.Linear(512, 256), nn.ReLU()],
            [nn.Linear(256, 64), nn.ReLU()],
            [nn.Linear(64, classes)],
        ]
    backbone = [module for layer in layers[:-head_layers] for module in layer]
    head = [module for layer in layers[-head_layers:] for module in layer]
    return nn.Sequential(OrderedDict(backbone=nn.Sequential(*backbone), head=nn.Sequential(*head)))


def federate(
    model: nn.Sequential,
    initial: State,
    clients: Sequence[Client],
    cohorts: Sequence[Sequence[int]],
    orders: Orders,
    settings: Settings,
) -> Result:
    """`cohorts`: the clients of every round; rounds count from 1. `initial`: the state that all begin with."""
    model.load_state_dict(initial)
    shares = [name for name in initial if settings.method == "fedavg" or name.startswith("backbone.")]
    keeps = [name for name in initial if name not in shares or settings.student_start == "own"]
    shared = copy.deepcopy({name: initial[name] for name in shares})
    private = [copy.deepcopy({name: initial[name] for name in keeps}) for _ in clients]

    def receive(number: int) -> None:
        """The shared state, and the client's own where none is shared."""
        model.load_state_dict({**private[number], **shared})

    def train(number: int, round: int) -> list[tuple[int, Losses]]:
        receive(number)
        own = private[number] if settings.student_start == "own" else {}
        batches, head = orders["batches", round, number], orders["head tuning", round, number]
        return learn(model, own, clients[number], batches[: settings.local_epochs], head, settings)

    losses = []
    for round, cohort in enumerate(cohorts, start=1):
        uploads, weights, steps = [], [], []
        for number in cohort:
            steps += train(number, round)
            state = copy.deepcopy(model.state_dict())
            uploads.append({name: state[name] for name in shares})
            private[number] = {name: state[name] for name in keeps}
            weights.append(len(clients[number].train_labels) if settings.mean == "samples" else 1)
        shared = {name: mean([upload[name] for upload in uploads], weights) for name in shares}
        sizes = [size for size, _ in steps]
        losses.append(tuple(mean(term, sizes) for term in zip(*(terms for _, terms in steps), strict=True)))

    tests: dict[str, list[tuple[int, float]]] = {"received": [], "trained": [], "head_tuned": []}
    extra = len(cohorts) + 1
    for number, client in enumerate(clients):
        receive(number)
        tests["received"].append(test(model, client))
        train(number, extra)
        tests["trained"].append(test(model, client))
        receive(number)
        tune_head(model, client, orders["head tuning", extra, number][: settings.tuning_epochs], settings)
        tests["head_tuned"].append(test(model, client))
    return Result(shared=shared, private=private, losses=losses, tests=tests)


def learn(
    model: nn.Sequential,
    own: State,
    client: Client,
    orders: Sequence[Tensor],
    head_orders: Sequence[Tensor],
    settings: Settings,
) -> list[tuple[int, Losses]]:
    """One client's local learning, from the model as received. `own`: the backbone that a student of its own has.

    Every step's batch size and losses.
    """
    teacher = copy.deepcopy(model.backbone)
    model.load_state_dict({**model.state_dict(), **own})
    trained: nn.Module = model
    if settings.schedule == "head_then_backbone":
        tune_head(model, client, head_orders[: settings.head_epochs], settings)
        trained = model.backbone

    def loss(rows: Tensor) -> tuple[Tensor, Losses]:
        features = model.backbone(client.train_images[rows])
        logits = model.head(features)
        classification = nn.functional.cross_entropy(logits, client.train_labels[rows])
        if settings.method != "fedbsd":
            return classification, (classification.detach(),)
        with torch.no_grad():
            teacher_features = teacher(client.train_images[rows])
            teacher_logits = model.head(teacher_features)
        if settings.distillation_teaches == "backbone":
            # the present head, as a constant: its gradient is that of the labels alone
            logits = copy.deepcopy(model.head).requires_grad_(False)(features)
        distillation = distill(features, logits, teacher_features, teacher_logits, settings)
        total = classification + settings.distillation_weight * distillation
        return total, (classification.detach(), distillation.detach())

    return descend(trained, orders, loss, settings)


def distill(student: Tensor, logits: Tensor, teacher: Tensor, teacher_logits: Tensor, settings: Settings) -> Tensor:
    """L_BSD between features, or logits, of student and teacher: mean over the batch."""
    if settings.distillation == "features_mse":
        return ((student - teacher) ** 2).mean()
    if settings.distillation == "features_cosine":
        return 1 - ((student * teacher).sum(1) / (student.norm(dim=1) * teacher.norm(dim=1))).mean()
    pair = {"logits_kl": (logits, teacher_logits), "features_kl": (student, teacher)}[settings.distillation]
    log_q, log_p = (torch.log_softmax(side / settings.temperature, dim=1) for side in pair)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    return divergence * settings.temperature**2 if settings.temperature_squared else divergence


def tune_head(model: nn.Sequential, client: Client, orders: Sequence[Tensor], settings: Settings) -> None:
    """The head alone, on the features of the backbone as it is."""
    with torch.no_grad():
        features = model.backbone(client.train_images)

    def loss(rows: Tensor) -> tuple[Tensor, Losses]:
        return nn.functional.cross_entropy(model.head(features[rows]), client.train_labels[rows]), ()

    descend(model.head, orders, loss, settings)


def descend(
    module: nn.Module, orders: Sequence[Tensor], loss: Callable[[Tensor], tuple[Tensor, Losses]], settings: Settings
) -> list[tuple[int, Losses]]:
    """SGD on the parameters of `module`, with momentum from zero and weight decay on weights, not on biases."""
    weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in module.parameters() if parameter.dim() == 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    steps = []
    for order in orders:
        for rows in order.split(settings.batch_size):
            total, terms = loss(rows)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            steps.append((len(rows), terms))
    return steps


def mean(tensors: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Weighted mean, summed in double precision."""
    total = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
    return (total / sum(weights)).float()


@torch.no_grad()
def test(model: nn.Sequential, client: Client) -> tuple[int, float]:
    logits = model(client.test_images)
    correct = int((logits.argmax(1) == client.test_labels).sum())
    return correct, float(nn.functional.cross_entropy(logits, client.test_labels))
