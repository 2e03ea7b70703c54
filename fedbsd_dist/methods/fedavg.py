"""FedAvg (McMahan et al., arXiv 1602.05629, algorithm 1): one model for all.

Local rule: E epochs of SGD from the received model. Crosses: the whole model. Stays: nothing. Evaluated: the
averaged model (`received`), and the same after a client's local learning (`trained`). Mean weighted by the
number of training samples.
"""

from typing import Literal

from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify


class Options(MethodOptions):
    """FedAvg (arXiv 1602.05629)."""

    name: Literal["fedavg"] = "fedavg"
    """The algorithm."""


class FedAvg(Method[Options]):
    """Sample-weighted mean of whole models."""

    Options = Options
    shared = ("backbone", "head")
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of SGD from the received model."""
        return classify(turn, self.train.local_epochs)
