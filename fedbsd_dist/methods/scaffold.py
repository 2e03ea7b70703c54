"""SCAFFOLD (Karimireddy et al., arXiv 1910.06378, algorithm 1): control variates correct the drift of clients.

Local rule: steps with g - c_k + c; then c_k+ = c_k - c + (w_g - w_k) / (K lr), option II. Crosses: the model, and
the control variate c down, its change c_k+ - c_k up: twice FedAvg's bytes. Stays: c_k. Evaluated: as FedAvg.
Server: w <- w + server_lr * mean(w_k - w), c <- c + |S| / N * mean(c_k+ - c_k), plain means over the cohort S.

The paper's local steps have no momentum. Where `train.momentum` is m > 0, K is replaced by the sum of the weights
with which the K gradients enter w_g - w_k, sum_j (1 - m^j) / (1 - m): c_k+ is then a weighted mean of the local
gradients, as it is their plain mean in the paper. With K itself it would be 1 / (1 - m) times too large.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, classify, toward_mean
from fedbsd_dist.models.flat import PARAMETERS, Extra, State
from fedbsd_dist.optimizer import Tensors


class Options(MethodOptions):
    """SCAFFOLD (arXiv 1910.06378)."""

    name: Literal["scaffold"] = "scaffold"
    """The algorithm."""
    mean: Literal["plain"] = "plain"
    """Weight of a client in the mean of what crosses: 1."""
    server_lr: float = Field(1.0, gt=0, allow_inf_nan=False)
    """The server's step towards the mean of the local models."""


class Scaffold(Method[Options]):
    """FedAvg with control variates."""

    Options = Options
    shared = ("backbone", "head")

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """c, which is also where a client puts the change of its own, and c_k; all begin at 0."""
        return {
            **{f"control_{part}": Extra(like=part, start=0.0, shared=True) for part in PARAMETERS},
            **{f"own_control_{part}": Extra(like=part, start=0.0) for part in PARAMETERS},
        }

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of corrected steps, then the new control variate."""
        model, received = turn.model, turn.model.clone()
        control, own = model.extra("control"), model.extra("own_control")
        shift = model.views({part: control[part] - own[part] for part in PARAMETERS})

        def correct(gradients: Tensors, parameters: Tensors) -> Tensors:
            return torch._foreach_add(gradients, shift)

        sums = classify(turn, self.train.local_epochs, correct=correct)
        scale = self.train.lr * effective_steps(turn.num_steps(self.train.local_epochs), self.train.momentum)
        for part in PARAMETERS:
            change = (received[part] - model.buffers[part]) / scale - control[part]
            own[part] += change
            control[part].copy_(change)
        return sums

    def update(
        self, shared: Mapping[str, Tensor], mean: Mapping[str, Tensor], weight: float, num_clients: int
    ) -> State:
        """`weight` is |S|, the number of clients that uploaded."""
        moved = toward_mean(shared, mean, self.options.server_lr)
        for name in (f"control_{part}" for part in PARAMETERS):
            moved[name] = shared[name] + weight / num_clients * mean[name]
        return moved


def effective_steps(steps: int, momentum: float) -> float:
    """sum over j = 1..steps of (1 - momentum^j) / (1 - momentum): `steps` without momentum."""
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
