"""The field's networks without normalisation, each an nn.Sequential of named layers ending in the classifier.

They pool before they rectify: the larger of numbers is the same rectified before or after, and so are the gradients,
for a quarter of the work.
"""

from collections import OrderedDict

import torch
from torch import nn

Shape = tuple[int, int, int]
"""Channels, height, width of an image."""
Layers = dict[str, nn.Module]


def cnn(shape: Shape, num_classes: int) -> nn.Sequential:
    """4 layers: conv5 c->32, conv5 32->64, fc 512, classifier; each conv with a 2x2 max-pool.

    The 4-layer CNN of the Dirichlet benchmarks (582,026 parameters at 1x28x28 and 10 classes).
    """
    channels = shape[0]
    layers: Layers = {
        "conv1": nn.Sequential(nn.Conv2d(channels, 32, 5), nn.MaxPool2d(2), nn.ReLU()),
        "conv2": nn.Sequential(nn.Conv2d(32, 64, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
    }
    layers["fc1"] = nn.Sequential(nn.Linear(width(layers, shape), 512), nn.ReLU())
    layers["classifier"] = nn.Linear(512, num_classes)
    return nn.Sequential(OrderedDict(layers))


def fedrep_cnn(shape: Shape, num_classes: int) -> nn.Sequential:
    """5 layers, FedRep's CIFAR-10 network (arXiv 2102.07078): conv5 c->64, conv5 64->64, fc 120, fc 64, classifier.

    307,842 parameters at 3x32x32 and 10 classes, 650 of them in the last layer.
    """
    channels = shape[0]
    layers: Layers = {
        "conv1": nn.Sequential(nn.Conv2d(channels, 64, 5), nn.MaxPool2d(2), nn.ReLU()),
        "conv2": nn.Sequential(nn.Conv2d(64, 64, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
    }
    layers["fc1"] = nn.Sequential(nn.Linear(width(layers, shape), 120), nn.ReLU())
    layers["fc2"] = nn.Sequential(nn.Linear(120, 64), nn.ReLU())
    layers["classifier"] = nn.Linear(64, num_classes)
    return nn.Sequential(OrderedDict(layers))


def fedrep_cnn_cifar100(shape: Shape, num_classes: int) -> nn.Sequential:
    """5 layers, FedRep's CIFAR-100 network (arXiv 2102.07078): conv5 c->64, conv5 64->128, fc 256, fc 128, classifier.

    1,075,044 parameters at 3x32x32 and 100 classes, 12,900 of them in the last layer. The dropout (0.6) is the
    last layer's, so that it also acts where the head alone learns, on features that are computed once.
    """
    channels = shape[0]
    layers: Layers = {
        "conv1": nn.Sequential(nn.Conv2d(channels, 64, 5), nn.MaxPool2d(2), nn.ReLU()),
        "conv2": nn.Sequential(nn.Conv2d(64, 128, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
    }
    layers["fc1"] = nn.Sequential(nn.Linear(width(layers, shape), 256), nn.ReLU())
    layers["fc2"] = nn.Sequential(nn.Linear(256, 128), nn.ReLU())
    layers["classifier"] = nn.Sequential(nn.Dropout(0.6), nn.Linear(128, num_classes))
    return nn.Sequential(OrderedDict(layers))


def mlp(shape: Shape, num_classes: int) -> nn.Sequential:
    """4 layers, FedRep's FEMNIST network (arXiv 2102.07078): pixels-512-256-64-classes."""
    channels, height, width = shape
    layers: Layers = {
        "fc1": nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 512), nn.ReLU()),
        "fc2": nn.Sequential(nn.Linear(512, 256), nn.ReLU()),
        "fc3": nn.Sequential(nn.Linear(256, 64), nn.ReLU()),
        "classifier": nn.Linear(64, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def width(layers: Layers, shape: Shape) -> int:
    """Features that come out of `layers` for one image."""
    with torch.no_grad():
        return int(nn.Sequential(*layers.values()).eval()(torch.zeros(1, *shape)).numel())
