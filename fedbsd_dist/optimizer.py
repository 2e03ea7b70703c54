"""SGD by PyTorch's fused kernel, one call a step for the weights and one for the biases.

The functional form: constructing a torch.optim.Optimizer imports PyTorch's compiler, two seconds of
CPU time on every rank.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from fedbsd_dist.config import Train


class SGD:
    """SGD with momentum from zero; weight decay on tensors of two or more dimensions only."""

    def __init__(self, parameters: Sequence[nn.Parameter], options: Train) -> None:
        """`parameters` are updated in place, wherever their storage is."""
        self._options = options
        weights = [parameter for parameter in parameters if parameter.dim() > 1]
        biases = [parameter for parameter in parameters if parameter.dim() <= 1]
        self._parameters = weights + biases
        self._groups: list[tuple[list[Tensor], list[Tensor | None], float]] = [
            (list(group), [None] * len(group), decay)
            for group, decay in ((weights, options.weight_decay), (biases, 0.0))
            if group
        ]

    def step(self, loss: Tensor) -> None:
        """Differentiate `loss` and update."""
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        ready = map(_like, gradients, self._parameters)
        with torch.no_grad():
            for parameters, momenta, decay in self._groups:
                sgd(
                    parameters,
                    list(itertools.islice(ready, len(parameters))),
                    momenta,
                    foreach=False,
                    fused=True,
                    weight_decay=decay,
                    momentum=self._options.momentum,
                    lr=self._options.lr,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                )


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The fused kernel walks raw storage, so a gradient must lie in memory as its parameter does."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
