"""The only door: shared groups go out as one weighted sum a round, and nothing else can.

A round's all-reduce carries, in one buffer,

    [ shared groups | total weight | uploads diverged | metrics | ranks asked to stop | clocks of every rank ]

An upload that diverged adds to that one count and to nothing else. The server joins with zeros and
weight 0 and gets the aggregate for free. With `exact`, every number is a 64-bit fixed-point integer:
integer sums do not depend on how clients are grouped into ranks, so any number of ranks gives the
same bits.

With a codec, what a client uploads of some groups is the code of its update, and the sum is of what the codes stand
for: in that one buffer if `exact`, and otherwise apart from it, by collectives that carry codes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedbsd_dist.randomness import named_seed
from fedbsd_dist.wire.codecs import Codec
from fedbsd_dist.wire.collectives import CLOCKS, Collectives
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.sums import Sum, make_sum
from fedbsd_dist.wire.world import Placement, World

RANGE_BITS = 10
"""An exact sum takes parameters of magnitude up to 2**10; larger ones are a diverged client."""
SCALAR_BITS = 20
"""Fraction bits of weights, metrics and seconds in an exact sum (resolution 1e-6)."""
METRIC_BITS = 32
"""An exact sum takes metrics up to 2**32, of thousands of clients without overflow."""

BLOCK = 2**16
"""Elements of an exact sum that are made a mean at once: in double precision they lie in a cache."""


class ChannelRefusal(AssertionError):
    """A method tried to send what is not registered as shared: a mistake in the program."""


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What the round's reduction brought, the same on every rank."""

    groups: dict[str, Tensor]
    """Weighted mean of each shared group, float32 [numel] on the device; none where no upload counts. Written over in
    the reduction after the next one, but for what `Channel.kept` has been given."""
    weight: float
    """Total weight of the uploads that count."""
    diverged: int
    """Number of the others."""
    metrics: np.ndarray
    """Sums over the uploads that count, float64 [num_metrics]."""
    training_seconds: float
    """Longest time that a rank was busy since the last collective, its evaluation left out."""
    evaluation_seconds: float
    """Longest time that a rank spent on evaluation since the last collective."""
    stop: bool
    """Some rank was asked to stop: all do, after this round."""


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How some groups cross."""

    codec: Codec
    groups: Sequence[str]
    """Of those shared."""
    errors: Mapping[str, Tensor]
    """Group -> the live buffer, float32 [numel], of what the client at its turn has not sent yet, if the codec has
    feedback. The channel writes it, and it is the client's to keep."""
    seed: int
    """Of the run."""


class Channel(Collectives):
    """Sums what is registered as shared; refuses the rest before anything is sent."""

    def __init__(
        self,
        world: World,
        placement: Placement,
        ledger: Ledger,
        *,
        shared: Mapping[str, Tensor],
        num_metrics: int,
        exact: bool,
        weight_bound: float,
        coding: Coding | None = None,
    ) -> None:
        """`shared`: the live model's buffer of each shared group, float32 [numel]: these storages, whole
        and no other, may cross, as they are or as `coding` says. `weight_bound`: the sum of all clients' weights, which
        scales an exact sum.
        """
        super().__init__(world, placement, ledger)
        # aliases of our own, the only thing that is ever read: what a method does to its tensors changes nothing here
        self._shared = {name: buffer.detach() for name, buffer in shared.items()}
        self._coding = coding
        self._errors = {name: buffer.detach() for name, buffer in coding.errors.items()} if coding else {}
        coded = {name: self._shared[name].numel() for name in coding.groups} if coding else {}
        self._apart: Sum | None = None
        """Of what does not cross in the buffer."""
        if coding and not exact:
            self._apart = make_sum(coding.codec, coded, world.size, placement.device)
        self._coded = coded
        self._sizes = {
            name: buffer.numel() for name, buffer in shared.items() if self._apart is None or name not in coded
        }
        """Of the groups in the buffer."""
        self._num_parameters = sum(self._sizes.values())
        self._round, self._received = 0, dict[str, Tensor]()
        self._generator = torch.Generator(placement.device)
        self._num_metrics = num_metrics
        self._exact = exact
        self._scale = 2.0 ** (62 - RANGE_BITS - math.ceil(math.log2(max(weight_bound, 1.0)))) if exact else 1.0
        self._scalar_scale = 2.0**SCALAR_BITS if exact else 1.0
        # no sum of sound uploads overflows, whoever they are; half: for what rounding adds
        largest = torch.finfo(torch.float32).max / 2 / max(weight_bound, 1.0)
        self.limit = 2.0**RANGE_BITS if exact else largest
        """Magnitude of a parameter above which an upload has diverged."""
        self._metric_limit = 2.0**METRIC_BITS if exact else largest
        # the ranks' uploads are counted where what is apart is as long as they are many
        self._counts = world.size if self._apart else 0
        numel = self._num_parameters + 2 + num_metrics + 1 + self._counts + CLOCKS * world.size
        # a mean lives on as the shared state while the next one is made: its place takes turns with another
        self._means = [torch.zeros(numel, device=placement.device) for _ in range(2)]
        # in float32 a sum becomes the mean where it lies
        self._buffer = torch.zeros(numel, dtype=torch.int64, device=placement.device) if exact else self._means[0]
        self._empty = True
        """No upload has been put onto the sum, and what lies in it is of an earlier round."""
        self._zero = torch.zeros(1, dtype=self._buffer.dtype, device=placement.device)
        staged = placement.device.type == "cuda" and placement.backend != "nccl"
        self._host = torch.empty_like(self._buffer, device="cpu", pin_memory=True) if staged else None

    def begin(self, round: int, received: Mapping[str, Tensor]) -> None:
        """The uploads that follow are of clients that have `received` this shared state."""
        self._round, self._received = round, dict(received)

    def add(
        self,
        groups: Mapping[str, Tensor],
        weight: float,
        metrics: Tensor,
        sound: Tensor | None = None,
        *,
        client: int = 0,
    ) -> Tensor:
        """Put one client's upload onto this rank's sum: weight x groups, and its metrics [num_metrics].

        The upload counts, which is returned as a bool tensor [] on the device, if it is finite and not beyond `limit`,
        and so are what its codes stand for and its metrics, and if `sound`, a bool tensor [], says so of what the
        client does not upload. Nobody waits for the device to know. `client`: whose chance it is, where a codec leaves
        something to chance.

        Raises ChannelRefusal, before anything is touched, for a tensor that is not the registered
        buffer itself: a private group, a view, a copy, a buffer with something else in it.
        """
        self._check(groups)
        device = self._buffer.device
        metrics = metrics.to(device, torch.float64)
        codes, updates = self._encode(client)
        tests = [values.abs().max() <= self.limit for values in (*self._shared.values(), *updates.values())]
        tests += [(metrics.abs() <= self._metric_limit).all(), *(() if sound is None else (sound,))]
        counts = torch.stack(tests).all()

        def kept(name: str) -> Tensor:
            # by weight 0 alone, what is not finite would still be so
            return torch.where(counts, updates.get(name, self._shared[name]), 0.0)

        offset = 0
        for name, numel in self._sizes.items():
            target = self._buffer[offset : offset + numel]
            so_far = self._zero if self._empty else target
            if self._exact:
                units = (kept(name).double() * (weight * self._scale)).round_().to(torch.int64)
                torch.add(so_far, units, out=target)
            else:
                torch.add(so_far, kept(name), alpha=weight, out=target)
            offset += numel
        self._empty = False
        if self._apart:
            self._apart.add(codes, {name: kept(name) for name in updates}, torch.where(counts, weight, 0.0))
        scalars = torch.zeros(2 + self._num_metrics, dtype=torch.float64, device=device)
        scalars[0] = weight
        scalars[2:] = metrics
        scalars = torch.where(counts, scalars, 0.0)
        scalars[1] = (~counts).double()
        scalars *= self._scalar_scale
        self._buffer[offset : offset + len(scalars)] += (
            scalars.round().to(torch.int64) if self._exact else scalars.float()
        )
        if self._counts:
            self._buffer[offset + len(scalars) + 1 + self._world.rank] += 1
        return counts

    def _encode(self, client: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of the live model's coded groups: the codes of its updates, and what they stand for."""
        coding, codes, updates = self._coding, dict[str, Tensor](), dict[str, Tensor]()
        for name in self._coded:
            assert coding
            update = self._shared[name] - self._received[name]
            if coding.codec.feedback:
                update += self._errors[name]
            self._generator.manual_seed(named_seed(coding.seed, "codec", self._round, client, name))
            codes[name] = coding.codec.encode(update, self._generator)
            updates[name] = coding.codec.decode(codes[name], update.numel())
            if coding.codec.feedback:
                torch.sub(update, updates[name], out=self._errors[name])
        return codes, updates

    def _check(self, groups: Mapping[str, Tensor]) -> None:
        for name, tensor in groups.items():
            home = self._shared.get(name)
            if home is None:
                raise ChannelRefusal(
                    f"group {name!r} is not registered as shared ({', '.join(self._shared)}): it stays"
                )
            if type(tensor) is not Tensor or tensor.dtype != home.dtype or not tensor.is_set_to(home):
                raise ChannelRefusal(f"group {name!r}: this tensor is not the registered buffer of the group: it stays")
        missing = self._shared.keys() - groups.keys()
        if missing:
            raise ChannelRefusal(f"upload without the shared group(s) {', '.join(sorted(missing))}")

    def reduce(
        self, round: int, evaluation_seconds: float = 0.0, meanwhile: Callable[[], None] | None = None
    ) -> Aggregate:
        """The round's one all-reduce, and the collectives of what is apart; every rank calls it. Leaves the sum empty
        for the next round. `meanwhile` is done while the numbers travel, and neither needs them nor changes them.
        """
        self._buffer[self._num_parameters + 2 + self._num_metrics] = self._world.stop.asked * self._scalar_scale
        if self._empty:
            self._buffer[: self._num_parameters] = 0
        if self._apart and meanwhile:  # it would keep others waiting between collectives
            start = time.perf_counter()
            meanwhile()
            evaluation_seconds, meanwhile = evaluation_seconds + time.perf_counter() - start, None
        with self.phases.apart("all-reduce"):
            clocks = self._sum(
                self._buffer, self._scalar_scale, round, "aggregate", self._sizes, evaluation_seconds, meanwhile
            )
        scalars = self._buffer[self._num_parameters :].double().cpu().numpy() / self._scalar_scale
        weight, diverged, metrics = float(scalars[0]), int(scalars[1]), scalars[2 : 2 + self._num_metrics]
        stop, counts = bool(scalars[2 + self._num_metrics]), scalars[3 + self._num_metrics :][: self._counts]
        groups: dict[str, Tensor] = {}
        if weight:
            means = dict(zip(self._sizes, self._mean(weight).split([*self._sizes.values()]), strict=True))
            means |= self._updates(round, weight, [int(count) for count in counts])
            for name in self._coded:
                means[name] += self._received[name]
            groups = {name: means[name] for name in self._shared}
        elif self._apart:
            self._apart.clear()
        self._buffer[self._num_parameters :] = 0
        self._empty = True
        return Aggregate(
            groups=groups,
            weight=weight,
            diverged=diverged,
            metrics=metrics,
            training_seconds=float((clocks[:, 0] - clocks[:, 1]).max()),
            evaluation_seconds=float(clocks[:, 1].max()),
            stop=stop,
        )

    def _mean(self, weight: float) -> Tensor:
        """Of the sum, float32 [num_parameters]."""
        mean = self._means[0][: self._num_parameters]
        if self._exact:
            total = self._buffer[: self._num_parameters]
            for units, place in zip(total.split(BLOCK), mean.split(BLOCK), strict=True):
                place.copy_(units.double().div_(self._scale * weight))
        else:
            mean.div_(weight)  # a quotient of two floats, rounded once, is what double precision would give
        self._means.reverse()
        if not self._exact:
            self._buffer = self._means[0]
        return mean

    def _updates(self, round: int, weight: float, counts: Sequence[int]) -> dict[str, Tensor]:
        """The mean updates of those groups that do not cross in the buffer."""
        if not self._apart or not self._coding:
            return {}
        seed = named_seed(self._coding.seed, "codec of the sum", round, self._world.rank)
        total = self._apart.total(partial(self._carry, round), counts, self._generator.manual_seed(seed))
        return {name: values.div_(weight) for name, values in total.items()}

    def kept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What will be there for longer than to the next mean: copied where that is going to be written over it."""
        next_place = self._means[0].untyped_storage().data_ptr()
        return {
            name: values.clone() if values.untyped_storage().data_ptr() == next_place else values
            for name, values in state.items()
        }
