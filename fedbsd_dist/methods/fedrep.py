"""FedRep (Collins et al., arXiv 2102.07078, algorithm 1): a head for many steps, then the representation for a few.

Local rule: the head for head_epochs with the backbone fixed, then the backbone for `train.local_epochs` with the head
fixed. Crosses: the backbone. Stays: the head. Evaluated: the received backbone under the client's own head, and the
same after local learning. Plain mean (its public code weights by samples). head_epochs = 10; backbone 1 or 5. The
head is never sent nor averaged, which one public library does.

Images that augmentation does not change have their features computed once for all epochs of the head.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify


class Options(MethodOptions):
    """FedRep (arXiv 2102.07078)."""

    name: Literal["fedrep"] = "fedrep"
    """The algorithm."""
    mean: Literal["samples", "plain"] = "plain"
    """Weight of a client in the mean of what crosses: its training samples, or 1 (the paper)."""
    head_epochs: int = Field(10, ge=1)
    """Epochs of the head in a round; `train.local_epochs` are the backbone's."""


class FedRep(Method[Options]):
    """Alternating head and backbone; mean of backbones."""

    Options = Options
    shared = ("backbone",)
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        """Head, then backbone."""
        turn.tune_head(self.options.head_epochs, augmented=True)
        return classify(turn, self.train.local_epochs, parts=["backbone"])
