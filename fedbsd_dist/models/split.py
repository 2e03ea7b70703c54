"""A model split into a backbone, which may be shared, and a head, which need not be."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedbsd_dist.config import Model
from fedbsd_dist.errors import UserError
from fedbsd_dist.factories import resolve
from fedbsd_dist.models.head import cut
from fedbsd_dist.models.networks import Shape
from fedbsd_dist.models.zoo import Network, find_network
from fedbsd_dist.randomness import named_seed


class SplitModel(nn.Module):
    """logits [n, classes] = head(features), features [n, ...] = backbone(images [n, c, h, w])."""

    def __init__(self, backbone: nn.Module, head: nn.Module, place: str = "") -> None:
        """Neither may hold a module of the other's. `place`: the head's name in the network, as `cut` gives it."""
        super().__init__()
        self.backbone, self.head, self._place = backbone, head, place

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, c, h, w]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def network_state(self) -> dict[str, Tensor]:
        """State dict of the network that this was cut from, on the CPU: it loads into another such network."""
        prefix = f"{self._place}." if self._place else ""
        tensors = {
            **self.backbone.state_dict(),
            **{f"{prefix}{name}": tensor for name, tensor in self.head.state_dict().items()},
        }
        # a storage of its own each: here they are views of a group's buffer, which would be saved whole
        return {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def build_model(config: Model, shape: Shape, num_classes: int, seed: int) -> SplitModel:
    """The model on the CPU, its first parameters drawn by (seed, "init"): equal on every rank.

    Raises UserError when there is no such network, the images are too small or have too few channels for it,
    `model.factory` cannot be used, or the head is not what the network ends with.
    """
    factory = resolve(config.factory, "model.factory") if config.factory else find_network(config.name)
    name = config.factory or config.name
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "init"))
        network, logits = _make(factory, images, num_classes, name)
    return SplitModel(*cut(network, config, name, images, logits))


def _make(factory: Network, images: Tensor, num_classes: int, name: str) -> tuple[nn.Module, Tensor]:
    """The network whole, and its logits [n, classes] of `images` [n, c, h, w] in evaluation mode."""
    channels, height, width = images.shape[1:]
    size = f"images of {channels}x{height}x{width} (c x h x w)"
    with _users_code(f"model {name} does not take {size}"):
        # a copy: where the factory returns one again, it is as it was
        network = copy.deepcopy(factory((channels, height, width), num_classes))
        if not isinstance(network, nn.Module):
            raise UserError(
                f"model.factory={name}: must return an nn.Module, such as an nn.Sequential of layers, "
                f"not {type(network).__name__}."
            )
        with torch.no_grad():
            logits = network.eval()(images)
    _check_logits(logits, images, num_classes, f"model {name}")
    # by a copy: training mode moves running statistics
    with _users_code(f"model {name}, in training mode, does not take {size}"), torch.no_grad():
        twin = copy.deepcopy(network).train()
        in_training = twin(images)
    _check_counters(network, twin, name)
    _check_logits(in_training, images, num_classes, f"model {name}, in training mode,")
    return network, logits


def _check_counters(network: nn.Module, twin: nn.Module, name: str) -> None:
    """`twin`: the network after it was used in training."""
    for (buffer, before), after in zip(network.named_buffers(), twin.buffers(), strict=True):
        # batch norm's count of batches, which nothing reads at a fixed momentum, may
        if not (before.is_floating_point() or buffer.endswith("num_batches_tracked") or torch.equal(before, after)):
            raise UserError(
                f"model {name}: the buffer {buffer} ({before.dtype}) changes in training. It would run on from client "
                "to client; make it float32, which is each model's own state."
            )


@contextmanager
def _users_code(problem: str) -> Iterator[None]:
    """A factory and its network are the user's code, which may raise anything."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{problem}: {type(error).__name__}: {error}") from None


def _check_logits(logits: object, images: Tensor, num_classes: int, said: str) -> None:
    if not isinstance(logits, Tensor):
        raise UserError(f"{said} returns {type(logits).__name__} for images, not a tensor of logits.")
    if logits.shape != (len(images), num_classes):
        raise UserError(f"{said} returns {tuple(logits.shape[1:])} for an image, not logits ({num_classes},).")
