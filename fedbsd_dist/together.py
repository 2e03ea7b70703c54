"""Several clients learn in one step: their states stacked, every operation done for all of them at once.

A small model on a GPU waits for launches, of which N clients then take no more than one does. The loss of a method is
called as for one client: `vmap` makes of it the losses of [clients, samples], whose weighted sums are what each client
descends. So a batch may have gaps, and clients of any sizes fit; those that are done drop out of the step, by halves.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from fedbsd_dist.augment import Changes, augment
from fedbsd_dist.batches import PREPARED, Teacher, ask, batch_sizes, large_batch, passes
from fedbsd_dist.captured import captured
from fedbsd_dist.client import Loss, Turn
from fedbsd_dist.errors import UserError
from fedbsd_dist.models.flat import PARAMETERS, FlatModel, snapshot
from fedbsd_dist.models.networks import Shape
from fedbsd_dist.models.precision import as_in_learning
from fedbsd_dist.optimizer import SGD, Correct
from fedbsd_dist.stacked import Losses, Stacked, is_common

REMEDY = "Set train.together=1."
TOLERANCE = 0.05
"""Of logits, in parts of the largest: rounding is below it, a batch's statistics or noise are above."""


class Turns(Turn):
    """The turns of several clients of a round as one, for a method that `stacks`.

    Rows of training tensors are those of all clients, one client's after the other's, and so is what `listen` and
    `outputs` return; `sgd` returns its sums [num_clients, num_losses + 1].
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        """`turns`: of two clients or more, who learns longest first: at every step, those who learn are the first so
        many. The live model is as one of them has received it.
        """
        self.turns, first = turns, turns[0]
        self.round, self.seed, self.options, self.shard = first.round, first.seed, first.options, first.shard
        self.augmentation, self.augments, self.phases = first.augmentation, first.augments, first.phases
        self.model: Stacked = Stacked(first.model, [turn.private for turn in self.turns])
        self.images = torch.cat([turn.images for turn in self.turns])
        self.labels = torch.cat([turn.labels for turn in self.turns])
        self._counts = [len(turn.labels) for turn in self.turns]

    def each(self, losses: Tensor) -> Iterator[tuple[Turn, Tensor]]:
        """After learning: every client's turn, with the live model as the client has it, and its row of `losses`."""
        for index, (turn, row) in enumerate(zip(self.turns, losses, strict=True)):
            with self.phases("load"):
                turn.model.put({name: values[index] for name, values in self.model.buffers.items()})
            yield turn, row

    def sgd(
        self,
        loss: Loss,
        tensors: Sequence[Tensor] = (),
        *,
        parts: Sequence[str] = PARAMETERS,
        further: Sequence[Tensor] = (),
        epochs: int,
        purpose: str = "batches",
        teachers: Sequence[Tensor | Teacher] = (),
        correct: Correct | None = None,
    ) -> Tensor:
        """As of one client; `further` and `correct` are for one alone."""
        if further or correct:
            raise UserError(f"this method learns by more than plain SGD on the model. {REMEDY}")
        self.model.train_only(parts)
        state = self.model.of(self.model.module)
        learns = {name for name, parameter in self.model.module.named_parameters() if parameter.requires_grad}
        learning = {name: _dense(values).requires_grad_() for name, values in state.items() if name in learns}
        optimizer = SGD([*learning.values()], self.options, stacked=True)
        losses = Losses(self.model.module, loss)
        present = {**state, **learning}

        def step(counted: Tensor, weights: Tensor, *batch: Tensor) -> Tensor:
            descended, reported = losses.of_samples(present, batch)
            optimizer.step(descended, weights=weights)
            return torch.bmm(counted[:, None], reported)[:, 0]

        step = captured(step, self.images.device, self.options.cuda_graphs, lasting=True)
        sums, learners = torch.empty(0), len(self.turns)
        for still, *batch in self._steps(tensors, epochs, purpose, teachers):
            if still < learners:
                self.model.learned(learning, slice(still, learners))
                learners = still
            stacked = len(batch[0])
            if stacked < len(next(iter(present.values()))):
                narrowed = dict(zip(learning, optimizer.narrow(stacked), strict=True))
                present = {**{name: values[:stacked] for name, values in present.items()}, **narrowed}
            reported = step(*batch)
            if not sums.numel():
                sums = torch.zeros_like(reported)
            sums[:stacked] += reported
        self.model.learned(learning, slice(0, learners))
        samples = torch.tensor(self._counts, dtype=sums.dtype, device=sums.device) * epochs
        return torch.cat([sums, samples[:, None]], 1)

    def listen(self, module: nn.Module) -> Tensor | Teacher:
        """As of one client. What can be asked takes images [num_clients, m, c, h, w], of the first so many clients."""
        if not self.augments:
            return super().listen(module)
        twin, values = snapshot(module), self.model.of(module)
        if all(map(is_common, values.values())):
            return lambda images: twin(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        values = {name: own.clone() for name, own in values.items()}
        said = torch.vmap(partial(functional_call, twin))
        return lambda images: said({name: own[: len(images)] for name, own in values.items()}, images)

    def _ask(self, teacher: Teacher, images: Tensor) -> Tensor:
        # some images of every client at a time: who asks is told by the place among the clients
        parts = images.split(max(1, large_batch(images.device) // len(images)), 1)
        return torch.cat([teacher(part) for part in parts], 1)

    def frozen(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """As of one client: inside a loss, the values are those that `module` has there."""
        twin = snapshot(module)

        def said(inputs: Tensor) -> Tensor:
            values = {name: parameter.detach() for name, parameter in module.named_parameters()}
            outputs: Tensor = functional_call(twin, values, (inputs,))
            return outputs

        return said

    @torch.no_grad()
    def outputs(self, module: nn.Module, images: Tensor) -> Tensor:
        """As of one client, of the training images of all: in one pass where they have the same values."""
        values = self.model.of(module)
        if all(map(is_common, values.values())):
            return super().outputs(module, images)
        module.eval()

        def of_one(index: int, own: Tensor) -> Tensor:
            state = {name: every[index] for name, every in values.items()}
            return ask(lambda part: functional_call(module, state, (self.shard.normalized(part),)), own)

        return torch.cat([of_one(index, own) for index, own in enumerate(images.split(self._counts))])

    def _steps(
        self, tensors: Sequence[Tensor], epochs: int, purpose: str, teachers: Sequence[Tensor | Teacher]
    ) -> Iterator[tuple[Any, ...]]:
        """For each step, how many clients still learn, and of them and some who are done: 1 for a sample and 0 for what
        only fills its batch up, and their weights in the mean of the batch, float32 [num_clients, b] both; and the
        batch, each [num_clients, b, ...].

        Who learns from what is as of one client.
        """
        rows = [*(tensors or (self.images, self.labels)), *(said for said in teachers if isinstance(said, Tensor))]
        asked = [self._timed(teacher) for teacher in teachers if not isinstance(teacher, Tensor)]
        schedule = self._schedule(epochs, purpose)
        at_once = max(1, PREPARED // schedule.width)
        for first in range(0, schedule.steps[0], at_once):
            num_clients, here = schedule.stacked(first), slice(first, first + at_once)
            # step by step in memory, for a step's batch is copied to where a graph finds it
            order = schedule.order[here, :num_clients]
            chunk = [tensor[order.flatten()].unflatten(0, order.shape) for tensor in rows]
            if rows[0] is self.images:
                changes = schedule.changes(num_clients, here)
                images = augment(chunk[0].flatten(0, 2), changes, 0, self.augmentation)
                chunk[0] = self.shard.normalized(images).unflatten(0, order.shape)
            with torch.no_grad():
                # asked client by client
                said = [teacher(chunk[0].transpose(0, 1).flatten(1, 2)) for teacher in asked]
            chunk += [own.unflatten(1, (-1, schedule.width)).transpose(0, 1).contiguous() for own in said]
            for step, at in enumerate(range(first, first + len(order))):
                stacked = schedule.stacked(at)
                numbers = (schedule.counted[at, :stacked], schedule.weights[at, :stacked])
                yield schedule.learning(at), *numbers, *(tensor[step, :stacked] for tensor in chunk)

    def _schedule(self, epochs: int, purpose: str) -> "_Schedule":
        """The very shuffles and changes that each client has alone."""
        width = min(self.options.batch_size, self._counts[0])
        sizes = [batch_sizes(count, width, False) for count in self._counts]
        steps = [epochs * len(of_one) for of_one in sizes]
        # on the host first: one transfer for all
        places = (len(self.turns), steps[0] * width)
        order, weights = torch.zeros(places, dtype=torch.int64), torch.zeros(places)
        shift, mirrored = torch.zeros(*places, 2, dtype=torch.int64), torch.zeros(places, dtype=torch.bool)
        angle = torch.zeros(places)
        start = 0
        for index, (turn, count) in enumerate(zip(self.turns, self._counts, strict=True)):
            of_one = torch.tensor(sizes[index])
            weight = (1 / of_one).repeat_interleave(of_one)
            name = (purpose, self.round, turn.client)
            every = passes(count, epochs, self.augmentation, self.seed, name, order.device)
            for epoch, (shuffled, changes) in enumerate(every):
                # an epoch begins with a batch of its own
                place = index, slice(epoch * len(of_one) * width, epoch * len(of_one) * width + count)
                order[place], weights[place] = start + shuffled, weight
                shift[place], mirrored[place], angle[place] = changes.shift, changes.mirrored, changes.angle
            start += count
        device = self.images.device
        drawn = (order, weights, shift, mirrored, angle)
        grid = [tensor.unflatten(1, (-1, width)).transpose(0, 1).contiguous().to(device) for tensor in drawn]
        return _Schedule(width, steps, *grid)


class _Schedule:
    """Which samples are learned from at which step, [num_steps, num_clients, width] each; where a client has no
    sample, the first one, with weight 0.
    """

    def __init__(
        self,
        width: int,
        steps: Sequence[int],
        order: Tensor,
        weights: Tensor,
        shift: Tensor,
        mirrored: Tensor,
        angle: Tensor,
    ) -> None:
        """`width`: samples in the largest batch. `steps`: of each client, descending."""
        self.width, self.steps, self.order, self.weights = width, steps, order, weights
        self.counted = weights.sign()
        """1 for a sample, 0 where there is none."""
        self._changes = shift, mirrored, angle

    def learning(self, step: int) -> int:
        """How many clients do, counted from the first."""
        return sum(steps > step for steps in self.steps)

    def stacked(self, step: int) -> int:
        """How many clients a step is done for, done ones with it until half of them are: each number of clients is a
        graph of its own.
        """
        number, learning = len(self.steps), self.learning(step)
        while number >= 2 * learning:
            number //= 2
        return number

    def changes(self, num_clients: int, steps: slice) -> Changes:
        """Of the images of the first clients at these steps, step by step."""
        shift, mirrored, angle = (tensor[steps, :num_clients].flatten(0, 2) for tensor in self._changes)
        return Changes(shift=shift, mirrored=mirrored, angle=angle)


def groups(clients: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """At most so many `clients` each, the largest first, of `sizes` (of all clients) near each other: a group takes as
    many steps as its largest. In the order of `clients` where they learn one at a time.
    """
    if most == 1:
        return [[client] for client in clients]
    by_size = sorted(clients, key=lambda client: -sizes[client])
    return [by_size[first : first + most] for first in range(0, len(by_size), most)]


def check_together(model: FlatModel, stacks: bool, method: str, shape: Shape) -> None:
    """Raises UserError where several clients cannot learn in one step. `stacks`: whether the method says that they
    can. `shape`: of an image.
    """
    if not stacks:
        raise UserError(f"train.together: method {method} learns one client at a time. {REMEDY}")
    for name, layer in model.module.named_modules():
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            raise UserError(f"train.together: the model has dropout ({name}), which clients would share. {REMEDY}")
    if model.has_batch_norm or model.statistics:
        remedy = f"{REMEDY[:-1]}, or a model without, such as model.name=resnet18_gn."
        raise UserError(f"train.together: batch norm, or other running statistics, cannot be stacked. {remedy}")
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    twin = Stacked(model, [model.clone()] * 2)
    outputs = Losses(model.module, lambda images: (model.module(images)[0, 0], model.module(images)[0]))
    with torch.no_grad():
        with as_in_learning():
            expected = model.module.eval()(images)
        try:
            _, found = outputs.train().of_samples(twin.of(model.module), [images.expand(2, *images.shape)])
        except Exception as error:  # a model of the user's, which may do anything
            raise UserError(
                f"train.together: the model cannot be stacked: {type(error).__name__}: {error} {REMEDY}"
            ) from None
    if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
        raise UserError(
            "train.together: the model, in training, does not say of an image what it says of it in evaluation: "
            f"samples depend on each other or on chance. {REMEDY}"
        )


def _dense(values: Tensor) -> Tensor:
    """A copy whose part of any first clients is contiguous but for the order of dimensions, as a fused kernel wants it
    and a grouped convolution takes it without another copy.
    """
    strides = (values[0].numel(), *values.stride()[1:])
    return torch.empty_strided(values.shape, strides, device=values.device).copy_(values)
