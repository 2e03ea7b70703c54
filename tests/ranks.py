"""Ranks for tests: processes forked from a server that has imported torch once, meeting over gloo as under torchrun."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedbsd_dist.wire.world import World

# the fork server imports with PYTHONPATH alone: some Pythons do not hand it sys.path
os.environ["PYTHONPATH"] = os.pathsep.join(str(path) for path in (Path(__file__).parent, Path(__file__).parents[1]))
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fedbsd_dist.main", "ranks", "pytest", "torch.utils.tensorboard"])
TIMEOUT = 120
"""Seconds for all ranks of one call."""
_FIRST = 20_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(_FIRST, _FIRST + 1_000))


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(world, *arguments)` on every rank of a world of `size`; what each returned, by rank.

    A rank that exits gives its exit code as ("exit", code); one that raises fails the test with its traceback.
    Results are pickled: tensors as NumPy arrays or lists, for their memory goes with the process.
    """
    pipes, processes = _start(size, function, arguments)
    outcomes = _answers(pipes, processes)
    for process in processes:
        process.join(10)
        process.kill()
    return [outcome if outcome[0] == "exit" else outcome[1] for outcome in outcomes]


def free_port() -> int:
    """A port that nobody listens at. Not one that the system chooses: it may give that away again, to a connection or
    to another worker of pytest, before the one who asked for it listens.
    """
    return next(port for port in _PORTS if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def start_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The processes of `run_ranks`, which are not waited for."""
    return _start(size, function, arguments)[1]


def _start(size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    port, pipes, processes = free_port(), [], []
    for rank in range(size):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_rank, args=(sender, rank, size, port, function, arguments), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    return pipes, processes


def _answers(pipes: list[Any], processes: list[Any]) -> list[Any]:
    """One of every rank; the first error is raised without waiting for the ranks that wait for the failed one."""
    outcomes: dict[Any, Any] = {}
    deadline = time.monotonic() + TIMEOUT
    while len(outcomes) < len(pipes):
        ready = multiprocessing.connection.wait(set(pipes) - outcomes.keys(), deadline - time.monotonic())
        assert ready, f"no answer in {TIMEOUT} s from rank(s) {[r for r, p in enumerate(pipes) if p not in outcomes]}"
        for pipe in ready:
            try:
                outcomes[pipe] = pipe.recv()
            except EOFError:
                process = processes[pipes.index(pipe)]
                process.join(10)
                # its watch has ended it, or it was killed
                died = ("error", f"died without a word, exit code {process.exitcode}")
                outcomes[pipe] = ("exit", process.exitcode) if process.exitcode == 2 else died
            kind, value = outcomes[pipe]
            assert kind != "error", f"rank {pipes.index(pipe)}: {value}"
    return [outcomes[pipe] for pipe in pipes]


def _rank(pipe: Any, rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from fedbsd_dist.wire.world import meet

    try:
        world = meet()
        result = function(world, *arguments)
        # rank 0 holds the store: it goes last
        world.store.set(f"done/{rank}", "")
        if rank == 0:
            for other in range(size):
                world.store.get(f"done/{other}")
        pipe.send(("result", result))
    except SystemExit as leaving:
        pipe.send(("exit", leaving.code))
        raise
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def _run(world: World, arguments: list[str]) -> None:
    import torch

    from fedbsd_dist.main import run

    torch.set_num_threads(1)
    run(arguments, world)


def states(federation: Any) -> dict[int, dict[str, Any]]:
    """Client -> group -> the private state of the clients of this rank, to be read or changed in place."""
    private = federation.private
    return {client: private.room(client) for client in private.clients if private.start}


def federate(run_dir: Path, size: int, *overrides: str) -> list[Any]:
    """A whole run on `size` ranks into `run_dir`; None for every rank, or ("exit", code)."""
    return run_ranks(size, _run, [f"run.dir={run_dir}", *overrides])
