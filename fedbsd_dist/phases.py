"""Where a rank's time goes: named phases, whose seconds add up, and which are ranges of a trace while one is taken."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch

EVALUATE = "evaluate"
NAMES = ("load", "train", "distil", "reduce", EVALUATE, "record", "checkpoint")
"""`load`: a client's state and samples into the live model. `train`: its local learning. `distil`: what a teacher or a
frozen backbone says of its samples. `reduce`: uploads onto the sum, the all-reduce, the server's step. `evaluate`: all
that tests take, the learning before them too. `record`: of the server. `checkpoint`: the copy that is then written
beside other work, and the wait for the one before.
"""


class Mark(Protocol):
    """An instant, as torch.cuda.Event has it."""

    def query(self) -> bool:
        """Whether it has come."""

    def elapsed_time(self, later: Any, /) -> float:
        """Milliseconds to a later one."""


class Phases:
    """Seconds by phase. Of two that are nested the inner one counts, but all within `evaluate` is evaluation.

    It takes microseconds, and nobody waits: on a GPU, which works behind the host, the device's time is what counts,
    by events among its work that are looked at once they have passed.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """`device`: whose time is meant; None: the host's."""
        self.annotate: Callable[[str], AbstractContextManager[Any]] = nullcontext
        """Makes the range of a phase in a trace."""
        self._device = device if device is not None and device.type == "cuda" else None
        self._passed: deque[tuple[str, Mark, Mark]] = deque()
        self._present = ""
        self._since = self._mark()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The block is of this phase."""
        with self._turned_to(EVALUATE if self._present == EVALUATE else name), self.annotate(name):
            yield

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """The block is a range in a trace, and of no phase."""
        with self._turned_to(""), self.annotate(name):
            yield

    def read(self) -> dict[str, float]:
        """Seconds of each of NAMES since the last call; what a GPU has not done yet comes with the next."""
        seconds = dict.fromkeys(NAMES, 0.0)
        while self._passed and self._passed[0][2].query():
            name, begin, end = self._passed.popleft()
            seconds[name] += begin.elapsed_time(end) / 1000
        return seconds

    @contextmanager
    def _turned_to(self, name: str) -> Iterator[None]:
        before = self._present
        self._change(name)
        try:
            yield
        finally:
            self._change(before)

    def _change(self, name: str) -> None:
        mark = self._mark()
        if self._present:
            self._passed.append((self._present, self._since, mark))
        self._present, self._since = name, mark

    def _mark(self) -> Mark:
        if self._device is None:
            return _Instant()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


class _Instant:
    """Now, by the host's clock."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: "_Instant", /) -> float:
        return 1000 * (later._seconds - self._seconds)
