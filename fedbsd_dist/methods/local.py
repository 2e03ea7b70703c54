"""Local: every client learns alone. The baseline below which no federation should fall.

Local rule: SGD on the client's own model. Crosses: nothing. Stays: the whole model. Evaluated: it, as it is
(`received`, for there is nothing to receive) and after one more local learning (`trained`). A client learns in
the rounds that it is drawn for, as under every other method.
"""

from typing import Literal

from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify


class Options(MethodOptions):
    """No federation: every client learns alone."""

    name: Literal["local"] = "local"
    """The algorithm."""


class Local(Method[Options]):
    """SGD on the client's own model."""

    Options = Options
    shared = ()
    stacks = True

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of SGD from where the client stopped."""
        return classify(turn, self.train.local_epochs)
