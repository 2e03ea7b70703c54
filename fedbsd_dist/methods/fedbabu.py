"""FedBABU (Oh et al., arXiv 2106.06042, algorithm 1): the body is learned under a head that never changes.

Local rule: SGD on the backbone alone; the head stays at one common random start, which the seed gives to everybody.
Crosses: the backbone. Stays: nothing. Evaluated: the received model after fine-tuning on the client's training samples
(`finetuned`): the whole model for 5 epochs, or the head. Mean weighted by samples. The paper's learning rate is .1.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify, fine_tune


class Options(MethodOptions):
    """FedBABU (arXiv 2106.06042)."""

    name: Literal["fedbabu"] = "fedbabu"
    """The algorithm."""
    finetune: Literal["all", "head"] = "all"
    """What learns at test time."""
    finetune_epochs: int = Field(5, ge=0)
    """Epochs of it."""


class FedBABU(Method[Options]):
    """Mean of backbones under one fixed head."""

    Options = Options
    shared = ("backbone",)
    fixed = ("head",)
    finetunes = True
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of SGD on the backbone."""
        return classify(turn, self.train.local_epochs, parts=["backbone"])

    def finetune(self, turn: Turn) -> None:
        """The whole model, or its head on features of the received backbone."""
        fine_tune(turn, self.options.finetune, self.options.finetune_epochs)
