"""Operations of models and losses, inside `vmap` by fewer kernels than it makes of them: with a small model a GPU waits
for each to begin and end, whatever it does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedbsd_dist.convolution import conv2d, stacked

PLAIN = {
    "weight": None,
    "size_average": None,
    "ignore_index": -100,
    "reduce": None,
    "reduction": "mean",
    "label_smoothing": 0.0,
}
"""Of a cross-entropy, all that PyTorch says of one without options."""


class FewKernels(TorchFunctionMode):
    """In its block, inside `vmap`, 2-d convolutions, linear layers and cross-entropies are done so."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The function, or what does the same."""
        return INSTEAD.get(function, function)(*args, **(kwargs or {}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`; inside `vmap` so, but with weights for one output alone, that are a vector."""
    if weight.dim() != 2:
        return F.linear(input, weight, bias)
    inputs, kind = input, input.device.type
    if torch.is_autocast_enabled(kind):
        inputs, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (inputs, weight))
    outputs: Tensor = _Linear.apply(inputs.reshape(-1, inputs.shape[-1]), weight)
    outputs = outputs.view(*inputs.shape[:-1], len(weight))
    return outputs if bias is None else outputs + bias.to(outputs.dtype)


class _Linear(torch.autograd.Function):
    """inputs [num_clients, n, k], weight [num_clients, o, k] -> [num_clients, n, o]. Without the first dimension inside
    `vmap`, and where all clients have the weights in common.

    The gradient of the weights lies in memory as they do, as the fused SGD wants it: theirs is the largest.
    """

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor) -> Tensor:
        return inputs @ weight.mT

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Any) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        inputs, weight = context.saved_tensors
        return gradient @ weight if context.needs_input_grad[0] else None, gradient.mT @ inputs

    @staticmethod
    def vmap(info: Any, in_dims: Any, inputs: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        """Over samples, which have the weights in common, and around that over clients, each with its own."""
        inputs = stacked(inputs, in_dims[0], info.batch_size)
        if in_dims[1] is None:
            outputs: Tensor = _Linear.apply(inputs.flatten(0, 1), weight)
            return outputs.unflatten(0, inputs.shape[:2]), 0
        return _Linear.apply(inputs, weight.movedim(in_dims[1], 0)), 0


def cross_entropy(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """As `F.cross_entropy`; so, of [b, num_classes] and int64 [b] without options, where every label is a class's."""
    if options != PLAIN or input.dim() != 2 or target.dim() != 1:
        return F.cross_entropy(input, target, **options)
    of_each = -F.log_softmax(input, 1).gather(1, target[:, None])
    return of_each.mean() if len(of_each) > 1 else of_each.view(())


INSTEAD: dict[Any, Callable[..., Any]] = {torch.conv2d: conv2d, F.linear: linear, F.cross_entropy: cross_entropy}
