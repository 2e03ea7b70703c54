"""The field's networks with normalisation, each an nn.Sequential of named layers ending in the classifier."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import nn

from fedbsd_dist.models.networks import Layers, Shape, width

SMALL = 64
"""Pixels a side up to which a ResNet begins without downsampling."""


def digits_cnn_bn(shape: Shape, num_classes: int) -> nn.Sequential:
    """6 layers, FedBN's network for its five sets of digits (arXiv 2102.07623), batch norm after all but the last.

    conv5 c->64, 64->64, 64->128 (the first two with a 2x2 max-pool), fc 2048, fc 512, classifier.
    14,219,210 parameters at 3x28x28 and 10 classes.
    """
    layers: Layers = {
        "conv1": nn.Sequential(*_conv(shape[0], 64, 5, padding=2), nn.MaxPool2d(2)),
        "conv2": nn.Sequential(*_conv(64, 64, 5, padding=2), nn.MaxPool2d(2)),
        "conv3": nn.Sequential(*_conv(64, 128, 5, padding=2), nn.Flatten()),
    }
    layers["fc1"] = _hidden(width(layers, shape), 2048)
    layers["fc2"] = _hidden(2048, 512)
    layers["classifier"] = nn.Linear(512, num_classes)
    return nn.Sequential(OrderedDict(layers))


def alexnet_bn(shape: Shape, num_classes: int) -> nn.Sequential:
    """8 layers, FedBN's network for Office-Caltech10 and DomainNet at 256x256 (arXiv 2102.07623).

    The AlexNet of arXiv 1404.5997 (61,100,840 parameters at 3 channels and 1000 classes) with batch norm
    (18,688 more) in place of dropout. Images of less than 63 pixels a side are too small for it.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Sequential(*_conv(shape[0], 64, 11, stride=4, padding=2), nn.MaxPool2d(3, 2)),
            conv2=nn.Sequential(*_conv(64, 192, 5, padding=2), nn.MaxPool2d(3, 2)),
            conv3=nn.Sequential(*_conv(192, 384, 3, padding=1)),
            conv4=nn.Sequential(*_conv(384, 256, 3, padding=1)),
            conv5=nn.Sequential(
                *_conv(256, 256, 3, padding=1), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6), nn.Flatten()
            ),
            fc1=_hidden(256 * 6 * 6, 4096),
            fc2=_hidden(4096, 4096),
            classifier=nn.Linear(4096, num_classes),
        )
    )


def resnet18(shape: Shape, num_classes: int) -> nn.Sequential:
    """6 layers: stem, four of two residual blocks each, classifier (arXiv 1512.03385), with batch norm.

    11,689,512 parameters at 3x224x224 and 1000 classes. Images of at most 64 pixels a side meet the stem
    usual for CIFAR, a 3x3 convolution without pooling: 11,173,962 at 3x32x32 and 10 classes.
    """
    return _resnet18(shape, num_classes, nn.BatchNorm2d)


def resnet18_gn(shape: Shape, num_classes: int) -> nn.Sequential:
    """`resnet18` with group norm (32 groups) in place of batch norm: as many parameters, no running statistics.

    What arXiv 1910.00189 proposes where clients' labels are skewed.
    """
    return _resnet18(shape, num_classes, partial(nn.GroupNorm, 32))


def _resnet18(shape: Shape, num_classes: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock, ResNet  # here, for it takes seconds to import

    pieces = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes, norm_layer=norm)
    return nn.Sequential(
        OrderedDict(
            stem=_stem(shape, norm),
            layer1=pieces.layer1,
            layer2=pieces.layer2,
            layer3=pieces.layer3,
            layer4=nn.Sequential(*pieces.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            classifier=pieces.fc,
        )
    )


def _stem(shape: Shape, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """64 channels at full size from small images, at a quarter of it from others."""
    channels, *sides = shape
    if max(sides) <= SMALL:
        conv, pool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), []
    else:
        conv, pool = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False), [nn.MaxPool2d(3, 2, 1)]
    # as ResNet draws its other convolutions
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, norm(64), nn.ReLU(), *pool)


def _conv(into: int, out: int, kernel: int, *, stride: int = 1, padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(into, out, kernel, stride, padding), nn.BatchNorm2d(out), nn.ReLU()


def _hidden(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, out), nn.BatchNorm1d(out), nn.ReLU())
