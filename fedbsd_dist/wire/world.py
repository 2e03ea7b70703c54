"""Who am I, on which device, and over which backend do we talk.

Meeting (a key-value store) and joining (the process group) are two steps: everything a user can
get wrong is checked between them, so that a mistake is told once, before any collective.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from fedbsd_dist.errors import RunFailed, UserError

MEETING_TIMEOUT = timedelta(minutes=30)


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
            problem = str(error).encode(errors="backslashreplace").decode()  # the store takes no surrogates of a path
        self.store.set(f"{phase}/{self.rank}", problem)
        found = (self.store.get(f"{phase}/{rank}").decode() for rank in range(self.size))
        problem = self.told(f"{phase}: problem", next(filter(None, found), "") if self.is_server else "")
        if problem:
            self.fail(problem)

    def fail(self, problem: str) -> NoReturn:
        """Called by every rank at the same point: gives the run up."""
        raise RunFailed(problem)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Where a run is given up in the block, the server tells the user why, and all exit with code 2."""
        try:
            yield
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
        self.store.set(f"gone/{self.rank}", "")
        if self.is_server:
            self.store.wait([f"gone/{rank}" for rank in range(self.size)])

    def wait(self, name: str) -> None:
        """Until every rank has come here."""
        self.store.set(f"{name}/{self.rank}", "")
        self.store.wait([f"{name}/{rank}" for rank in range(self.size)])

    def told(self, key: str, text: str) -> str:
        """The server's `text`, on every rank."""
        if self.is_server:
            self.store.set(f"told/{key}", text)
        return self.store.get(f"told/{key}").decode()

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
        return replace(self, size=size, hosts=((self.hosts[self.rank][0], size),) * size)

    def join(self, placement: Placement, timeout_seconds: float) -> None:
        """Make the process group, if this launch has none yet. Under NCCL, gloo still carries the host's tensors."""
        if dist.is_initialized():
            return
        nccl = placement.backend == "nccl"
        if placement.device.type == "cuda":
            torch.cuda.set_device(placement.device)
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if nccl else "gloo",
            store=dist.PrefixStore("group", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=placement.device if nccl else None,
        )
        dist.barrier()

    def leave(self) -> None:
        """Take the group down, if there is one. On success only: after an error, teardown could be what hangs."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def meet() -> World:
    """Find the other ranks of this launch: torchrun's, or none."""
    local_rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    store: dist.Store = dist.HashStore()
    rank, size = 0, 1
    if "RANK" in os.environ:
        store, rank, size = next(dist.rendezvous("env://", timeout=MEETING_TIMEOUT))
    store.set(f"host/{rank}", f"{torch.cuda.device_count()} {ranks}")
    hosts = [store.get(f"host/{other}").decode().split() for other in range(size)]
    return World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        hosts=tuple((int(gpus), int(ranks)) for gpus, ranks in hosts),
        store=store,
    )


def entry_point(main: Callable[[], None]) -> Callable[[], None]:
    """Have torchrun show the traceback of the first rank that failed, rather than its exit code alone."""
    return record(main)
