"""FedPer (Arivazhagan et al., arXiv 1912.00818): base layers are averaged, personalization layers stay.

Local rule: joint SGD on backbone and head. Crosses: the backbone. Stays: the head. Evaluated: the received
backbone under the client's own head, and the same after local learning. The paper weights the mean by samples
(its algorithm 2).
"""

from typing import Literal

from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify


class Options(MethodOptions):
    """FedPer (arXiv 1912.00818)."""

    name: Literal["fedper"] = "fedper"
    """The algorithm."""


class FedPer(Method[Options]):
    """Joint SGD on backbone and head; mean of backbones."""

    Options = Options
    shared = ("backbone",)
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of SGD from the received backbone and the client's own head."""
        return classify(turn, self.train.local_epochs)
