"""LG-FedAvg (Liang et al., arXiv 2001.01523, algorithm 1): local representations under a global upper part.

Local rule: joint SGD. Crosses: the upper layers, here the head (`model.head_layers` says how many). Stays: the lower
layers, here the backbone. Evaluated: the client's own backbone under the received head. Mean weighted by samples.
The paper's auxiliary losses on representations are left out, as in its experiments on images; its public code begins
from a model that FedAvg trained beforehand, and we from the common random start.
"""

from typing import Literal

from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify


class Options(MethodOptions):
    """LG-FedAvg (arXiv 2001.01523)."""

    name: Literal["lg_fedavg"] = "lg_fedavg"
    """The algorithm."""


class LGFedAvg(Method[Options]):
    """Mean of heads."""

    Options = Options
    shared = ("head",)
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of SGD from the client's own backbone and the received head."""
        return classify(turn, self.train.local_epochs)
