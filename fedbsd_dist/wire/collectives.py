"""The collectives, each of them timed, and with a line in the ledger; and the few that carry plain numbers."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fedbsd_dist.phases import NAMES, Phases
from fedbsd_dist.wire.ledger import ALL_REDUCE, ALL_TO_ALL, Entry, Ledger, ring_bytes
from fedbsd_dist.wire.world import Placement, World

CLOCKS = 2 + len(NAMES)
"""Numbers of a rank that every collective carries: seconds busy, and evaluating, and in each phase."""
WAITING = "waiting"
"""For other ranks to come to the collectives."""
MAX_WIDTH = 32
"""Numbers a row that `gather` takes: a digest's."""


class Collectives:
    """This rank's part in them, and the clocks that go with each."""

    def __init__(self, world: World, placement: Placement, ledger: Ledger) -> None:
        self._world, self._ledger = world, ledger
        self._host: Tensor | None = None
        """Where a GPU's numbers wait on the host, if they do not cross from the GPU itself."""
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
