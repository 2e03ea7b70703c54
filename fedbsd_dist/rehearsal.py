"""What a client's turn takes, by a rehearsal: the method's own local learning on a few samples of zeros, twice, with
all bytes of tensors counted after every operation. They are linear in the number of samples, operation by operation, so
that two sizes tell of every other. Where clients learn together, two of them rehearse, and each takes half.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedbsd_dist.clients import Clients
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.methods import make_method
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.networks import Shape
from fedbsd_dist.together import Turns

FEW = (4, 6)
"""Samples of a rehearsal: enough for batch norm on half of them."""


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations in its block have made and that are still there."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known`: tensors from before, which do not count, whatever view of them an operation returns."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.series: list[int] = []
        """Bytes after every operation, backward ones too."""
        self._now = 0
        self._known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}
        self._held: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this, PyTorch imports its compiler to keep out of it: two seconds and 80 MB."""
        return False

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operation, and then the count."""
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        self.series.append(self._now)
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = id(storage), storage.nbytes()
        if key in self._held or key in self._known:
            return

        def gone(_: object) -> None:
            del self._held[key]
            self._now -= num_bytes

        self._held[key] = weakref.ref(storage, gone)
        self._now += num_bytes


@dataclass(frozen=True, kw_only=True)
class Line:
    """Bytes as a function of the number of samples."""

    fixed: float
    a_sample: float

    def at(self, samples: float) -> float:
        """Bytes."""
        return self.fixed + self.a_sample * samples


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What the tensors of one client's turn take, beside the live model."""

    copies: float
    """Bytes of the shared state and of the start."""
    learning: Sequence[Line]
    """Of a client, after every operation of two epochs of one batch each, `copies` left out."""
    testing: Sequence[Line]
    """The same, of a test."""
    features: float
    """Bytes of the backbone's features of a sample."""


def rehearse(config: RunConfig, model: FlatModel, shape: Shape, num_classes: int) -> Rehearsal:
    """On a copy of `model`, where that is; with the generator of random numbers as it was."""
    marks, copies, features = zip(*(_turn(config, model, shape, num_classes, samples) for samples in FEW), strict=True)
    learning, testing = (_lines(*runs) for runs in zip(*marks, strict=True))
    return Rehearsal(copies=copies[0], learning=learning, testing=testing, features=features[0])


def _lines(few: Sequence[float], more: Sequence[float]) -> list[Line]:
    slopes = [(b - a) / (FEW[1] - FEW[0]) for a, b in zip(few, more, strict=True)]
    return [Line(fixed=a - FEW[0] * slope, a_sample=slope) for a, slope in zip(few, slopes, strict=True)]


def _turn(
    config: RunConfig, model: FlatModel, shape: Shape, num_classes: int, samples: int
) -> tuple[tuple[list[float], list[float]], int, float]:
    """((bytes after every operation of learning, and of a test), bytes before it, bytes of a sample's features)."""
    model, shard = copy.deepcopy(model), black(shape, num_classes, samples, model.device)
    config = short(config, batch_size=samples, cuda_graphs=False)
    parts = shard.train_images, shard.train_labels, shard.mean, shard.std
    live = Live([*model.buffers.values(), *model.module.buffers(), *parts])
    with torch.random.fork_rng(devices=[]), live:
        clients = clients_on(config, model, shard)
        turns = [clients.receive(client, 1) for client in clients.shards]
        first, turn, number = len(live.series), turns[0], len(turns)
        clients.method.learn(turn if number == 1 else Turns(turns))
        second = len(live.series)
        turn.test()
        third = len(live.series)
        features = turn.outputs(model.module.backbone, shard.train_images).nbytes / samples
    before = live.series[first - 1]
    learning, testing = live.series[first:second], live.series[second:third]
    marks = [(now - before) / number for now in learning], [float(now - before) for now in testing]
    return marks, before, features


def short(config: RunConfig, **train: Any) -> RunConfig:
    """Two epochs, and the options of `train`."""
    options = config.train.model_copy(update={"local_epochs": 2, **train})
    client = config.client.model_copy(update={"store": "device"})
    return config.model_copy(update={"train": options, "client": client})


def black(shape: Shape, num_classes: int, samples: int, device: torch.device) -> Shard:
    """So many black images, of each class in turn, for every purpose."""
    channels, height, width = shape
    images = torch.zeros(samples, height, width, channels, dtype=torch.uint8, device=device)
    labels = torch.arange(samples, device=device) % num_classes
    return Shard(
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        mean=torch.zeros(channels, device=device),
        std=torch.ones(channels, device=device),
    )


def clients_on(config: RunConfig, model: FlatModel, shard: Shard) -> Clients:
    """One client with these samples, or two where they learn together."""
    number = 2 if config.train.together > 1 else 1
    return Clients(config, make_method(config.method, config.train), model, dict.fromkeys(range(number), shard))
