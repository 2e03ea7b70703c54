"""The networks by their names: ours, and torchvision's classification models."""

from collections.abc import Callable

from torch import nn

from fedbsd_dist.errors import UserError, did_you_mean
from fedbsd_dist.models.networks import Shape, cnn, fedrep_cnn, fedrep_cnn_cifar100, mlp
from fedbsd_dist.models.normalised import alexnet_bn, digits_cnn_bn, resnet18, resnet18_gn

Network = Callable[[Shape, int], nn.Module]
"""(shape of an image, number of classes) -> the network, its parameters drawn from torch's global generator."""

NETWORKS: dict[str, Callable[[Shape, int], nn.Sequential]] = {
    "cnn": cnn,
    "fedrep_cnn": fedrep_cnn,
    "fedrep_cnn_cifar100": fedrep_cnn_cifar100,
    "mlp": mlp,
    "digits_cnn_bn": digits_cnn_bn,
    "alexnet_bn": alexnet_bn,
    "resnet18": resnet18,
    "resnet18_gn": resnet18_gn,
}
"""Ours, which come before torchvision's of the same name."""

WITH_AUXILIARY = ("googlenet", "inception_v3")
"""Of torchvision: would give the logits of auxiliary classifiers besides, in training."""


def find_network(name: str) -> Network:
    """The network called `name`.

    Raises UserError with the nearest names when there is none; the network itself raises UserError
    when it is torchvision's and the images have not 3 channels.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    known = _torchvision_names()
    if name in known:
        return _from_torchvision(name)
    raise UserError(
        f"model.name={name}: no such network.{did_you_mean(name, [*NETWORKS, *known])} "
        f"There are {', '.join(NETWORKS)}, and torchvision's classification models."
    )


def _torchvision_names() -> list[str]:
    import torchvision  # here, for it takes seconds to import

    return list(torchvision.models.list_models(module=torchvision.models))


def _from_torchvision(name: str) -> Network:
    from torchvision.models import get_model

    def network(shape: Shape, num_classes: int) -> nn.Module:
        if shape[0] != 3:
            raise UserError(
                f"model.name={name}: torchvision's models take images of 3 channels, and these have {shape[0]}. "
                f"Set data.channels=3, or choose one of {', '.join(NETWORKS)}."
            )
        # init_weights: both would otherwise warn that their own default will change
        options = {"aux_logits": False, "init_weights": True} if name in WITH_AUXILIARY else {}
        model: nn.Module = get_model(name, weights=None, num_classes=num_classes, **options)
        return model

    return network
