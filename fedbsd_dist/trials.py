"""What a method of the user's must be, tried before a run begins: on a few samples, and on copies of the model."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedbsd_dist.clients import Clients
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.models.flat import Extra, FlatModel
from fedbsd_dist.models.networks import Shape
from fedbsd_dist.rehearsal import FEW, black, clients_on, short
from fedbsd_dist.together import REMEDY, Turns

TOLERANCE = 0.1
"""Of what is learned: rounding in float32 was seen to make 0.02 of it, through many normalisations."""


def checked_extras(method: Method[Any], config: RunConfig, model: FlatModel) -> Mapping[str, Extra]:
    """Those of the method. Raises UserError for what cannot be added to the model."""
    extras, said = method.extras(model.groups), f"method.factory={config.method.factory}: extras"
    if not isinstance(extras, Mapping) or not all(isinstance(extra, Extra) for extra in extras.values()):
        raise UserError(f"{said} must return a mapping of names to fedbsd_dist.models.flat.Extra.")
    for name, extra in extras.items():
        if name in model.buffers:
            raise UserError(f"{said}: {name} is a group of the model. Choose another name.")
        if extra.like and extra.like not in model.buffers:
            raise UserError(f"{said}: {name} is like {extra.like}; this model has {', '.join(model.buffers)}.")
    return extras


def check_weights(method: Method[Any], config: RunConfig, train_sizes: Sequence[int]) -> None:
    """Raises UserError where a client would not count as a number that can be a weight."""
    for samples in sorted(set(train_sizes)):
        weight = method.weight(samples)
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"method.factory={config.method.factory}: the weight of a client with {samples} training samples is "
                f"{weight}; it must be a number from 0 up."
            )


def check_method(config: RunConfig, model: FlatModel, shape: Shape, num_classes: int) -> None:
    """Raises UserError where a method of the user's does not return what a round needs, on a copy of `model`. What it
    raises itself it will raise there again, with a traceback.
    """
    config = short(config, batch_size=FEW[0] - 1, cuda_graphs=False, together=1)
    with torch.random.fork_rng(devices=[]):
        clients = clients_on(config, copy.deepcopy(model), _noise(shape, num_classes, model.device))
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
    model, shard = copy.deepcopy(model), black(shape, num_classes, FEW[0], model.device)
    with torch.random.fork_rng(devices=[]):
        try:
            clients = clients_on(short(config, batch_size=FEW[0] // 2), model, shard)
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
    config = short(config, batch_size=FEW[0] - 1, cuda_graphs=False)
    with torch.random.fork_rng(devices=[]):
        try:
            alone = _learned(clients_on(config, copy.deepcopy(model), shard), together=False)
        except UserError:
            raise
        except Exception:  # a method of the user's, on noise
            return
        try:
            found = _learned(clients_on(config, copy.deepcopy(model), shard), together=True)
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


def _noise(shape: Shape, num_classes: int, device: torch.device) -> Shard:
    shard = black(shape, num_classes, FEW[0], device)
    draw = torch.Generator().manual_seed(0)
    shard.train_images.copy_(torch.randint(256, shard.train_images.shape, generator=draw, dtype=torch.uint8))
    return shard
