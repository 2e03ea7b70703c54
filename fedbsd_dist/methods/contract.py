"""What an algorithm is: what crosses, what stays, how a client learns, what the server does, what is evaluated."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions, Train
from fedbsd_dist.models.flat import PARAMETERS, STATISTICS, Extra, FlatModel, State
from fedbsd_dist.optimizer import Correct

AnyOptions = TypeVar("AnyOptions", bound=MethodOptions)


class Method(ABC, Generic[AnyOptions]):
    """One algorithm. It sees no rank, no file, and one client at a time."""

    Options: ClassVar[type[MethodOptions]]
    """Its section of the configuration."""
    shared: tuple[str, ...]
    """Groups of parameters (`backbone`, `head`) that cross; the others stay with each client. Of the class, or where
    options change it, of the method.

    Whether normalisation's running statistics go with them says `model.norm_stats`, and no method.
    """
    fixed: ClassVar[tuple[str, ...]] = ()
    """Groups that neither cross nor are anyone's own: as they all began, for ever."""
    local_norm: ClassVar[bool] = False
    """Batch norm stays with each client, its parameters (then a group of their own) and its statistics."""
    deploys_head_alone: ClassVar[bool] = False
    """`deploy` is the method's own, and leaves the backbone as it is: then it is evaluated for all clients together."""
    finetunes: ClassVar[bool] = False
    """It has a test-time step of its own: stage `finetuned`."""
    stacks: ClassVar[bool] = False
    """Several clients can learn in one step (`train.together`): `learn` asks a turn for `sgd`, `listen`, `tune_head`,
    `outputs`, `frozen` alone, and its model for `module`, `put`, `extra`, `store`, `clone`. A loss is then a mean over
    its batch, of a term for each sample that no other sample has a part in, and changes nothing.
    """
    losses: ClassVar[tuple[str, ...]] = ("classification",)
    """Names of the losses that `learn` reports."""

    def __init__(self, options: AnyOptions, train: Train) -> None:
        """`train`: the local learning that all methods have in common."""
        self.options, self.train = options, train

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """Name -> further state that the method has, of a model with these groups."""
        return {}

    def check(self, model: FlatModel) -> None:
        """Raises UserError where the method cannot be done with this model."""

    def weight(self, num_train: int) -> float:
        """Weight in the mean of a client with `num_train` training samples."""
        return float(num_train) if self.options.mean == "samples" else 1.0

    def welcome(self, turn: Turn) -> None:
        """A client that never trained, for it is new or was in no cohort yet, has received, and is to be tested: give
        its private state, as all began with, a better start.
        """

    @abstractmethod
    def learn(self, turn: Turn) -> Tensor:
        """Local learning: changes the live model and the extras, of which what is shared is then the upload, and
        what is not the client keeps. Returns the sums of `losses` and samples, as `Turn.sgd` does.
        """

    def update(
        self, shared: Mapping[str, Tensor], mean: Mapping[str, Tensor], weight: float, num_clients: int
    ) -> State:
        """Server step, done alike on every rank: the new shared state of the old and the mean upload.

        `weight`: the sum of the weights of those who uploaded. The new state may be made of tensors of either. What a
        later step needs belongs into an extra that is shared: attributes of the method are in no checkpoint.
        """
        return dict(mean)

    def deploy(self, turn: Turn) -> None:
        """Make the live model the client's personal one, which is evaluated: after receiving or local learning."""

    def finetune(self, turn: Turn) -> None:
        """The test-time step of a method that `finetunes`, on the live model as received."""


def classify(
    turn: Turn,
    epochs: int,
    *,
    parts: Sequence[str] = PARAMETERS,
    purpose: str = "batches",
    correct: Correct | None = None,
) -> Tensor:
    """SGD with cross-entropy on backbone and head, or one of them: the local rule of FedAvg, and a part of many."""
    model = turn.model.module

    def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        classification = F.cross_entropy(model(images), labels)
        return classification, [classification]

    return turn.sgd(loss, parts=parts, epochs=epochs, purpose=purpose, correct=correct)


def fine_tune(turn: Turn, what: Literal["head", "all"], epochs: int) -> None:
    """The step at test time: the head on features of the received backbone, or the whole model."""
    if what == "head":
        turn.tune_head(epochs, "finetuning")
    elif epochs:
        classify(turn, epochs, purpose="finetuning")


def copies(prefix: str, groups: Sequence[str]) -> dict[str, Extra]:
    """A private copy of these groups, called PREFIX_GROUP, which starts as the model does."""
    return {f"{prefix}_{group}": Extra(like=group) for group in groups}


def toward_mean(shared: Mapping[str, Tensor], mean: Mapping[str, Tensor], rate: float) -> State:
    """The server's part of the way to the mean upload. Of running statistics it is the mean itself: beyond it, a
    variance may be negative.
    """
    moved = {name: values + rate * (mean[name] - values) for name, values in shared.items()}
    return {**moved, **{name: mean[name] for name in STATISTICS.values() if name in shared}}


def together(*sums: Tensor) -> Tensor:
    """What `Turn.sgd` returned of several trainings, as of one with all their losses, on the samples of the first."""
    samples = sums[0][-1:]
    return torch.cat([*(part[:-1] * (samples / part[-1:]) for part in sums), samples])
