"""One contiguous buffer a parameter group; the model's tensors are views into it.

Loading a client is one copy a group, an upload is one fused multiply-add, the wire sees one buffer.
The groups are the parameters of `backbone` and `head`, and `statistics` and `head_statistics`, the running
statistics of normalisation in either; together they are the whole float state of the model. A method's further
state (a personal copy of the model, a control variate) lies beside them in buffers of the same shapes.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedbsd_dist.errors import UserError
from fedbsd_dist.models.split import SplitModel

STATISTICS = {"backbone": "statistics", "head": "head_statistics"}
"""Group of the running statistics (buffers, and no parameters) of the layers of a group."""
NORM = "norm"
"""Group of the parameters of batch norm, where a method keeps them apart."""
GROUPS = ("backbone", "head", NORM, *STATISTICS.values())
PARAMETERS = ("backbone", "head")
"""The two parts of the model, which all its parameters belong to."""

State = dict[str, Tensor]
"""Group -> float32 [numel]."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A buffer that a method has beside the model's groups, as a part of its shared or private state."""

    like: str = ""
    """Group whose shape it has; none: one number."""
    start: float | None = None
    """Every element at the start of a run; None: the values of the group `like`."""
    shared: bool = False
    """It crosses. Otherwise it stays with each client."""


class FlatModel:
    """A split model on a device with its state in flat buffers."""

    def __init__(self, model: SplitModel, device: torch.device, *, norm_apart: bool = False) -> None:
        """`norm_apart`: the parameters of batch norm are the group `norm`, and not in `backbone` and `head`.

        Raises UserError for tensors shared between layers, for those that are not float32 or not finite, and for
        batch norm without a momentum or running statistics.
        """
        self.module = model.to(device)
        named = list(_state(model, norm_apart))
        _check(model, named)
        self.layout = [(group, name, tuple(tensor.shape), str(tensor.dtype)) for group, name, tensor in named]
        """(group, name, shape, dtype) of every tensor, in the order of storage."""
        self.buffers: State = {}
        """Group -> float32 [numel]; groups without tensors are left out, and extras come last."""
        self._places: dict[str, tuple[str, int, torch.Size]] = {}
        """Name of a tensor -> its group, where in it, and its shape."""
        for group in GROUPS:
            tensors = {name: tensor for owner, name, tensor in named if owner == group}
            if tensors:
                self.buffers[group] = torch.empty(sum(map(torch.numel, tensors.values())), device=device)
                self._move(tensors, group)
        self.groups = tuple(self.buffers)
        """The model's own."""
        self._frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self.has_batch_norm = any(isinstance(layer, _BatchNorm) for layer in model.modules())
        """Whether the model, in training, needs more than one sample at a time."""

    def _move(self, tensors: Mapping[str, Tensor], group: str) -> None:
        offset = 0
        for name, tensor in tensors.items():
            self._places[name] = group, offset, tensor.shape
            view = _view(self.buffers[group], offset, tensor.shape)
            view.copy_(tensor.detach())
            tensor.data = view
            offset += view.numel()

    def __deepcopy__(self, memo: dict[int, Any]) -> "FlatModel":
        """Its module's tensors are views into the copy's buffers, which those that PyTorch copies are not."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module, memo)
        twin.buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        tensors = {**dict(twin.module.named_parameters()), **dict(twin.module.named_buffers())}
        for name in self._places:
            tensors[name].data = twin.view(twin.buffers, name)
        return twin

    def extend(self, extras: Mapping[str, Extra]) -> None:
        """Add a method's buffers."""
        for name, extra in extras.items():
            assert name not in self.buffers, name
            buffer = self.buffers[extra.like].clone() if extra.like else torch.empty(1, device=self.device)
            self.buffers[name] = buffer if extra.start is None else buffer.fill_(extra.start)

    @property
    def parameter_groups(self) -> list[str]:
        """The model's own groups of parameters."""
        return [group for group in self.groups if group not in STATISTICS.values()]

    @property
    def statistics(self) -> list[str]:
        """The model's own groups of running statistics."""
        return [group for group in self.groups if group in STATISTICS.values()]

    @property
    def device(self) -> torch.device:
        """Of all buffers."""
        return self.buffers[self.groups[0]].device

    def clone(self) -> State:
        """The present values of the model's own groups."""
        return {group: self.buffers[group].clone() for group in self.groups}

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Make these groups' values the present ones."""
        for group, values in state.items():
            self.buffers[group].copy_(values)

    def extra(self, prefix: str) -> State:
        """The buffers PREFIX_GROUP, by group."""
        names = {group: f"{prefix}_{group}" for group in self.groups}
        return {group: self.buffers[name] for group, name in names.items() if name in self.buffers}

    def store(self, prefix: str) -> None:
        """Present values into the buffers PREFIX_GROUP, of all groups that have one."""
        for group, buffer in self.extra(prefix).items():
            buffer.copy_(self.buffers[group])

    def views(self, state: Mapping[str, Tensor], parts: Sequence[str] = PARAMETERS) -> list[Tensor]:
        """Of other values of the groups, tensors shaped and laid out as the parameters that `train_only(parts)`
        gives, and in their order.
        """
        return [self.view(state, name) for name, _ in self._learning(parts)]

    def view(self, state: Mapping[str, Tensor], name: str) -> Tensor:
        """The same of one tensor, by its name in the live module."""
        group, offset, shape = self._places[name]
        return _view(state[group], offset, shape)

    @property
    def digest(self) -> bytes:
        """32 bytes that name the layout and the present values: equal on all ranks before the first round."""
        digest = hashlib.sha256(repr(self.layout).encode())
        for buffer in self.buffers.values():
            digest.update(buffer.cpu().numpy().tobytes())
        return digest.digest()

    def train_only(self, parts: Sequence[str] = PARAMETERS) -> list[nn.Parameter]:
        """Training mode, with gradients for the parameters of `parts` alone, which are returned: of the backbone
        and the head, or of one of them. Never those that the model came with as not to be learned.
        """
        self.module.train().requires_grad_(False)
        chosen = [parameter for _, parameter in self._learning(parts)]
        for parameter in chosen:
            parameter.requires_grad_()
        return chosen

    def _learning(self, parts: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.module.named_parameters():
            if name.partition(".")[0] in parts and name not in self._frozen:
                yield name, parameter


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


def _state(model: nn.Module, norm_apart: bool) -> Iterator[tuple[str, str, Tensor]]:
    norms = {name for name, layer in model.named_modules() if norm_apart and isinstance(layer, _BatchNorm)}
    for name, parameter in model.named_parameters():
        yield NORM if name.rpartition(".")[0] in norms else name.partition(".")[0], name, parameter
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
        if isinstance(layer, _BatchNorm) and not layer.track_running_stats:
            raise UserError(
                f"model: {name} is batch norm with track_running_stats=False: what it says of a test sample depends on "
                "those tested with it. Leave it true, or use GroupNorm."
            )
        if isinstance(layer, _BatchNorm) and layer.momentum is None:
            # its mean goes by num_batches_tracked, which is not in the groups: it would run on from client to client
            raise UserError(
                f"model: {name} is batch norm with momentum=None, whose statistics would depend on the number of "
                "ranks. Give it a momentum, such as 0.1."
            )


def _view(buffer: Tensor, offset: int, shape: torch.Size) -> Tensor:
    """[..., *shape] of a buffer [..., numel]. Convolution weights keep channels_last order inside the buffer: small
    CNNs run faster so.
    """
    view = buffer[..., offset : offset + shape.numel()]
    if len(shape) == 4:
        out, into, height, width = shape
        return view.view(*buffer.shape[:-1], out, height, width, into).movedim(-1, -3)
    return view.view((*buffer.shape[:-1], *shape))
