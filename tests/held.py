"""A method whose rounds last as long as a test wants: for jobs that are to be stopped in the middle."""

import os
import time
from typing import Literal

from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify


class Options(MethodOptions):
    """FedPer, held up."""

    name: Literal["held"] = "held"
    file: str = ""
    """While it exists, every local learning takes half a second longer."""


class Held(Method[Options]):
    Options = Options
    shared = ("backbone",)

    def learn(self, turn: Turn) -> Tensor:
        if os.path.exists(self.options.file):
            time.sleep(0.5)
        return classify(turn, self.train.local_epochs)
