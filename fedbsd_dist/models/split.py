"""A model split into a backbone, which may be shared, and a head, which need not be."""

import pkgutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedbsd_dist.config import Model
from fedbsd_dist.errors import UserError
from fedbsd_dist.models.networks import NETWORKS
from fedbsd_dist.randomness import named_seed

Shape = tuple[int, int, int]
"""Channels, height, width of an image."""


class SplitModel(nn.Module):
    """logits [n, classes] = head(features), features [n, d] = backbone(images [n, c, h, w])."""

    def __init__(self, layers: nn.Sequential, head_layers: int) -> None:
        """The last `head_layers` of `layers` are the head."""
        super().__init__()
        self.backbone, self.head = layers[:-head_layers], layers[-head_layers:]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, c, h, w]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def build_model(config: Model, shape: Shape, num_classes: int, seed: int) -> SplitModel:
    """The model on the CPU, its first parameters drawn by (seed, "init"): equal on every rank.

    Raises UserError when the head would be the whole model, the images are too small for the
    network, or `model.factory` cannot be used.
    """
    factory = _load_factory(config.factory) if config.factory else NETWORKS[config.name]
    name = config.factory or config.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "init"))
        try:
            layers = factory(shape, num_classes)
            if not isinstance(layers, nn.Sequential):
                raise UserError(
                    f"model.factory={name}: must return an nn.Sequential of layers, not {type(layers).__name__}."
                )
            if config.head_layers >= len(layers):
                raise UserError(
                    f"model.head_layers={config.head_layers}: {name} has {len(layers)} layers, "
                    f"and its backbone needs one. Use 1 to {len(layers) - 1}."
                )
            model = SplitModel(layers, config.head_layers)
            with torch.no_grad():
                logits = model.eval()(torch.zeros(2, *shape))
        except UserError:
            raise
        except Exception as error:  # a factory is the user's code
            raise UserError(
                f"model {name} does not take images of {shape[0]}x{shape[1]}x{shape[2]} (c x h x w): {error}"
            ) from None
    if logits.shape != (2, num_classes):
        raise UserError(f"model {name} returns {tuple(logits.shape[1:])} for an image, not logits ({num_classes},).")
    return model


def _load_factory(path: str) -> Callable[[Shape, int], nn.Sequential]:
    try:
        factory = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model.factory={path}: cannot import it ({error}). Write package.module:function.") from None
    if not callable(factory):
        raise UserError(f"model.factory={path}: not a function.")
    return factory  # type: ignore[no-any-return]
