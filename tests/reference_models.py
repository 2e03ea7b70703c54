"""The networks that distributed runs are compared on, and their states."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

State = dict[str, Tensor]
"""Floating-point tensors by their names in the state dict of `make_model`, or a part of them; those of a second
model have a prefix before the name, such as personal_."""


def make_model(network: str, head_layers: int, image: Sequence[int], classes: int) -> nn.Sequential:
    """`backbone` and `head`, the last `head_layers` layers of the network, for images [channels, height, width]."""
    channels, height, width = image
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    if network == "smooth":
        layers = [
            [nn.Conv2d(channels, 8, 5), nn.Tanh(), nn.AvgPool2d(2)],
            [nn.Conv2d(8, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()],
            [nn.Linear(16 * rows * columns, 32), nn.Tanh()],
            [nn.Linear(32, classes)],
        ]
    elif network == "smooth_bn":
        layers = [
            [nn.Conv2d(channels, 8, 5), nn.Tanh(), nn.AvgPool2d(2)],
            [nn.Conv2d(8, 16, 5), nn.AvgPool2d(2), nn.BatchNorm2d(16), nn.Tanh(), nn.Flatten()],
            [nn.Linear(16 * rows * columns, 32), nn.BatchNorm1d(32), nn.Tanh()],
            [nn.Linear(32, classes)],
        ]
    elif network == "cnn":
        layers = [
            [nn.Conv2d(channels, 32, 5), nn.ReLU(), nn.MaxPool2d(2)],
            [nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()],
            [nn.Linear(64 * rows * columns, 512), nn.ReLU()],
            [nn.Linear(512, classes)],
        ]
    else:
        assert network == "mlp"
        layers = [
            [nn.Flatten(), nn.Linear(channels * height * width, 512), nn.ReLU()],
            [nn.Linear(512, 256), nn.ReLU()],
            [nn.Linear(256, 64), nn.ReLU()],
            [nn.Linear(64, classes)],
        ]
    backbone = [module for layer in layers[:-head_layers] for module in layer]
    head = [module for layer in layers[-head_layers:] for module in layer]
    return nn.Sequential(OrderedDict(backbone=nn.Sequential(*backbone), head=nn.Sequential(*head)))


def live(model: nn.Module) -> State:
    """The model's own tensors. Batch norm's count of batches, an integer, is no state: nothing reads it."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def state_of(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in live(model).items()}


def load(model: nn.Module, state: State) -> None:
    """In training mode, as the model always is but for a test."""
    assert state.keys() == live(model).keys()
    for name, tensor in live(model).items():
        tensor.copy_(state[name])
    model.train()


def frozen(module: nn.Module) -> nn.Module:
    """A copy that stays as it is, in evaluation mode."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def squared_distance(model: nn.Module, state: State) -> Tensor:
    """||w - w'||^2 over the model's parameters w."""
    return sum(((parameter - state[name]) ** 2).sum() for name, parameter in model.named_parameters())
