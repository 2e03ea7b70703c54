"""FedBN (Li et al., arXiv 2102.07623, algorithm 1): all is averaged but batch normalisation.

Local rule: joint SGD. Crosses: the model without its batch norm layers. Stays: these layers, their parameters and
their running statistics, whatever `model.norm_stats` says. Evaluated: the received model with the client's own batch
norm. Plain mean, as in the paper, whose clients are domains of one size.
"""

from typing import Literal

from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods.contract import Method, classify
from fedbsd_dist.models.flat import NORM, FlatModel


class Options(MethodOptions):
    """FedBN (arXiv 2102.07623), for models with batch norm."""

    name: Literal["fedbn"] = "fedbn"
    """The algorithm."""
    mean: Literal["samples", "plain"] = "plain"
    """Weight of a client in the mean of what crosses: its training samples, or 1 (the paper)."""


class FedBN(Method[Options]):
    """FedAvg without batch norm."""

    Options = Options
    shared = ("backbone", "head")
    local_norm = True

    def check(self, model: FlatModel) -> None:
        """Without batch norm it would be FedAvg under another name."""
        if NORM not in model.groups:
            raise UserError(
                "method.name=fedbn keeps batch norm local, but this model has none. Choose a model that has, such as "
                "model.name=digits_cnn_bn, or method.name=fedavg, which is the same without."
            )

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of SGD from the received model with the client's own batch norm."""
        return classify(turn, self.train.local_epochs)
