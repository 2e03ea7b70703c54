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
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fedbsd_dist.phases import NAMES, Phases
from fedbsd_dist.randomness import named_seed
from fedbsd_dist.wire.codecs import Codec
from fedbsd_dist.wire.ledger import ALL_REDUCE, ALL_TO_ALL, Entry, Ledger, ring_bytes
from fedbsd_dist.wire.sums import Sum, make_sum
from fedbsd_dist.wire.world import Placement, World

RANGE_BITS = 10
"""An exact sum takes parameters of magnitude up to 2**10; larger ones are a diverged client."""
SCALAR_BITS = 20
"""Fraction bits of weights, metrics and seconds in an exact sum (resolution 1e-6)."""
METRIC_BITS = 32
"""An exact sum takes metrics up to 2**32, of thousands of clients without overflow."""

CLOCKS = 2 + len(NAMES)
"""Numbers of a rank that every collective carries: seconds busy, and evaluating, and in each phase."""
WAITING = "waiting"
"""For other ranks to come to the collectives."""

BLOCK = 2**16
"""Elements of an exact sum that are made a mean at once: in double precision they lie in a cache."""

MAX_WIDTH = 32
"""Numbers a row that `gather` takes: a digest's."""


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


class Channel:
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
        self._world, self._ledger = world, ledger
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
        self._clock = 0.0
        self.phases = Phases(placement.device)
        """Of this rank's work from one collective to the next."""
        self._spent = np.zeros((world.size, len(NAMES) + 1))
        self.overlapped = 0.0
        """Seconds so far in which numbers of this rank travelled, all ranks having come, while it did other work. NCCL
        does not say when they have arrived: 0."""

    def at(self, doing: str) -> None:
        """What this rank does now, for those who may wait for it."""
        self._world.watch.at(doing)

    def start(self) -> None:
        """Start the clock of the first collective, on all ranks together."""
        self._world.wait("channel")
        self._clock = time.perf_counter()

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

    def spent(self) -> dict[str, np.ndarray]:
        """Seconds of every rank [ranks] in each phase and WAITING, as the collectives since the last call brought them.

        An all-reduce itself counts to `reduce`, as this rank has measured it; all else is the same on every rank.
        """
        spent, self._spent = self._spent, np.zeros_like(self._spent)
        return dict(zip((*NAMES, WAITING), spent.T, strict=True))

    def fail(self, problem: str) -> NoReturn:
        """Called by every rank at the same point: gives the run up."""
        self._world.fail(problem)

    def gather(
        self, rows: Mapping[int, Sequence[float]], num_rows: int, width: int, *, round: int, purpose: str
    ) -> np.ndarray:
        """Table float64 [num_rows, width] whose row i is what one rank gave as rows[i]; else zeros.

        Few plain numbers a row (counts, losses, digests): no tensor enters here, nor room for one.
        """
        assert width <= MAX_WIDTH, f"{width} numbers a row; tensors of a model go through add()"
        assert not any(isinstance(number, Tensor) for row in rows.values() for number in (row, *row))
        buffer = torch.zeros(num_rows * width + CLOCKS * self._world.size, dtype=torch.float64)
        table = buffer[: num_rows * width].view(num_rows, width)
        if rows:
            table.numpy()[[*rows]] = np.array([*rows.values()], dtype=np.float64)
        with self.phases.apart("all-reduce"):
            self._sum(buffer, 1.0, round, purpose, {}, 0.0)
        return table.numpy()

    def _sum(
        self,
        buffer: Tensor,
        scale: float,
        round: int,
        purpose: str,
        sizes: dict[str, int],
        evaluation_seconds: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> np.ndarray:
        """All-reduce `buffer` in place and write the ledger; its tail is clocks [ranks, CLOCKS]."""
        if buffer.is_cuda:
            torch.cuda.synchronize(buffer.device)
        busy = time.perf_counter() - self._clock
        clocks = buffer[-CLOCKS * self._world.size :].view(self._world.size, CLOCKS)
        mine = torch.tensor([busy, evaluation_seconds, *self.phases.read().values()], dtype=torch.float64) * scale
        clocks[self._world.rank] = mine.to(clocks)
        wire = self._host if buffer.is_cuda and self._host is not None else buffer
        if wire is not buffer:
            wire.copy_(buffer)
        with self._world.watch.meeting(f"{f'round {round}: ' if round else ''}{purpose}"):
            work = dist.all_reduce(wire, async_op=True)
            start = resumed = time.perf_counter()
            ended: list[float] = []
            if meanwhile:
                if not wire.is_cuda:  # NCCL calls back at once
                    work.get_future().add_done_callback(lambda _: ended.append(time.perf_counter()))
                meanwhile()
                resumed = time.perf_counter()
            work.wait()
        if wire is not buffer:
            buffer.copy_(wire)
        if buffer.is_cuda:
            torch.cuda.synchronize(buffer.device)
        seconds = clocks.double().cpu().numpy() / scale
        now = time.perf_counter()
        arrived = self._clock + float(seconds[:, 0].max())
        took = max(now - (max(arrived, resumed) if meanwhile else arrived), 0.0)
        if ended:
            self.overlapped += max(min(resumed, *ended) - max(arrived, start), 0.0)
            # the others go on when the numbers are there: what is left of this rank's work keeps them waiting later
            now = min(now, *ended)
        self._spent[:, : len(NAMES)] += seconds[:, 2:]
        self._spent[:, NAMES.index("reduce")] += took
        self._spent[:, -1] += seconds[:, 0].max() - seconds[:, 0]
        self._write_down(ALL_REDUCE, round, purpose, buffer, sizes, took)
        self._clock = now
        return seconds

    def _carry(self, round: int, collective: str, mine: Tensor, elements_by_group: Mapping[str, int]) -> Tensor:
        """As `sums.Carry` says. A rank's time to make a code is not told apart here from the time that it travels, if
        others wait for it.
        """
        purpose = f"aggregate, {collective}"
        if mine.is_cuda:
            torch.cuda.synchronize(mine.device)
        sent = mine if self._host is None else mine.cpu()
        with self.phases.apart(collective), self._world.watch.meeting(f"round {round}: {purpose}"):
            start = time.perf_counter()
            if collective == ALL_TO_ALL:
                found = torch.empty_like(sent)
                dist.all_to_all_single(found, sent)
            else:
                found = sent.new_empty(self._world.size, *sent.shape)
                dist.all_gather([*found], sent)
            found = found.to(mine.device)
            if mine.is_cuda:
                torch.cuda.synchronize(mine.device)
            took = time.perf_counter() - start
        self._spent[:, NAMES.index("reduce")] += took
        self._write_down(collective, round, purpose, mine, elements_by_group, took)
        self._clock += took  # this rank was not busy
        return found

    def _write_down(
        self,
        collective: str,
        round: int,
        purpose: str,
        mine: Tensor,
        elements_by_group: Mapping[str, int],
        seconds: float,
    ) -> None:
        """A line in the ledger. `mine`: what this rank hands in."""
        payload = mine.numel() * mine.element_size()
        self._ledger.entries.append(
            Entry(
                round=round,
                purpose=purpose,
                group="+".join(elements_by_group) or "-",
                dtype=str(mine.dtype).removeprefix("torch."),
                elements=mine.numel(),
                elements_by_group={**elements_by_group, "scalars": mine.numel() - sum(elements_by_group.values())},
                payload_bytes=payload,
                wire_bytes=ring_bytes(payload, self._world.size, collective),
                seconds=seconds,
                collective=collective,
            )
        )
