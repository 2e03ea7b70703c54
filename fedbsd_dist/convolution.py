"""The convolutions of several clients, each with weights of its own, as one matrix product a client in one batch.

Stacked by `vmap` alone they would be a grouped convolution, which cuDNN does one group after the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Pair = tuple[int, int]
MANY = 4
"""Places in an image for one output channel, from which on the gradient of the weights is computed image by image, and
then summed: a GPU is kept busy by products of their own."""


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """As `torch.conv2d`; inside `vmap` so, but of one image alone, with groups, or where `padding` is a word."""
    if groups != 1 or isinstance(padding, str) or input.dim() != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    images, kind = input, input.device.type
    if torch.is_autocast_enabled(kind):
        images, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (images, weight))
    rows, columns = _pair(padding)
    if rows or columns:
        images = F.pad(images, (columns, columns, rows, rows))
    outputs: Tensor
    outputs, _ = _Convolution.apply(images, weight, _pair(stride), _pair(dilation))
    return outputs if bias is None else outputs + bias.to(outputs.dtype)[:, None, None]


class _Convolution(torch.autograd.Function):
    """images [num_clients, n, c, h, w], weight [num_clients, o, c, kh, kw] -> [num_clients, n, o, h', w'], channels
    last in memory, and what the backward pass needs. Without the first dimension inside `vmap`, and where all clients
    have the weights in common.
    """

    @staticmethod
    def forward(images: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> tuple[Tensor, Tensor]:
        common = weight.dim() == 4
        if common:
            images, weight = images[None], weight[None]
        windows = _windows(images.permute(0, 1, 3, 4, 2), weight.shape[-2:], stride, dilation)
        places = windows.shape[1:4]
        windows = windows.flatten(4).flatten(1, 3)
        outputs = torch.bmm(windows, _matrix(weight).mT).unflatten(1, places).permute(0, 1, 4, 2, 3)
        return outputs[0] if common else outputs, windows

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Any) -> None:
        images, weight, context.stride, context.dilation = inputs
        context.mark_non_differentiable(output[1])
        context.set_materialize_grads(False)  # zeros for the windows, the largest tensor there is
        context.save_for_backward(weight, output[1])
        context.shape = images.shape

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, _: Tensor) -> Any:
        weight, windows = context.saved_tensors
        if weight.dim() == 4:
            of_images, of_weight = _gradients(gradient[None], windows, weight[None], context)
            return None if of_images is None else of_images[0], of_weight[0], None, None
        return *_gradients(gradient, windows, weight, context), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, images: Tensor, weight: Tensor, stride: Pair, dilation: Pair
    ) -> tuple[Any, tuple[int | None, ...]]:
        """Over samples, which have the weights in common, and around that over clients, each with its own."""
        images = stacked(images, in_dims[0], info.batch_size)
        if in_dims[1] is None:
            outputs, windows = _Convolution.apply(images.flatten(0, 1), weight, stride, dilation)
            return (outputs.unflatten(0, images.shape[:2]), windows), (0, None)
        outputs, windows = _Convolution.apply(images, weight.movedim(in_dims[1], 0), stride, dilation)
        return (outputs, windows), (0, 0)


def _gradients(gradient: Tensor, windows: Tensor, weight: Tensor, context: Any) -> tuple[Tensor | None, Tensor]:
    """With respect to images, where it is asked for, and to weights."""
    num_clients, n = gradient.shape[:2]
    channels, height, width = context.shape[-3:]
    kernel = weight.shape[-2:]
    places = gradient.permute(0, 1, 3, 4, 2).flatten(1, 3)
    of_weight = _sums(places, windows, n).view(num_clients, -1, *kernel, channels).movedim(-1, 2)
    if not context.needs_input_grad[0]:
        return None, of_weight
    # a product an image: the elements of its windows come as `fold` takes them
    of_image = weight[:, None].expand(-1, n, *weight.shape[1:]).reshape(num_clients * n, weight.shape[1], -1)
    of_windows = torch.bmm(of_image.mT, gradient.flatten(3).flatten(0, 1))
    of_images = F.fold(of_windows, (height, width), kernel, context.dilation, stride=context.stride)
    return of_images.unflatten(0, (num_clients, n)), of_weight


def _sums(places: Tensor, windows: Tensor, n: int) -> Tensor:
    """[num_clients, n * places, o], [num_clients, n * places, k] -> [num_clients, o, k], summed over all places."""
    if MANY * places.shape[-1] > places.shape[1] // n:
        return torch.bmm(places.mT, windows)
    # few sums of very many terms: more of them at a time
    of_each = torch.bmm(places.unflatten(1, (n, -1)).flatten(0, 1).mT, windows.unflatten(1, (n, -1)).flatten(0, 1))
    summed: Tensor = of_each.unflatten(0, (-1, n)).sum(1)
    return summed


def _windows(images: Tensor, kernel: Sequence[int], stride: Pair, dilation: Pair) -> Tensor:
    """[num_clients, n, h, w, c] -> a view [num_clients, n, h', w', kh, kw, c]."""
    *outer, row, column, pixel = images.stride()
    reach = [1 + (size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
    places = [(size - far) // step + 1 for size, far, step in zip(images.shape[2:4], reach, stride, strict=True)]
    steps = row * stride[0], column * stride[1], row * dilation[0], column * dilation[1]
    return images.as_strided(
        (*images.shape[:2], *places, *kernel, images.shape[-1]), (*outer, *steps, pixel), images.storage_offset()
    )


def _matrix(weight: Tensor) -> Tensor:
    """[num_clients, o, c, kh, kw] -> [num_clients, o, kh * kw * c], a view where channels are last in memory."""
    return weight.movedim(2, -1).flatten(2)


def stacked(tensor: Tensor, dimension: int | None, size: int) -> Tensor:
    """[size, ...] of what `vmap` maps over that dimension, or gives to all alike."""
    return tensor.expand(size, *tensor.shape) if dimension is None else tensor.movedim(dimension, 0)


def _pair(numbers: int | Sequence[int]) -> Pair:
    both = [numbers] if isinstance(numbers, int) else [*numbers]
    return both[0], both[-1]
