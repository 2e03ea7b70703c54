"""The networks of the field's benchmarks, each an nn.Sequential of named layers ending in the classifier."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

Layers = dict[str, nn.Module]


def cnn(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """4 layers: conv5 c->32, conv5 32->64, fc 512, classifier; each conv with a 2x2 max-pool.

    The 4-layer CNN of the Dirichlet benchmarks (582,026 parameters at 1x28x28 and 10 classes).
    """
    channels = shape[0]
    layers: Layers = {
        "conv1": nn.Sequential(nn.Conv2d(channels, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        "conv2": nn.Sequential(nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    }
    layers["fc1"] = nn.Sequential(nn.Linear(_width(layers, shape), 512), nn.ReLU())
    layers["classifier"] = nn.Linear(512, num_classes)
    return nn.Sequential(OrderedDict(layers))


def fedrep_cnn(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """5 layers, FedRep's CIFAR-10 network (arXiv 2102.07078): conv5 c->64, conv5 64->64, fc 120, fc 64, classifier.

    307,842 parameters at 3x32x32 and 10 classes, 650 of them in the last layer.
    """
    channels = shape[0]
    layers: Layers = {
        "conv1": nn.Sequential(nn.Conv2d(channels, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
        "conv2": nn.Sequential(nn.Conv2d(64, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    }
    layers["fc1"] = nn.Sequential(nn.Linear(_width(layers, shape), 120), nn.ReLU())
    layers["fc2"] = nn.Sequential(nn.Linear(120, 64), nn.ReLU())
    layers["classifier"] = nn.Linear(64, num_classes)
    return nn.Sequential(OrderedDict(layers))


def mlp(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """4 layers, FedRep's FEMNIST network (arXiv 2102.07078): pixels-512-256-64-classes."""
    channels, height, width = shape
    layers: Layers = {
        "fc1": nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 512), nn.ReLU()),
        "fc2": nn.Sequential(nn.Linear(512, 256), nn.ReLU()),
        "fc3": nn.Sequential(nn.Linear(256, 64), nn.ReLU()),
        "classifier": nn.Linear(64, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _width(layers: Layers, shape: tuple[int, int, int]) -> int:
    """Features that come out of `layers` for one image."""
    with torch.no_grad():
        return int(nn.Sequential(*layers.values()).eval()(torch.zeros(1, *shape)).numel())


NETWORKS: dict[str, Callable[[tuple[int, int, int], int], nn.Sequential]] = {
    "cnn": cnn,
    "fedrep_cnn": fedrep_cnn,
    "mlp": mlp,
}
