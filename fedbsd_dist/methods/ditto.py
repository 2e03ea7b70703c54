"""Ditto (Li et al., arXiv 2012.04221, algorithm 1): personal models held near the common one.

Local rule: w by FedAvg; v <- v - lr (grad F_k(v) + lam (v - w_g)), w_g as received. Crosses: w, the whole model.
Stays: v. Evaluated: v. lam = 1 (.1 and 2 are the paper's others). The common model is FedAvg's, bit for bit, with
FedAvg's weights in the mean.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify, copies, together
from fedbsd_dist.models.flat import Extra
from fedbsd_dist.optimizer import toward


class Options(MethodOptions):
    """Ditto (arXiv 2012.04221)."""

    name: Literal["ditto"] = "ditto"
    """The algorithm."""
    lam: float = Field(1.0, ge=0, allow_inf_nan=False)
    """lambda, which holds the personal model near the common one; 0: nothing does."""
    personal_epochs: int = Field(1, ge=1)
    """Epochs of the personal model in a round; `train.local_epochs` are the common one's."""


class Ditto(Method[Options]):
    """FedAvg, and beside it regularised personal models."""

    Options = Options
    shared = ("backbone", "head")
    losses = ("classification", "personal")

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """v."""
        return copies("personal", groups)

    def welcome(self, turn: Turn) -> None:
        """v begins at w."""
        turn.model.store("personal")

    def learn(self, turn: Turn) -> Tensor:
        """The personal model first, then the common one; neither sees the other's steps."""
        model, received = turn.model, turn.model.clone()
        self.deploy(turn)
        near = toward(model.views(received), self.options.lam)
        personal = classify(turn, self.options.personal_epochs, purpose="personal batches", correct=near)
        model.store("personal")
        model.put(received)
        return together(classify(turn, self.train.local_epochs), personal)

    def deploy(self, turn: Turn) -> None:
        """v."""
        turn.model.put(turn.model.extra("personal"))
