"""FedAvg-FT: FedAvg, and fine-tuning at test time, the baseline of FedRep's study (arXiv 2102.07078, section 5).

Local rule: FedAvg's. Crosses: the whole model. Stays: nothing. Evaluated: the averaged model after its
fine-tuning on the client's training samples (`finetuned`), of which nothing is kept: the head for 10 epochs, as
in that study, whose public code can also tune the whole model.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify, fine_tune


class Options(MethodOptions):
    """FedAvg with fine-tuning at test time (arXiv 2102.07078, section 5)."""

    name: Literal["fedavg_ft"] = "fedavg_ft"
    """The algorithm."""
    finetune: Literal["head", "all"] = "head"
    """What learns at test time."""
    finetune_epochs: int = Field(10, ge=0)
    """Epochs of it."""


class FedAvgFT(Method[Options]):
    """FedAvg and a test-time step."""

    Options = Options
    shared = ("backbone", "head")
    finetunes = True
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of SGD from the received model."""
        return classify(turn, self.train.local_epochs)

    def finetune(self, turn: Turn) -> None:
        """The head on features of the averaged backbone, or the whole model."""
        fine_tune(turn, self.options.finetune, self.options.finetune_epochs)
