"""TERM and USR2 ask for the end of the run: the present round is finished on all ranks, saved, and the run can go on.

A handler only notes that it was asked; the ranks agree on it in the round's reduction. So a second signal changes
nothing, and no rank stops where the others do not.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def heard(self, then: Callable[[], None]) -> Iterator[None]:
        """Signals in the block are requests, `then` is called at each, and once one has come they do no more after it.

        Elsewhere than in a process's main thread, where there are no signals, nothing changes.
        """

        def note(number: int, frame: FrameType | None) -> None:
            self.asked = True
            then()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.asked else handler)
