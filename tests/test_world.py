"""Who is here, on which device, and how a problem of any rank is told: once, and by all leaving."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from fedbsd_dist.errors import RunFailed, UserError
from fedbsd_dist.wire.world import Placement, World, _arrive, meet


def alone(*hosts: tuple[int, int], rank: int = 0, local_rank: int = 0) -> World:
    """Rank `rank` of a world that is only described: (GPUs, ranks) on the host of every rank."""
    return World(rank=rank, size=len(hosts), local_rank=local_rank, hosts=hosts, store=dist.HashStore())


def _speak(world: World, folder: Path, problems: dict[int, str]) -> tuple[int | None, str, list[str]]:
    """(exit code, what was written to standard error, phases that this rank went through)."""
    passed = []
    with (folder / str(world.rank)).open("w") as file:
        os.dup2(file.fileno(), 2)
        try:
            with world.ending():
                with world.one_voice("first"):
                    passed.append("first")
                with world.one_voice("second"):
                    if world.rank in problems:
                        raise UserError(problems[world.rank])
                    passed.append("second")
                passed.append("after")
        except SystemExit as leaving:
            return leaving.code, (folder / str(world.rank)).read_text(), passed
    return None, (folder / str(world.rank)).read_text(), passed


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ({0: "train.lr=-1: must be positive."}, "train.lr=-1: must be positive."),
        ({2: "rank 2 has ünusual files.\nMend them."}, "rank 2 has ünusual files.\nMend them."),
        ({3: "third", 1: "first"}, "first"),
        ({0: "same", 1: "same", 2: "same", 3: "same"}, "same"),
    ],
)
def test_a_problem_of_any_rank_is_told_once_and_ends_all(tmp_path, problems, told):
    outcomes = run_ranks(4, _speak, tmp_path, problems)
    assert [code for code, _, _ in outcomes] == [2, 2, 2, 2]
    assert [text for _, text, _ in outcomes] == [f"fedbsd_dist: {told}\n", "", "", ""]
    for rank, (_, _, passed) in enumerate(outcomes):
        assert passed == (["first"] if rank in problems else ["first", "second"])


def test_without_a_problem_nothing_is_said_and_all_go_on(tmp_path):
    assert run_ranks(3, _speak, tmp_path, {}) == [(None, "", ["first", "second", "after"])] * 3


def _break(world: World) -> str:
    try:
        with world.one_voice("plan"):
            raise KeyError("a mistake in the program")
    except KeyError as error:
        return str(error)
    return "swallowed"


def test_a_mistake_in_the_program_keeps_its_traceback():
    assert run_ranks(1, _break) == ["'a mistake in the program'"]


def _fall(world: World) -> bool:
    try:
        with world.ending():
            raise KeyError("a mistake in the program")
    except KeyError:
        return signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    return False


def _locked_out(world: World, folder: str) -> str:
    try:
        with world.one_voice("plan"):
            raise PermissionError(13, "Permission denied", f"{folder}/data")
    except RunFailed as failure:
        return failure.problem
    return ""


def test_what_may_not_be_read_is_told_as_the_users_to_mend():
    told = "a/data: Permission denied. Give this user access, or choose another path."
    assert run_ranks(2, _locked_out, "a") == [told] * 2


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_half_a_launch_is_told_in_a_line(name):
    facts = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29417"} | {name: "x"}
    command = [sys.executable, "-m", "fedbsd_dist.main", "--check"]
    done = subprocess.run(command, env={**os.environ, **facts}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "found not all ranks at 127.0.0.1:29417" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rank_that_falls_has_time_for_its_traceback():
    """torchrun ends it as soon as others have gone, which they do first."""
    assert run_ranks(1, _fall) == [True]


def _tell(world: World) -> list[str]:
    return [world.told("key", f"rank {world.rank}: ü\n"), world.told("empty", ""), world.told("other", str(world.rank))]


def test_told_is_the_servers_text_on_every_rank():
    assert run_ranks(3, _tell) == [["rank 0: ü\n", "", "0"]] * 3


def _say(world: World, folder: Path) -> str:
    with (folder / str(world.rank)).open("w") as file:
        os.dup2(file.fileno(), 1)
        world.say(f"from rank {world.rank}")
    return (folder / str(world.rank)).read_text()


def test_only_the_server_speaks(tmp_path):
    assert run_ranks(3, _say, tmp_path) == ["from rank 0\n", "", ""]


def _meet(world: World) -> tuple:
    return world.rank, world.size, world.local_rank, world.is_server, world.hosts


def test_ranks_know_each_other():
    hosts = ((torch.cuda.device_count(), 3),) * 3
    assert run_ranks(3, _meet) == [(rank, 3, rank, rank == 0, hosts) for rank in range(3)]


def _alone(_: World) -> tuple:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    world = meet()
    assert not dist.is_initialized()
    with world.one_voice("plan"):
        pass
    world.join(world.place("cpu"))
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    assert tensor.tolist() == [1, 1, 1]
    world.leave()
    assert not dist.is_initialized()
    return (*_meet(world), world.told("key", "text"))


def test_a_process_that_nobody_launched_is_a_world_of_one():
    assert run_ranks(1, _alone) == [(0, 1, 0, True, ((torch.cuda.device_count(), 1),), "text")]


FEWER = ((8, 8),) * 8 + ((3, 8),) * 8
"""Two hosts of 8 ranks; the second has 3 GPUs."""
OWN, SHARED = "each rank has its own GPU", "ranks share"


@pytest.mark.parametrize(
    ("hosts", "rank", "local_rank", "asked", "device", "backend", "why"),
    [
        (((0, 1),), 0, 0, "auto", "cpu", "gloo", "no GPU here"),
        (((0, 1),), 0, 0, "cpu", "cpu", "gloo", "asked for"),
        (((8, 8),) * 8, 3, 3, "cpu", "cpu", "gloo", "asked for"),
        (((1, 1),), 0, 0, "auto", "cuda:0", "nccl", OWN),
        *((((8, 8),) * 8, rank, rank, "auto", f"cuda:{rank}", "nccl", OWN) for rank in (0, 7)),
        (((8, 8),) * 8, 5, 5, "cuda", "cuda:5", "nccl", OWN),
        (((8, 4),) * 4, 3, 3, "auto", "cuda:3", "nccl", OWN),
        *((((1, 8),) * 8, rank, rank, "auto", "cuda:0", "gloo", SHARED) for rank in (0, 7)),
        *((((3, 8),) * 8, rank, rank, "cuda", f"cuda:{rank % 3}", "gloo", SHARED) for rank in (2, 3, 7)),
        # the same backend for all, although the first host could do without sharing
        (FEWER, 2, 2, "auto", "cuda:2", "gloo", ""),
        (FEWER, 11, 3, "auto", "cuda:0", "gloo", SHARED),
        # a host without GPUs beside one with enough of them
        (((1, 1), (0, 1)), 0, 0, "auto", "cuda:0", "gloo", ""),
        (((1, 1), (0, 1)), 1, 0, "auto", "cpu", "gloo", "no GPU here"),
    ],
)
def test_device_and_backend_follow_from_the_hosts(hosts, rank, local_rank, asked, device, backend, why):
    placement = alone(*hosts, rank=rank, local_rank=local_rank).place(asked)
    assert placement == Placement(device=torch.device(device), backend=backend, reason=placement.reason)
    assert why in placement.reason


@pytest.mark.parametrize("hosts", [((0, 1),), ((8, 1), (0, 1))])
def test_cuda_without_a_gpu_is_refused_on_every_rank(hosts):
    for rank in range(len(hosts)):
        with pytest.raises(UserError, match=re.escape("run.device=cuda")):
            alone(*hosts, rank=rank).place("cuda")


def test_a_command_line_that_is_wrong_ends_with_one_line_and_code_2(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    arguments = [sys.executable, "-m", "fedbsd_dist.main", f"run.dir={tmp_path / 'run'}", "train.lr=-1"]
    root = Path(__file__).parents[1]
    done = subprocess.run(arguments, cwd=root, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"fedbsd_dist: train\.lr=-1: .*\n", done.stderr)
    assert not (tmp_path / "run").exists()


def test_ranks_that_are_started_again_hear_nothing_of_before(monkeypatch) -> None:
    """In torchrun's store, which stays: also rank 1, which looks before rank 0 has come."""
    monkeypatch.setattr("fedbsd_dist.wire.world.ARRIVAL", timedelta(seconds=10))
    store = dist.HashStore()

    def start(rank: int, wait: float, fact: str) -> tuple[dist.Store, list[list[str]]]:
        time.sleep(wait)
        return _arrive(store, rank, 2, [fact])

    for fact in ("first", "second"):
        with ThreadPoolExecutor(2) as pool:
            (server, seen), (client, seen_too) = pool.map(start, (0, 1), (0.2, 0.0), (fact, fact))
        assert seen == seen_too == [[fact], [fact]]
        assert not client.check(["said"])
        server.set("said", "")
        assert client.check(["said"])
