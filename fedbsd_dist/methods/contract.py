"""What an algorithm is: what crosses, what stays, how a client learns, what the server does."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions, Train

AnyOptions = TypeVar("AnyOptions", bound=MethodOptions)


class Method(ABC, Generic[AnyOptions]):
    """One algorithm. It sees no rank, no file, and one client at a time."""

    Options: ClassVar[type[MethodOptions]]
    """Its section of the configuration."""
    shared: ClassVar[tuple[str, ...]]
    """Groups of parameters (`backbone`, `head`) that cross; the others stay with each client.

    Whether normalisation's running statistics go with them says `model.norm_stats`, and no method.
    """
    losses: ClassVar[tuple[str, ...]]
    """Names of the losses that `learn` reports."""

    def __init__(self, options: AnyOptions, train: Train) -> None:
        """`train`: the local learning that all methods have in common."""
        self.options, self.train = options, train

    @property
    def kept(self) -> tuple[str, ...]:
        """Shared groups of which a client keeps a private copy of its own besides."""
        return ()

    @abstractmethod
    def weight(self, num_train: int) -> float:
        """Weight in the mean of a client with `num_train` training samples."""

    @abstractmethod
    def learn(self, turn: Turn) -> Tensor:
        """Local learning: changes the live model, whose shared groups are then the upload and whose
        other groups the client keeps. Returns the sums of `losses` and samples, as `Turn.sgd` does.
        """

    def update(self, shared: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Server step, done alike on every rank: the new shared state of the old and the mean upload."""
        return dict(mean)


def classify(turn: Turn, train: Train) -> Tensor:
    """Joint SGD on backbone and head with cross-entropy: the local rule of FedAvg and FedPer."""
    model = turn.model.module

    def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        classification = F.cross_entropy(model(images), labels)
        return classification, [classification]

    return turn.sgd(loss, (turn.images, turn.labels), groups=("backbone", "head"), epochs=train.local_epochs)
