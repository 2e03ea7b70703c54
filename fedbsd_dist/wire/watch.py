"""Nobody waits for ever: every rank tells the others once a second that it lives and what it does, and one that is dead
or stuck ends the run on all of them, with one message.

A rank is given up when it has been silent for `silence` seconds (it was killed or stopped, or its host is gone), or
when the others have waited `patience` seconds for it at the same point (it lives, but does not get on). Threads of
their own do this, over a connection of their own to the key-value store, for the main thread may be what hangs.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch.distributed as dist

from fedbsd_dist.units import duration

BEAT = 1.0
"""Seconds from a word of a rank to its next."""
ALARM = 6.0
"""Seconds of silence that suffice when something is known to have gone wrong."""
PARTING = 5.0
"""Seconds in which the others follow one who has said why the run ends."""
MOST_NAMED = 8
"""Clients of a rank named in the message."""
REMEDY = (
    "The run ends on all ranks; go on from the last checkpoint with run.resume=auto. "
    "How long a silent rank is waited for says wire.silence, and a slow one wire.timeout."
)
LOST = 1
"""Exit code of a run of which a rank was lost: torchrun may start it again."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """What a rank last said of itself."""

    count: int = 0
    kind: Literal["here", "gone", "over"] = "here"
    """`gone`: it left in good order. `over`: it has said why the run ends, and all are to follow."""
    code: int = 0
    """Exit code, of one for whom it is over."""
    step: int = 0
    """Points at which all ranks wait for each other that it has come to."""
    since: float = 0.0
    """Seconds for which it has done what it does."""
    doing: str = ""
    process: int = 0
    """Its number on its host."""
    parent: int = 0
    """That of the process that launched it."""
    lost: tuple[int, ...] = ()
    """Ranks that are given up, of one for whom it is over."""


class Watch:
    """This rank's eye on the others. A world of one has none, and the same calls do nothing."""

    def __init__(self, rank: int = 0, names: Sequence[str] = ("",), local_rank: int = 0) -> None:
        """`names`: the host of every rank."""
        self.silence, self.patience = 60.0, math.inf
        self.clients: Sequence[Sequence[int]] = [[] for _ in names]
        """Of every rank, for the message."""
        self._rank, self._names, self._local_rank = rank, names, local_rank
        # torchrun's own process holds the store where there is one; else rank 0 does
        self._store_is_apart = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._doing, self._doing_since = "starting", time.monotonic()
        self._kind: Literal["here", "gone", "over"] = "here"
        self._step, self._code, self._count = 0, 0, 0
        self._waiting_since: float | None = None
        self._alarmed, self._store_gone = False, False
        self._words = [Word()] * len(names)
        self._heard = [time.monotonic()] * len(names)
        """When each rank's word last changed."""
        self._answered = time.monotonic()
        """When the store last answered."""
        self._judged: float | None = None
        self._lost: tuple[int, ...] = ()
        self._threads: list[threading.Thread] = []
        self._leaving = threading.Event()

    def start(self, store: dist.Store) -> None:
        """Begin; every rank has to come here. `store`: a connection that nobody else uses."""
        self._store = store
        self._tell()
        store.wait([f"word/{rank}" for rank in range(len(self._names))])
        self._answered = time.monotonic()
        self._heard = [self._answered] * len(self._names)
        for work in (self._talk, self._look):
            self._threads.append(threading.Thread(target=self._regularly, args=(work,), daemon=True))
            self._threads[-1].start()

    def expect(self, silence: float, patience: float) -> None:
        """Seconds after which a silent rank is given up, and one that the others wait for."""
        self.silence, self.patience = silence, patience

    def at(self, doing: str) -> None:
        """What this rank does from now on."""
        self._doing, self._doing_since = doing, time.monotonic()

    @contextmanager
    def meeting(self, doing: str) -> Iterator[None]:
        """Around a point where all ranks wait for each other. One that cannot come ends the process here."""
        self._step += 1
        self.at(doing)
        self._waiting_since = time.monotonic()
        try:
            yield
        except RuntimeError:
            # of a group or store that has lost somebody: wait for who it was, which the others are told too
            self.alarm()
            if self._threads:
                time.sleep(ALARM + 2 * PARTING)
            raise
        finally:
            self._waiting_since = None

    def alarm(self) -> None:
        """Something is known to have gone wrong: whoever is silent now is lost."""
        self._alarmed = True

    def speaks_first(self) -> bool:
        """Of all ranks that found out by themselves why the run is over, whether this is the first."""
        return not self._threads or self._store.add("speaker", 1) == 1

    def over(self, code: int) -> None:
        """This rank has said why the run ends, which ends the others with exit code `code`, and waits for them."""
        self._code, self._kind = code, "over"
        if self._threads:
            self._last_word()
            self._see_off()

    def leave(self) -> None:
        """This rank goes in good order."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(2 * BEAT)
        if self._threads:
            self._kind = "gone"
            with suppress(RuntimeError):  # the store went first
                self._tell()
        self._threads = []

    def _regularly(self, work: Callable[[], None]) -> None:
        last = time.monotonic()
        while not self._leaving.wait(BEAT):
            now = time.monotonic()
            if now - last > 5 * BEAT:  # this process was stopped itself: nobody else was silent
                self._heard = [now] * len(self._names)
                self._answered = now
            work()
            last = now

    def _talk(self) -> None:
        if self._store_gone:
            return
        try:
            self._tell()
            texts = self._store.multi_get([f"word/{rank}" for rank in range(len(self._names))])
        except RuntimeError:
            self._store_gone = True
            return
        self._answered = time.monotonic()
        for rank, text in enumerate(texts):
            word = Word(**json.loads(text))  # its lists are only read
            if word != self._words[rank]:
                self._words[rank], self._heard[rank] = word, self._answered

    def _tell(self) -> None:
        self._count += 1
        word = {
            "count": self._count,
            "kind": self._kind,
            "code": self._code,
            "step": self._step,
            "since": time.monotonic() - self._doing_since,
            "doing": self._doing,
            "process": os.getpid(),
            "parent": os.getppid(),
            "lost": self._lost,
        }
        self._store.set(f"word/{self._rank}", json.dumps(word))

    def _look(self) -> None:
        """Whether somebody is lost; ends the process then."""
        now = time.monotonic()
        for word in self._words:
            if word.kind == "over" and self._kind != "over":
                self._kill(word.lost)
                self._exit(word.code)
        if self._kind == "over":
            return
        if self._store_gone or now - self._answered > self.silence:
            self._end_without_store()
        silence = ALARM if self._alarmed else self.silence
        here = [rank for rank, word in enumerate(self._words) if word.kind == "here" and rank != self._rank]
        # as of the store's last answer: while it says nothing, nobody can be heard in it
        silent = [rank for rank in here if self._answered - self._heard[rank] > silence]
        behind: list[int] = []
        if self._waiting_since is not None and now - self._waiting_since > self.patience:
            behind = [rank for rank in here if self._words[rank].step < self._step and rank not in silent]
        if silent or behind:
            self._end(silent, behind, now)

    def _end(self, silent: Sequence[int], behind: Sequence[int], now: float) -> None:
        """One of those who are not lost says who is; the others give it time to."""
        well = [rank for rank, word in enumerate(self._words) if word.kind == "here" and rank not in (*silent, *behind)]
        self._judged = self._judged or now
        if self._rank != min(well) and now - self._judged < PARTING:
            return
        parts = [
            f"{self._who(rank)} has been silent for {duration(now - self._heard[rank])}, since it was at: "
            f"{self._words[rank].doing}."
            for rank in silent
        ]
        parts += [
            f"{self._who(rank)} does not get on: for {duration(self._words[rank].since)} it has been at: "
            f"{self._words[rank].doing}. The others wait for it."
            for rank in behind
        ]
        self._say("\n".join([*parts, REMEDY]))
        self._lost = (*silent, *behind)
        self.over(LOST)
        self._kill(self._lost)
        self._exit(LOST)

    def _kill(self, lost: Sequence[int]) -> None:
        """A stopped process of this host would be waited for by torchrun, which can do no more than this either."""
        for rank in lost:
            # hosts may share a name; who has the same launcher is here
            here = (self._names[rank], self._words[rank].parent) == (self._names[self._rank], os.getppid())
            if here and rank != self._rank:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(self._words[rank].process, signal.SIGKILL)

    def _end_without_store(self) -> NoReturn:
        """The ranks cannot hear each other: one of each host speaks, or the first that is left where rank 0 is gone."""
        if self._store_is_apart and self._local_rank == 0:
            self._say(f"torchrun's process of the first host, where the ranks meet, is gone or silent.\n{REMEDY}")
        elif not self._store_is_apart and self._rank == 1:
            self._say(f"{self._who(0)} is gone or silent, since it was at: {self._words[0].doing}.\n{REMEDY}")
        self._store_gone = True
        self._exit(LOST)

    def _who(self, rank: int) -> str:
        clients = [*map(str, self.clients[rank][:MOST_NAMED])]
        more = len(self.clients[rank]) - len(clients)
        hosts = f", clients {', '.join(clients)}{f' and {more} more' if more else ''}" if clients else ""
        return f"rank {rank} (host {self._names[rank]}{hosts})"

    def _say(self, problem: str) -> None:
        print(f"fedbsd_dist: {problem}", file=sys.stderr, flush=True)

    def _last_word(self) -> None:
        """Tell, but do not wait for ever for a store that is gone or silent."""

        def tell() -> None:
            with suppress(RuntimeError):
                self._tell()

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(PARTING)

    def _see_off(self) -> None:
        """Wait, but not for ever, until no other rank is left to hear."""
        end = time.monotonic() + PARTING
        others = {*range(len(self._names))} - {self._rank, *self._lost}
        while time.monotonic() < end and any(self._words[rank].kind == "here" for rank in others):
            time.sleep(BEAT / 4)

    def _exit(self, code: int) -> NoReturn:
        """At once, for the main thread may hang. Files are whole at any instant."""
        if not self._store_gone and self._kind == "here":
            self._kind = "gone"
            self._leaving.set()
            self._last_word()
        sys.stdout.flush()
        os._exit(code)
