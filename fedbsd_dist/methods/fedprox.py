"""FedProx (Li et al., arXiv 1812.06127, algorithm 2): local models are held near the received one.

Local rule: SGD on F_k(w) + mu/2 ||w - w_g||^2 (its equation 2), w_g as received. Crosses: the whole model. Stays:
nothing. Evaluated: as FedAvg. Its theory samples clients in proportion to their data and takes the plain mean; like
its public code we draw them alike and weight the mean by samples, so that mu = 0 is FedAvg. mu: .001, .01, .1
or 1 in the paper, by data set.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify
from fedbsd_dist.optimizer import toward


class Options(MethodOptions):
    """FedProx (arXiv 1812.06127)."""

    name: Literal["fedprox"] = "fedprox"
    """The algorithm."""
    mu: float = Field(0.01, ge=0, allow_inf_nan=False)
    """Strength of the proximal term; 0 is FedAvg."""


class FedProx(Method[Options]):
    """FedAvg with a proximal term."""

    Options = Options
    shared = ("backbone", "head")

    def learn(self, turn: Turn) -> Tensor:
        """E epochs, every gradient with mu (w - w_g) added."""
        received = turn.model.views(turn.model.clone())
        return classify(turn, self.train.local_epochs, correct=toward(received, self.options.mu))
