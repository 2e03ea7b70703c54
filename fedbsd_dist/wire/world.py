"""Who am I, on which device, and over which backend do we talk.

Meeting (a key-value store) and joining (the process group) are two steps: everything a user can
get wrong is checked between them, so that a mistake is told once, before any collective.
"""

import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from fedbsd_dist.errors import RunFailed, UserError
from fedbsd_dist.wire.signals import Stop
from fedbsd_dist.wire.watch import LOST, Watch

ARRIVAL = timedelta(minutes=5)
"""From the first rank's arrival to the last one's: they are launched together."""
TORCHRUN = timedelta(seconds=30)
"""For torchrun's process, where the ranks meet: it was there before them, so that silence means that it is gone."""
FOR_EVER = timedelta(days=30)
"""For waits that the watch ends."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A rank's device and the run's backend, with why, for the log."""

    device: torch.device
    backend: str
    """`nccl` (each rank of a host has its own GPU) or `gloo`."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all of the run's."""

    rank: int
    size: int
    local_rank: int
    hosts: tuple[tuple[int, int], ...]
    """(GPUs, ranks) on the host of every rank."""
    store: dist.Store
    watch: Watch = field(default_factory=Watch)
    stop: Stop = field(default_factory=Stop)
    names: tuple[str, ...] = ("",)
    """The host of every rank."""
    restarted: bool = False
    """torchrun has started the ranks again, after one of them failed."""

    @property
    def is_server(self) -> bool:
        """Rank 0 owns the record: log, files, TensorBoard."""
        return self.rank == 0

    @contextmanager
    def one_voice(self, phase: str) -> Iterator[None]:
        """What any rank finds wrong in the block is told once, and ends every rank."""
        problem = ""
        try:
            yield
        except UserError as error:
            problem = _text(error)
        except PermissionError as error:  # of whatever path the user has named
            problem = _text(f"{error.filename}: {error.strerror}. Give this user access, or choose another path.")
        problem = next(filter(None, self.everyone(phase, problem)), "")
        if problem:
            self.fail(problem)

    def fail(self, problem: str) -> NoReturn:
        """Called by every rank at the same point: gives the run up."""
        raise RunFailed(problem)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Where a run is given up in the block, the server tells the user why, and all exit with code 2.

        So it is where one rank alone meets with a UserError, which it tells itself. Other exceptions keep their
        traceback, and end the other ranks too.
        """
        try:
            yield
        except (UserError, BrokenPipeError) as error:
            if isinstance(error, BrokenPipeError):
                error = UserError(UNHEARD)
                # what is left to print goes nowhere, without another error
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if self.watch.speaks_first():
                print(f"fedbsd_dist: {error}", file=sys.stderr, flush=True)
            self.watch.over(2)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if self.watch.speaks_first():
                print(f"\nfedbsd_dist: {INTERRUPTED}", file=sys.stderr, flush=True)
            self.watch.over(CTRL_C)
            raise SystemExit(CTRL_C) from None
        except Exception:
            # as below: first this rank's traceback, then its end
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.watch.over(LOST)
            raise
        except RunFailed as failure:
            self.complain(failure.problem)
            # torchrun ends the others as soon as one rank has gone; each finishes with its own exit code
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.wait("failed")
            self.part()
            raise

    def within(self, name: str) -> "World":
        """The same world for one of several runs: what is said in them does not mix."""
        return replace(self, store=dist.PrefixStore(name, self.store))

    def part(self) -> None:
        """Rank 0, which may hold the store, goes last."""
        with self.watch.meeting("the end"):
            if self.is_server:
                self.store.wait([f"gone/{rank}" for rank in range(1, self.size)])
            self.watch.leave()
            self.store.set(f"gone/{self.rank}", "")

    def wait(self, name: str) -> None:
        """Until every rank has come here."""
        self.store.set(f"{name}/{self.rank}", "")
        with self.watch.meeting(name):
            self.store.wait([f"{name}/{rank}" for rank in range(self.size)])

    def told(self, key: str, text: str) -> str:
        """The server's `text`, on every rank."""
        if self.is_server:
            self.store.set(f"told/{key}", text)
        with self.watch.meeting(key):
            return self.store.get(f"told/{key}").decode()

    def everyone(self, key: str, text: str) -> list[str]:
        """What each rank says, on every rank."""
        self.store.set(f"{key}/{self.rank}", text)
        with self.watch.meeting(key):
            return [self.store.get(f"{key}/{rank}").decode() for rank in range(self.size)]

    def collected(self, key: str, text: str) -> list[str]:
        """What each rank says, on the server alone; the others do not wait. A key serves once."""
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], text)
        if not self.is_server:
            return []
        texts = [self.store.get(name).decode() for name in keys]
        for name in keys:
            self.store.delete_key(name)
        return texts

    def apart(self) -> "World":
        """The same world over a connection of its own, for a thread beside the main one."""
        return replace(self, store=self.store.clone(), watch=Watch())

    def say(self, text: str) -> None:
        """A word to the user, from the server alone."""
        if self.is_server:
            print(text, flush=True)

    def complain(self, problem: str) -> None:
        """A word to the user about what went wrong, from the server alone."""
        if self.is_server:
            print(f"fedbsd_dist: {problem}", file=sys.stderr, flush=True)

    def place(self, device: str) -> Placement:
        """Choose device and backend; `device` is `auto`, `cpu` or `cuda`.

        All ranks come to the same backend, whatever each host's GPUs. Raises UserError when `cuda` is
        asked for and a host has no GPU.
        """
        gpus, ranks = self.hosts[self.rank]
        if device == "cuda" and not all(gpus for gpus, _ in self.hosts):
            raise UserError("run.device=cuda: PyTorch sees no GPU on a host of this run. Use run.device=auto or cpu.")
        if device == "cpu" or not gpus:
            return Placement(
                device=torch.device("cpu"),
                backend="gloo",
                reason="asked for" if device == "cpu" else "no GPU here",
            )
        here = torch.device("cuda", self.local_rank % gpus)
        if all(gpus >= ranks for gpus, ranks in self.hosts):
            return Placement(device=here, backend="nccl", reason="each rank has its own GPU")
        gpus, ranks = next((gpus, ranks) for gpus, ranks in self.hosts if gpus < ranks)
        reason = f"{ranks} ranks share {gpus} GPU(s) of a host, one buffer staged through host memory"
        return Placement(device=here, backend="gloo", reason=reason)

    def imagined(self, size: int) -> "World":
        """A world of another size, all on this host: to plan for, not to meet."""
        here = (self.hosts[self.rank][0], size)
        return replace(self, size=size, hosts=(here,) * size, names=(self.names[self.rank],) * size)

    def join(self, placement: Placement) -> None:
        """Make the process group, if this launch has none yet. Under NCCL, gloo still carries the host's tensors."""
        if dist.is_initialized():
            return
        nccl = placement.backend == "nccl"
        if placement.device.type == "cuda":
            torch.cuda.set_device(placement.device)
            # float32 is float32, in convolutions too; and a run that goes on comes to the same bits
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
        with self.watch.meeting("making the process group"):
            dist.init_process_group(
                backend="cpu:gloo,cuda:nccl" if nccl else "gloo",
                store=dist.PrefixStore("group", self.store),
                rank=self.rank,
                world_size=self.size,
                timeout=FOR_EVER,
                device_id=placement.device if nccl else None,
            )
            dist.barrier()

    def leave(self) -> None:
        """Take the group down, if there is one. On success only: after an error, teardown could be what hangs."""
        if dist.is_initialized():
            with self.watch.meeting("leaving the process group"):
                dist.barrier()
                dist.destroy_process_group()


UNHEARD = (
    "nobody reads the output any more, such as behind `| head`. A run goes on from its last checkpoint with "
    "run.resume=auto; to watch a part of it, read metrics.jsonl."
)
INTERRUPTED = "interrupted. A run goes on from its last checkpoint with run.resume=auto; TERM saves one first."
CTRL_C = 130
"""Exit code, as shells have it."""


def _text(problem: object) -> str:
    """The store takes no surrogates of a path."""
    return str(problem).encode(errors="backslashreplace").decode()


def meet() -> World:
    """Find the other ranks of this launch: torchrun's, or none."""
    local_rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    store: dist.Store = dist.HashStore()
    rank, size = 0, 1
    if "RANK" in os.environ:
        apart = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # else rank 0 holds the store, and may be late
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=TORCHRUN if apart else ARRIVAL))
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            problem = str(error).partition("\n")[0]
            print(f"fedbsd_dist: rank {os.environ['RANK']} found not all ranks at {where}: {problem}", file=sys.stderr)
            raise SystemExit(LOST) from None
        store.set_timeout(ARRIVAL)
    gpus, restarts = torch.cuda.device_count(), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, facts = _arrive(store, rank, size, [gpus, ranks, socket.gethostname(), restarts])
    store.set_timeout(FOR_EVER)
    names = tuple(name for _, _, name, _ in facts)
    watch = Watch(rank, names, local_rank)
    if size > 1:
        watch.start(dist.PrefixStore("watch", store.clone()))
    return World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        hosts=tuple((gpus, ranks) for gpus, ranks, _, _ in facts),
        store=store,
        watch=watch,
        names=names,
        restarted=any(restarts != "0" for *_, restarts in facts),  # each host counts its own
    )


def _arrive(store: dist.Store, rank: int, size: int, mine: list[Any]) -> tuple[dist.Store, list[list[Any]]]:
    """The store without what an earlier start of the ranks has left in it, and what every rank says of itself.

    torchrun keeps its store when it starts the ranks again. So rank 0 names each start, and a rank believes the name
    once a token that it has just drawn comes back under it. Ends the launch where some rank does not come.
    """
    token = secrets.token_hex(8)
    said = [token, *mine]
    keys = [f"host/{other}" for other in range(size)]
    if rank == 0:
        store.set("start", token)
    end = time.monotonic() + ARRIVAL.total_seconds()
    while True:
        start = dist.PrefixStore(store.get("start").decode() if store.check(["start"]) else "none", store)
        start.set(keys[rank], json.dumps(said))
        if rank == 0 and start.check(keys):
            start.set("hosts", json.dumps([json.loads(start.get(key)) for key in keys]))
        everyone = json.loads(start.get("hosts")) if start.check(["hosts"]) else []
        if said in everyone:
            return start, [of for _, *of in everyone]
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    missing = [other for other, key in enumerate(keys) if not start.check([key])]
    if missing and rank == min({*range(size)} - {*missing}):
        ranks = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        print(
            f"fedbsd_dist: {ranks} of {size} did not come within {ARRIVAL.total_seconds():g} s of the launch. Look "
            f"for what stopped them on their hosts.",
            file=sys.stderr,
        )
    raise SystemExit(LOST)


def entry_point(main: Callable[..., None]) -> Callable[..., None]:
    """Have torchrun show the traceback of the first rank that failed, rather than its exit code alone."""
    return record(main)
