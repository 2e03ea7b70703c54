"""SGD by PyTorch's fused kernel, one call a step for the weights and one for the biases.

The functional form: constructing a torch.optim.Optimizer imports PyTorch's compiler, two seconds of
CPU time on every rank.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from fedbsd_dist.config import Train

Tensors = list[Tensor] | tuple[Tensor, ...]
Correct = Callable[[Tensors, Tensors], Tensors]
"""(gradients, parameters), alike in order -> the gradients to step with."""


class SGD:
    """SGD with momentum from zero; weight decay on tensors of two or more dimensions only."""

    def __init__(self, parameters: Sequence[Tensor], options: Train, *, stacked: bool = False) -> None:
        """`parameters` are updated in place, wherever their storage is. `stacked`: they are those of several clients,
        [num_clients, ...] each.
        """
        self._options = options
        self._parameters = list(parameters)
        self._order = sorted(range(len(parameters)), key=lambda index: parameters[index].dim() <= 1 + stacked)
        """Weights first, then biases."""
        weights = [parameter for parameter in parameters if parameter.dim() > 1 + stacked]
        biases = [parameter for parameter in parameters if parameter.dim() <= 1 + stacked]
        self._groups: list[tuple[list[Tensor], list[Tensor | None], float]] = [
            (group, [None] * len(group), decay)
            for group, decay in ((weights, options.weight_decay), (biases, 0.0))
            if group
        ]

    def narrow(self, num_clients: int) -> list[Tensor]:
        """Go on with the first clients of stacked parameters alone: their part, on the same storage."""
        self._parameters = [tensor.detach()[:num_clients].requires_grad_() for tensor in self._parameters]
        ready = (self._parameters[index] for index in self._order)
        self._groups = [
            (
                list(itertools.islice(ready, len(parameters))),
                [None if momentum is None else momentum[:num_clients] for momentum in momenta],
                decay,
            )
            for parameters, momenta, decay in self._groups
        ]
        return self._parameters

    def step(self, loss: Tensor, correct: Correct | None = None, weights: Tensor | None = None) -> None:
        """Differentiate `loss` and update. `weights`: its elements', in the sum that is differentiated."""
        gradients = self.gradients(loss, weights)
        with torch.no_grad():
            self.apply(correct(gradients, self._parameters) if correct else gradients)

    def gradients(self, loss: Tensor, weights: Tensor | None = None) -> Tensors:
        """Of `loss`, one for each parameter, in their order."""
        if not self._parameters:
            return []
        return torch.autograd.grad(loss, self._parameters, weights, allow_unused=True, materialize_grads=True)

    def apply(self, gradients: Tensors) -> None:
        """Update by these gradients, one for each parameter, in their order."""
        ready = (_like(gradients[index], self._parameters[index]) for index in self._order)
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


def toward(anchor: Tensors, strength: float) -> Correct:
    """Adds the gradient of strength / 2 * ||parameters - anchor||^2; `anchor` is read at every step."""

    def pull(gradients: Tensors, parameters: Tensors) -> Tensors:
        return torch._foreach_add(gradients, torch._foreach_sub(parameters, anchor), alpha=strength)

    return pull


def plain(options: Train, lr: float) -> Train:
    """The same local learning by SGD without momentum and weight decay, as some papers write it."""
    return options.model_copy(update={"lr": lr, "momentum": 0.0, "weight_decay": 0.0})


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The fused kernel walks raw storage, so a gradient must lie in memory as its parameter does."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
