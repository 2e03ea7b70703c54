"""One contiguous buffer a parameter group; the model's tensors are views into it.

Loading a client is one copy a group, an upload is one fused multiply-add, the wire sees one buffer.
The groups are the parameters of `backbone` and `head`, and `statistics` and `head_statistics`, the running
statistics of normalisation in either; together they are the whole float state of the model.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedbsd_dist.errors import UserError
from fedbsd_dist.models.split import SplitModel

STATISTICS = {"backbone": "statistics", "head": "head_statistics"}
"""Group of the running statistics (buffers, and no parameters) of the layers of a group."""
GROUPS = (*STATISTICS, *STATISTICS.values())


class FlatModel:
    """A split model on a device with its state in flat buffers."""

    def __init__(self, model: SplitModel, device: torch.device) -> None:
        """Raises UserError for tensors shared between layers, for those that are not float32 or not finite, and for
        batch norm without a momentum.
        """
        self.module = model.to(device)
        named = list(_state(model))
        _check(model, named)
        self.layout = [(group, name, tuple(tensor.shape), str(tensor.dtype)) for group, name, tensor in named]
        """(group, name, shape, dtype) of every tensor, in the order of storage."""
        self.buffers: dict[str, Tensor] = {}
        """Group -> float32 [numel]; groups without tensors are left out."""
        for group in GROUPS:
            tensors = [tensor for owner, _, tensor in named if owner == group]
            if tensors:
                self.buffers[group] = torch.empty(sum(tensor.numel() for tensor in tensors), device=device)
                _move(tensors, self.buffers[group])
        self.has_batch_norm = any(isinstance(layer, _BatchNorm) for layer in model.modules())
        """Whether the model, in training, needs more than one sample at a time."""

    @property
    def digest(self) -> bytes:
        """32 bytes that name the layout and the present values: equal on all ranks before the first round."""
        digest = hashlib.sha256(repr(self.layout).encode())
        for buffer in self.buffers.values():
            digest.update(buffer.cpu().numpy().tobytes())
        return digest.digest()

    def train_only(self, groups: Sequence[str]) -> list[nn.Parameter]:
        """Training mode, with gradients for the parameters of `groups` alone, which are returned."""
        self.module.train().requires_grad_(False)
        chosen = [parameter for group in groups for parameter in self.module.get_submodule(group).parameters()]
        for parameter in chosen:
            parameter.requires_grad_()
        return chosen


def frozen(module: nn.Module) -> nn.Module:
    """A twin of `module` on the same storage, in evaluation mode: always its present values, never a gradient."""
    twin = snapshot(module)
    for mine, original in zip(
        (*twin.parameters(), *twin.buffers()), (*module.parameters(), *module.buffers()), strict=True
    ):
        mine.data = original.data
    return twin


def snapshot(module: nn.Module) -> nn.Module:
    """A copy of `module` in evaluation mode that keeps its present values, without gradient."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def _state(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name.partition(".")[0], name, parameter
    for name, buffer in model.named_buffers():
        # num_batches_tracked, an integer that nothing reads at a fixed momentum, stays out
        if buffer.is_floating_point():
            yield STATISTICS[name.partition(".")[0]], name, buffer


def _check(model: nn.Module, named: list[tuple[str, str, Tensor]]) -> None:
    if len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters())):
        raise UserError("model: two layers share a parameter, so it belongs to no single group. Give each its own.")
    for _, name, tensor in named:
        if tensor.dtype != torch.float32:
            raise UserError(f"model: {name} is {tensor.dtype}; every parameter must be torch.float32.")
        if not tensor.isfinite().all():
            # as state it is summed and averaged: the run would end as one that diverged
            raise UserError(
                f"model: {name} is not finite at the start. Give a parameter finite values; make a constant, such as "
                "a mask of -inf, in forward, or register it as a buffer of torch.bool: buffers of floats are averaged."
            )
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer.momentum is None:
            # its mean goes by num_batches_tracked, which is not in the groups: it would run on from client to client
            raise UserError(
                f"model: {name} is batch norm with momentum=None, whose statistics would depend on the number of "
                "ranks. Give it a momentum, such as 0.1."
            )


def _move(tensors: list[Tensor], buffer: Tensor) -> None:
    """Convolution weights keep channels_last order inside the buffer: small CNNs run faster so."""
    offset = 0
    for tensor in tensors:
        view = buffer[offset : offset + tensor.numel()]
        if tensor.dim() == 4:
            out, into, height, width = tensor.shape
            view = view.view(out, height, width, into).permute(0, 3, 1, 2)
        else:
            view = view.view(tensor.shape)
        view.copy_(tensor.detach())
        tensor.data = view
        offset += view.numel()
