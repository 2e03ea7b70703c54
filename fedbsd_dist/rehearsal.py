"""What a client's turn takes, by a rehearsal: the method's own local learning on a few samples of zeros, twice, with
all bytes of tensors counted after every operation. They are linear in the number of samples, operation by operation, so
that two sizes tell of every other. Where clients learn together, two of them rehearse, and each takes half.

The same turn without a count tells whether the steps can be captured.
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
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import make_method
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.networks import Shape
from fedbsd_dist.together import REMEDY, Turns

TOLERANCE = 0.1
"""Of what is learned: rounding in float32 was seen to make 0.02 of it, through many normalisations."""
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
    model, shard = copy.deepcopy(model), _shard(shape, num_classes, samples, model.device)
    config = _options(config, batch_size=samples, cuda_graphs=False)
    parts = shard.train_images, shard.train_labels, shard.mean, shard.std
    live = Live([*model.buffers.values(), *model.module.buffers(), *parts])
    with torch.random.fork_rng(devices=[]), live:
        clients = _clients(config, model, shard)
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


def check_method(config: RunConfig, model: FlatModel, shape: Shape, num_classes: int) -> None:
    """Raises UserError where a method of the user's does not return what a round needs, on a copy of `model`. What it
    raises itself it will raise there again, with a traceback.
    """
    config = _options(config, batch_size=FEW[0] - 1, cuda_graphs=False, together=1)
    with torch.random.fork_rng(devices=[]):
        clients = _clients(config, copy.deepcopy(model), _noise(shape, num_classes, model.device))
        method, turn = clients.method, clients.receive(0, 1)
        try:
            sums = method.learn(turn)
            mean = {name: clients.model.buffers[name].clone() for name in clients.shared}
            moved = method.update(clients.shared, mean, 1.0, config.data.num_clients)
        except UserError:
            raise
        except Exception:
            return
    width, said = len(method.losses) + 1, f"method.factory={config.method.factory}"
    if not isinstance(sums, Tensor) or not sums.is_floating_point() or sums.shape != (width,):
        raise UserError(
            f"{said}: learn must return what turn.sgd does, a float tensor [{width}]: the sums of its losses "
            f"({', '.join(method.losses)}) and of samples. It returned {_described(sums)}."
        )
    if not isinstance(moved, Mapping) or moved.keys() != mean.keys():
        what = f"one of {', '.join(moved) or 'nothing'}" if isinstance(moved, Mapping) else _described(moved)
        raise UserError(f"{said}: update must return a mapping of what is shared, {', '.join(mean)}. It is {what}.")
    for name, values in moved.items():
        if not isinstance(values, Tensor) or values.shape != mean[name].shape:
            raise UserError(f"{said}: update must return {name} as {_described(mean[name])}, not {_described(values)}.")


def _described(value: object) -> str:
    return f"a tensor {[*value.shape]}" if isinstance(value, Tensor) else type(value).__name__


def check_captured(config: RunConfig, model: FlatModel, shape: Shape, num_classes: int) -> None:
    """Raises UserError where the method's steps cannot be captured as CUDA graphs; `model` is on the GPU, and a copy of
    it learns from batches of one size, so that each step of a turn comes again. Of what else fails there the
    rehearsal of memory tells.
    """
    model, shard = copy.deepcopy(model), _shard(shape, num_classes, FEW[0], model.device)
    with torch.random.fork_rng(devices=[]):
        try:
            clients = _clients(_options(config, batch_size=FEW[0] // 2), model, shard)
            turns = [clients.receive(client, 1) for client in clients.shards]
            clients.method.learn(turns[0] if len(turns) == 1 else Turns(turns))
        except UserError:
            raise
        except Exception:  # a method of the user's, on images that are all black
            return


def check_stacked(config: RunConfig, model: FlatModel, shape: Shape, num_classes: int) -> None:
    """Raises UserError where two clients together do not learn what each of them learns alone: the method is not as it
    says with `stacks`. On copies of `model`, which computes in float32. Of what fails alone, too, the rehearsal tells.
    """
    shard = _noise(shape, num_classes, model.device)
    method = config.method.factory or config.method.name
    # the last batch is a smaller one
    config = _options(config, batch_size=FEW[0] - 1, cuda_graphs=False)
    with torch.random.fork_rng(devices=[]):
        try:
            alone = _learned(_clients(config, copy.deepcopy(model), shard), together=False)
        except UserError:
            raise
        except Exception:  # a method of the user's, on noise
            return
        try:
            found = _learned(_clients(config, copy.deepcopy(model), shard), together=True)
        except UserError:
            raise
        except Exception as error:  # which alone it does not raise
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"train.together: clients cannot learn together by {method} ({problem}). {REMEDY}"
            ) from None
    for one, other in zip(alone, found, strict=True):
        apart, learned = (other - one).norm(), one.norm()
        if learned.isfinite() and not apart <= TOLERANCE * learned:
            raise UserError(
                f"train.together: two clients together do not learn by {method} what each of them learns alone (the "
                f"difference is {apart / learned:.1g} of it). A loss must be a mean over its batch, of a term for each "
                f"sample (Method.stacks). {REMEDY}"
            )


def _learned(clients: Clients, *, together: bool) -> tuple[Tensor, Tensor]:
    """How all state has changed when two clients have learned, [2, numel], and the sums of their losses."""
    turns = [clients.receive(client, 1) for client in clients.shards]
    start = torch.cat([*clients.model.buffers.values()])
    if together:
        several = Turns(turns)
        ends = [
            (torch.cat([*clients.model.buffers.values()]), losses)
            for _, losses in several.each(clients.method.learn(several))
        ]
    else:
        ends = []
        for client in clients.shards:
            losses = clients.method.learn(clients.receive(client, 1))
            ends.append((torch.cat([*clients.model.buffers.values()]), losses))
    states, losses = (torch.stack(of) for of in zip(*ends, strict=True))
    return states - start, losses


def _options(config: RunConfig, **train: Any) -> RunConfig:
    """Two epochs, and the options of `train`."""
    options = config.train.model_copy(update={"local_epochs": 2, **train})
    client = config.client.model_copy(update={"store": "device"})
    return config.model_copy(update={"train": options, "client": client})


def _shard(shape: Shape, num_classes: int, samples: int, device: torch.device) -> Shard:
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


def _noise(shape: Shape, num_classes: int, device: torch.device) -> Shard:
    shard = _shard(shape, num_classes, FEW[0], device)
    draw = torch.Generator().manual_seed(0)
    shard.train_images.copy_(torch.randint(256, shard.train_images.shape, generator=draw, dtype=torch.uint8))
    return shard


def _clients(config: RunConfig, model: FlatModel, shard: Shard) -> Clients:
    """One, or two where they learn together."""
    number = 2 if config.train.together > 1 else 1
    return Clients(config, make_method(config.method, config.train), model, dict.fromkeys(range(number), shard))
