"""The profile of the communication: what it runs, what it says, and that kernel and profiler count the same."""

import gzip
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from run_folders import write_run
from test_interface import alone
from test_sweep import SHORT, state

from fedbsd_dist.commandline import load
from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.record import communication, exchange, profiled, traces, traffic
from fedbsd_dist.record.reading import Damaged
from fedbsd_dist.sweep import expand, placed
from fedbsd_dist.wire.channel import Channel
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World

ROOT = Path(__file__).parents[1]
COMM = "profile.comm=true"


# which runs


def methods(*arguments: str) -> list[tuple[str, Any]]:
    return [(point.name, point.config.method) for point in expand([COMM, *arguments], OPTIONS)]


def test_fedavg_is_run_beside_the_method_with_all_else_the_same():
    first, second = expand([COMM, "method.name=fedper", "train.lr=0.03", "seed=7", "method.mean=plain"], OPTIONS)
    assert (first.name, second.name) == ("fedavg-meanplain", "fedper-meanplain")
    assert (first.config.method.name, first.config.method.mean) == ("fedavg", "plain")
    assert first.config.model_copy(update={"method": second.config.method}) == second.config


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["fedavg", "fedbsd"]),
        (("method.name=fedavg",), ["fedavg"]),
        (("method.name=[fedper,fedavg]",), ["fedper", "fedavg"]),
        (("method.name=[fedper,scaffold]", "seed=[0,1]"), [
            f"{name}_seed{seed}" for name in ("fedavg", "fedper", "scaffold") for seed in (0, 1)
        ]),
        (("method=[{name: pfedme, lr: 0.01}]",), ["fedavg", "pfedme-lr0.01"]),
        (("method.name=fedprox", "method.mu=0.5"), ["fedavg", "fedprox-mu0.5"]),
        (("method.name=fedprox", "method.mu=[0.5,1.0]"), ["fedavg", "fedprox-mu0.5", "fedprox-mu1.0"]),
        (("method=[{name: fedavg, train.lr: 0.5}]",), ["fedavg", "fedavg-train.lr0.5"]),
    ],
)  # fmt: skip
def test_a_profile_has_fedavg_once(arguments, names):
    assert [name for name, _ in methods(*arguments)] == names


def test_a_method_of_ones_own_is_profiled_too(tmp_path, monkeypatch):
    (tmp_path / "own_fedper.py").write_text(
        "from fedbsd_dist.methods.fedper import FedPer, Options\n\nclass Mine(FedPer):\n    Options = Options\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (fedavg, own) = methods("method.factory=own_fedper:Mine")
    assert (fedavg[0], fedavg[1].name, fedavg[1].factory) == ("fedavg", "fedavg", "")
    assert own[1].factory == "own_fedper:Mine"


def test_the_runs_lie_below_the_run_directory_and_are_no_profiles_themselves():
    _, point = expand([COMM, "run.dir=runs/mine"], OPTIONS)
    assert point.config.sweep.dir == "runs/mine"
    config = placed(point, point.config.sweep.dir)
    assert config.run.dir == "runs/mine/fedbsd"
    assert (config.profile.comm, config.profile.counters, config.run.resume) == (False, True, "auto")
    # without a profile nothing of this happens
    (point,) = expand(["run.dir=runs/mine"], OPTIONS)
    assert (point.name, point.config) == ("", load(["run.dir=runs/mine"], OPTIONS))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("method.name=pfedme", "method.lr=[]"), r"method.lr=\[\]: an empty list"),
        (("run.dir=a", "sweep.dir=b"), "run.dir=a: the runs of a sweep have a folder each"),
        (("profile.target=1.5",), "profile.target=1.5: should be less than or equal to 1"),
        (("method.name=fedpre",), "no such method"),
        (("method=fedper",), "write method.name=fedper instead"),
    ],
)
def test_what_cannot_be_profiled_is_told(arguments, told):
    with pytest.raises(UserError, match=told):
        expand([COMM, *arguments], OPTIONS)


def test_a_profile_of_one_process(tmp_path, capsys):
    folder = tmp_path / "profile"
    arguments = (*SHORT, COMM, f"run.dir={folder}", "method.name=scaffold", "evaluate.every=1", "profile.target=0.2")
    assert alone(*arguments) == 0
    told = capsys.readouterr().out
    found = json.loads((folder / communication.JSON).read_text())
    fedavg, scaffold = found["methods"]
    assert (fedavg["method"], scaffold["method"], scaffold["baseline"]) == ("fedavg", "scaffold", "fedavg")
    # two numbers for one: the model and the control variate
    whole = 4 * sum(fedavg["runs"][0]["parameters"].values())
    assert sum(fedavg["upload_bytes"].values()) == whole
    assert fedavg["federated_bytes"] == 2 * 2 * 2 * whole  # rounds, clients, ways
    assert scaffold["federated_bytes"] == 2 * fedavg["federated_bytes"]
    assert scaffold["of_baseline"] == 2
    assert set(scaffold["upload_bytes"]) == {"backbone", "head", "control_backbone", "control_head"}
    assert scaffold["target"]["accuracy"] == 0.2
    assert [line["number"] for line in scaffold["runs"][0]["rounds"]] == [1, 2]
    # nothing crosses from one rank to itself
    assert {line["wire"] for line in scaffold["runs"][0]["rounds"]} == {0}
    markdown = (folder / communication.MARKDOWN).read_text()
    for text in (told, markdown):
        assert "scaffold: 100.00 % more bytes than fedavg in the same rounds: it saves nothing" in text
    assert f"({communication.PICTURE})" in markdown
    assert (folder / communication.PICTURE).read_bytes().startswith(b"<?xml")
    # they are the runs that they would be alone
    assert alone(*SHORT, f"run.dir={tmp_path / 'alone'}", "method.name=scaffold") == 0
    assert state(folder / "scaffold") == state(tmp_path / "alone")
    # again: the runs are there, and the report is made anew
    before = (folder / communication.JSON).read_text()
    (folder / communication.JSON).unlink()
    capsys.readouterr()
    assert alone(*arguments) == 0
    assert "finished already" in capsys.readouterr().out
    assert (folder / communication.JSON).read_text() == before


# what crossed, by three countings


WIDE = """
from torch import nn

def network(shape, num_classes):
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(256, 9000), nn.ReLU()), nn.Linear(9000, num_classes))
"""
BACKBONE, HEAD = 256 * 9000 + 9000, 9000 * 4 + 4


def own_network() -> bool:
    """Whether we may make a network namespace, where the loopback is nobody else's."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    return subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


@pytest.fixture(scope="module", params=[2, 3])
def measured(request, tmp_path_factory) -> tuple[int, Path, dict[str, Any]]:
    """A profile on so many ranks, alone on its loopback: its folder, and FedAvg's and FedPer's part of the JSON."""
    if not own_network():
        pytest.skip("no network namespace can be made here (root may): others send over the loopback too")
    size, path = request.param, tmp_path_factory.mktemp("measured")
    (path / "wide.py").write_text(WIDE)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={size}"),
        *("--master_addr=127.0.0.1", "--master_port=29500", "-m", "fedbsd_dist.profile"),
        *("method.name=fedper", f"run.dir={path / 'profile'}", "model.factory=wide:network", "data.num_clients=4"),
        "data.classes=[0,1,2,3]",  # fewer samples, less time
        *("train.rounds=3", "train.batch_size=128", "train.local_epochs=1", "train.participation=0.5"),
        *("evaluate.every=1", "evaluate.head_epochs=1", "checkpoint.every=0", "run.device=cpu", "profile.trace=true"),
    ]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command],
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "TMPDIR": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return size, path / "profile", json.loads((path / "profile" / communication.JSON).read_text())


def test_payload_and_wire_are_what_the_kernel_counts(measured):
    size, folder, found = measured
    for method, numel in zip(found["methods"], (BACKBONE + HEAD, BACKBONE), strict=True):
        (run,) = method["runs"]
        assert (run["num_ranks"], run["interfaces"].keys()) == (size, {"lo"})
        for line in run["rounds"]:
            # weight, diverged, two metrics, asked to stop, the clocks of every rank; and the tests of 4 clients
            few = sum(
                entry["elements_by_group"]["scalars"] for entry in ledger(folder / method["label"], line["number"])
            )
            assert 4 * numel < line["payload"] <= 4 * numel + 8 * few < 4.001 * numel
            assert line["wire"] == 2 * (size - 1) * line["payload"]
        wire, counted = (sum(line[of] for line in run["rounds"]) for of in ("wire", "counted"))
        # on a busy machine the rounds take long, and the ranks' signs of life are 1.1 kB a second of each
        life = 1.5e3 * size * sum(line["total_seconds"] for line in run["rounds"])
        assert wire < counted < 1.01 * wire + life
        assert run["interfaces"]["lo"] == counted


def test_the_profiler_saw_the_calls_and_elements_of_the_ledger(measured):
    size, folder, found = measured
    for method in found["methods"]:
        run = folder / method["label"]
        of_round = [entry["elements"] for entry in ledger(run, 2)]
        assert len(of_round) == 2
        for rank in range(size):
            seen = [
                sum(math.prod(shape) for shape in event["args"]["Input Dims"][0])
                for event in trace(run / f"traces/round-000002-rank-{rank}.json.gz")
                if event.get("cat") == "cpu_op" and event["name"].startswith("c10d::")
            ]
            assert seen == of_round
        assert method["runs"][0]["traced"] == {
            "calls": 2 * size,
            "elements": size * sum(of_round),
            "ledger_calls": 2 * size,
            "ledger_elements": size * sum(of_round),
        }
    text = (folder / communication.MARKDOWN).read_text()
    assert text.count("| yes |") == 2
    assert "NO" not in text


def test_seconds_of_the_collectives(measured):
    size, folder, found = measured
    for method in found["methods"]:
        (run,) = method["runs"]
        of = next(kind for kind in run["collectives"] if kind["purpose"] == "aggregate")
        seconds = sorted(entry["seconds"] for entry in ledger(folder / method["label"]) if entry["group"] != "-")
        payload = of["payload"] / 3
        assert (of["calls"], of["seconds"]) == (3, seconds[1])
        # of calls that were done when a test beside them was, nothing is known
        bandwidth = statistics.median(payload / second for second in seconds if second)
        assert of["algorithm_bandwidth"] == pytest.approx(bandwidth)
        assert of["bus_bandwidth"] == pytest.approx(2 * (size - 1) / size * bandwidth)
        assert run["exposed"] > 0
        # the last client's test covers some of the 9 MB, in every round
        assert 0 < run["overlapped"] < sum(line["total_seconds"] for line in run["rounds"])


def ledger(run: Path, round: int | None = None) -> list[dict]:
    """Of a round, or of all; without the digest of the state, which comes after the rounds."""
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["purpose"] != "state digest" and round in (None, line["round"])]


def trace(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


# what is hidden


NUMEL = 8_000_000


def _hide(world: World, late: float, work: float) -> tuple[float, float, float]:
    """Rank 0 comes `late`; rank 1 works meanwhile. Seconds that a rank overlapped and was exposed, and those of the
    next collective.
    """
    torch.set_num_threads(1)
    placement = world.place("cpu")
    world.join(placement)
    live, book = {"backbone": torch.ones(NUMEL)}, Ledger()
    channel = Channel(world, placement, book, shared=live, num_metrics=1, exact=False, weight_bound=1)
    channel.start()
    for number in range(3):
        channel.reduce(number, meanwhile=None)
    book.drain()
    if world.rank == 0:
        time.sleep(late)
    channel.reduce(3, meanwhile=(lambda: time.sleep(work)) if world.rank else None)
    channel.gather({world.rank: [1.0]}, 2, 1, round=3, purpose="evaluation")
    return channel.overlapped, book.entries[0].seconds, book.entries[1].seconds


def test_what_travels_while_a_rank_works_is_overlapped():
    (_, of_server, next_of_server), (overlapped, exposed, following) = run_ranks(2, _hide, 0.0, 2.0)
    # 32 MB take at least 5 ms, and arrive before the work is done
    assert 0.005 < overlapped < 1.5
    assert exposed < 0.5
    assert 0.005 < of_server < 1.5
    # what is left of the work is no communication of the next collective, on whichever rank
    assert next_of_server < 0.5
    assert following < 0.5


def test_before_the_last_rank_has_come_nothing_is_overlapped_and_all_after_it_is_exposed():
    (_, of_server, _), (overlapped, exposed, _) = run_ranks(2, _hide, 1.0, 0.3)
    assert overlapped == 0
    assert exposed > 0.005  # though the work was longer than that
    assert of_server > 0.005


# the counters


DEV = """Inter-|   Receive          |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets ...
    lo:     100       2    0    0    0     0          0         0      101       2    0    0    0     0       0   0
  eth0: 2000        2    0    0    0     0          0         0     2002       2    0    0    0     0       0     0
eth0.7: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
docker0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
 bond0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
enp5s0:3 0 0 0 0 0 0 0 33 0 0 0 0 0 0 0
"""


def test_cards_and_loopback_are_counted_once(tmp_path, monkeypatch):
    (tmp_path / "dev").write_text(DEV)
    counter = tmp_path / "infiniband/mlx5_0/ports/1/counters/port_xmit_data"
    counter.parent.mkdir(parents=True)
    counter.write_text("25\n")
    monkeypatch.setattr(traffic, "INTERFACES", tmp_path / "dev")
    monkeypatch.setattr(traffic, "RDMA", tmp_path / "infiniband")
    assert traffic.sent_bytes() == {"lo": 101, "eth0": 2002, "enp5s0": 33, "mlx5_0/1": 100}
    monkeypatch.setattr(traffic, "INTERFACES", tmp_path / "none")
    assert traffic.sent_bytes() == {"mlx5_0/1": 100}


def _count(world: World, run: Path, names: tuple[str, ...], resumed: int) -> list[float]:
    """Seconds in the collectives of each of two rounds."""
    config = RunConfig(method=load([], OPTIONS).method, profile={"counters": True})
    object.__setattr__(world, "names", names)
    placement = world.place("cpu")
    world.join(placement)
    live, book = {"backbone": torch.ones(10)}, Ledger()
    channel = Channel(world, placement, book, shared=live, num_metrics=1, exact=False, weight_bound=1)
    counts = traffic.Traffic(run, config, world, channel, num_hosted=3 * world.rank)
    counts.start(resumed)
    channel.start()
    seconds = []
    for number in range(resumed + 1, resumed + 3):
        channel.reduce(number)
        entries = book.drain()
        seconds.append(sum(entry.seconds for entry in entries))
        counts.round(number, entries)
    return seconds


def test_one_rank_a_host_reads_and_a_run_that_goes_on_keeps_what_was_before(tmp_path):
    before = run_ranks(3, _count, tmp_path, ("a", "b", "a"), 0)
    after = run_ranks(3, _count, tmp_path, ("a", "b", "a"), 1)
    for rank, (reads, clients) in enumerate([(True, 0), (True, 3), (False, 6)]):
        text = (tmp_path / "traffic" / traffic.file_name(rank)).read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["round"] for line in lines] == [1, 2, 3]
        assert all(bool(line["sent"]) == reads and line["clients"] == clients for line in lines)
        assert [line["exposed"] for line in lines] == [before[rank][0], *after[rank]]


def test_without_counters_nobody_meets_and_nothing_is_written(tmp_path):
    config = RunConfig(method=load([], OPTIONS).method)

    class Nobody:
        rank, names = 0, ("a",)

    counts = traffic.Traffic(tmp_path, config, Nobody(), None, 1)  # which have nothing to be asked for
    counts.start(0)
    counts.round(1, [])
    assert list(tmp_path.iterdir()) == []


# what it says


def finished(
    path: Path,
    method: str,
    up: int,
    upload: dict[str, int],
    seconds: float = 0.5,
    received: tuple[float, ...] = (0.2, 0.4, 0.8),
    **options: Any,
) -> Path:
    """Rounds on 4 ranks, of `up` bytes each way, and a payload of 4000 bytes that took `seconds`."""
    numel = sum(upload.values())
    write_run(path, method, received=received, accuracy={"received": received[-1]}, upload=upload, **options)
    summary = json.loads((path / "summary.json").read_text())
    summary |= {"world_size": 4, "backend": "gloo", "parameters": {"backbone": 90, "head": 10}}
    (path / "summary.json").write_text(json.dumps(summary))
    lines, entries = [], []
    for number, accuracy in enumerate(received, 1):
        lines.append(
            {
                "round": number,
                "accuracy": {"received": {"mean": accuracy}},
                "bytes": {"federated_up": up, "federated_down": up, "payload": 4000, "wire": 24000},
                "seconds": {"training": 2.0, "communication": seconds, "total": 5.0},
            }
        )
        entries.append(
            {
                "round": number,
                "purpose": "aggregate",
                "elements": numel + 7,
                "elements_by_group": {**upload, "scalars": 7},
                "payload_bytes": 4000,
                "wire_bytes": 24000,
                "seconds": seconds,
            }
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


ALL = {"backbone": 90, "head": 10}


def test_bandwidths_are_those_of_nccl_tests(tmp_path):
    found = exchange.read(finished(tmp_path / "run", "fedavg", 1000, ALL))
    (of,) = found.collectives
    assert (of.calls, of.payload, of.seconds) == (3, 12000, 0.5)
    assert of.algorithm_bandwidth == 8000  # bytes a second
    assert of.bus_bandwidth == 8000 * 2 * 3 / 4
    assert (found.seconds, found.share) == (1.5, 0.1)
    assert found.of_scalars == pytest.approx(7 / 107)
    assert (found.counted, found.beyond, found.exposed, found.overlapped, found.traced) == (None,) * 5


def test_with_a_codec_the_bandwidth_is_of_what_carries_most(tmp_path):
    """An all-gather is as large as what a rank has in the end: of 4 ranks 4 times what it hands in."""
    run = finished(tmp_path / "run", "fedavg", 1000, ALL)
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    gather = {"purpose": "aggregate, all-gather", "collective": "all-gather", "payload_bytes": 5000}
    lines += [{**line, **gather, "wire_bytes": 4 * 3 * 5000, "seconds": 2.0} for line in lines]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    of = exchange.read(run).main
    assert (of.purpose, of.algorithm_bandwidth, of.bus_bandwidth) == ("aggregate, all-gather", 10000, 7500)


def test_no_bandwidth_of_no_time(tmp_path):
    (of,) = exchange.read(finished(tmp_path / "run", "fedavg", 1000, ALL, seconds=0.0)).collectives
    assert (of.seconds, of.algorithm_bandwidth, of.bus_bandwidth) == (0, None, None)


@pytest.mark.parametrize(
    ("up", "upload", "told"),
    [
        (900, {"backbone": 90}, "m: 10.00 % fewer bytes than fedavg in the same rounds. Its head (10 of 100 "
         "parameters, 10.00 %) stays with the clients."),
        (995, {"backbone": 90}, "m: 0.50 % fewer bytes than fedavg in the same rounds, which is next to nothing."),
        (1000, ALL, "m: exactly as many bytes as fedavg in the same rounds: it saves nothing, unless it needs fewer. "
         "Its head (10 of 100 parameters, 10.00 %) crosses."),
        (2000, ALL, "m: 100.00 % more bytes than fedavg in the same rounds: it saves nothing, unless"),
    ],
)  # fmt: skip
def test_the_verdict_goes_whichever_way_the_bytes_go(tmp_path, up, upload, told):
    runs = [finished(tmp_path / "f", "fedavg", 1000, ALL), finished(tmp_path / "m", "m", up, upload)]
    text = communication.report(tmp_path, runs, target=0.0)
    assert told in text


def test_the_way_to_a_target(tmp_path):
    runs = [finished(tmp_path / "f", "fedavg", 1000, ALL), finished(tmp_path / "m", "m", 500, {"head": 10})]
    (fedavg, one), _ = profiled.load(runs)
    assert one.target(0.0) == pytest.approx(0.95 * 0.8)
    assert one.target(0.3) == 0.3
    (point,) = one.there(0.3)
    assert (point.round, point.bytes, point.seconds) == (2, 2000, 5.0)
    assert one.there(0.9) == []
    row = communication._way(one, 0.3)
    assert row == ["2", "2.0 kB", "50.00 %", "5.00 s"]
    assert communication._way(one, 0.9) == ["not reached", "-", "-", "-"]
    assert fedavg.of_fedavg == 1


def test_a_mean_way_is_of_all_seeds(tmp_path):
    runs = [
        finished(tmp_path / str(seed), "fedavg", 1000, ALL, received=received, seed=seed)
        for seed, received in enumerate([(0.2, 0.4, 0.8), (0.1, 0.2, 0.6)])
    ]
    ((one,), _) = profiled.load(runs)
    assert [point.round for point in one.there(0.4)] == [2, 3]
    assert communication._way(one, 0.4) == ["2.5", "5.0 kB", "100.00 %", "6.25 s"]
    assert one.there(0.7) == []  # for the mean of the quick one alone would flatter
    assert communication._way(one, 0.7) == ["reached by 1 of 2 seeds", "-", "-", "-"]


def test_a_method_is_compared_with_the_fedavg_of_its_own_settings(tmp_path):
    def of(name: str, method: str, up: int, alpha: float) -> Path:
        return finished(tmp_path / name, method, up, ALL, settings={"data": {"alpha": alpha}})

    runs = [of("a", "fedavg", 1000, 0.1), of("b", "fedavg", 4000, 0.5), of("c", "m", 2000, 0.5), of("d", "m", 1, 0.9)]
    found, problems = profiled.load(runs)
    shares = {one.group.runs[0].path.name: one.of_fedavg for one in found}
    assert shares == {"a": 1.0, "b": 1.0, "c": 0.5, "d": None}
    assert problems == []
    assert "there is no run of fedavg with the same settings" in communication.report(tmp_path, runs, 0.0)


def test_counters_and_their_gaps(tmp_path):
    run = finished(tmp_path / "run", "fedavg", 1000, ALL)
    (run / "traffic").mkdir()

    def write(rank: int, clients: int, sent: list[dict[str, int]]) -> None:
        lines = [
            {"round": number, "clients": clients, "exposed": 0.25, "overlapped": 0.5 * clients, "sent": of}
            for number, of in enumerate(sent, 1)
        ]
        (run / "traffic" / traffic.file_name(rank)).write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(0, 0, [{"lo": 1000, "eth0": 11000}] * 3)
    write(1, 2, [{"eth0": 13200}] * 3)  # another host
    write(2, 4, [{}] * 3)
    write(3, 0, [{}] * 3)
    found = exchange.read(run)
    assert [line.counted for line in found.rounds] == [25200] * 3
    assert found.interfaces == {"lo": 3000, "eth0": 72600}
    assert found.beyond == pytest.approx(0.05)
    assert found.exposed == 0.75
    assert found.overlapped == pytest.approx((3 * 1.0 + 3 * 2.0) / 2)
    write(0, 0, [{"lo": 1000, "eth0": 11000}] * 2)
    write(1, 2, [{"eth0": 13200}] * 2)
    assert exchange.read(run).counted is None  # of all rounds
    (run / "traffic" / traffic.file_name(2)).write_text("{")
    with pytest.raises(Damaged, match="rank-000002"):
        exchange.read(run)


def test_a_damaged_run_is_named_and_left_out(tmp_path):
    runs = [finished(tmp_path / "f", "fedavg", 1000, ALL), finished(tmp_path / "m", "m", 500, ALL)]
    (tmp_path / "m/traces").mkdir()
    (tmp_path / "m/traces/round-000001-rank-0.json.gz").write_bytes(gzip.compress(b"[]"))
    text = communication.report(tmp_path, runs, 0.0)
    assert f"left out: {tmp_path / 'm'}: traces: not as a run writes it" in text
    (tmp_path / "f/ledger.jsonl").unlink()
    with pytest.raises(UserError, match="no finished run to compare"):
        communication.report(tmp_path, runs, 0.0)


def test_a_trace_that_differs_is_called_out(tmp_path):
    run = finished(tmp_path / "f", "fedavg", 1000, ALL)
    (run / "traces").mkdir()

    def write(*shapes: list[list[int]]) -> None:
        events = [{"name": "c10d::allreduce_", "args": {"Input Dims": [of, [], []]}} for of in shapes]
        events += [{"name": "c10d::barrier", "args": {"Input Dims": [[], []]}}]
        content = json.dumps({"traceEvents": [{"name": "aten::add"}, *events]}).encode()
        (run / "traces/round-000002-rank-0.json.gz").write_bytes(gzip.compress(content))

    write([[107]])
    assert "yes" in communication.report(tmp_path, [run], 0.0)
    write([[50, 2], [7]])  # of two tensors
    assert "yes" in communication.report(tmp_path, [run], 0.0)
    write([[106]])
    assert " NO" in communication.report(tmp_path, [run], 0.0)
    write([[100]], [[7]])
    assert " NO" in communication.report(tmp_path, [run], 0.0)


def _other_collectives(world: World, path: Path) -> None:
    world.join(world.place("cpu"))
    with torch.profiler.profile(record_shapes=True) as taken:
        dist.all_to_all_single(torch.zeros(6, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8))
        dist.all_reduce(torch.zeros(2, 5))
        dist.all_gather([torch.zeros(7), torch.zeros(7)], torch.zeros(7))
    if world.is_server:
        taken.export_chrome_trace(str(path))


def test_every_kind_of_collective_is_found_in_a_trace(tmp_path):
    run_ranks(2, _other_collectives, tmp_path / "trace.json")
    (tmp_path / "trace.json.gz").write_bytes(gzip.compress((tmp_path / "trace.json").read_bytes()))
    assert traces.collectives(tmp_path / "trace.json.gz") == [6, 10, 7]
