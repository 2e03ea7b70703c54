"""Does the link model predict what real, shaped links take? As root, on Linux.

    python tests/benchmarks/links.py [--quick] [RANKS ...]

One process of the runner in a network namespace each, with `tc ... tbf` on every rank's own link. Without latency the
namespaces are joined by veth pairs and a bridge, shaped both ways. With latency they are joined by TUN devices, shaped
on the way out, between which this process hands packets on when they are due: the kernel's netem would do it, but many
kernels are built without it.

Timed are the channel's all-reduces, as the ledger has them: back to back, where TCP's connections stay warm; with idle
seconds between, where they start anew each time; and in whole runs of fedbsd_dist.main, with their training between.
Predicted by `topologies.ring` from bandwidth, latency and bytes; nothing is fitted. The bound is on the larger of the
two quotients. Bandwidths are such that the links take the time and not two processors; what is timed goes before other
work of the machine (SCHED_FIFO), but for the whole runs, whose training would leave none. Congestion control is Reno,
whose start-up is CUBIC's as well; BBR does not start anew after idling.
"""

import contextlib
import fcntl
import json
import math
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

from rows import Row, cannot, main, measured

from fedbsd_dist.topologies import WINDOW, Link, Traffic, ring

SECONDS = 700, 120
"""It takes, whole and quick."""

GOAL = 10
BOUND = 1.15
PARAMETERS = (85_376, 582_026, 1_300_000)
"""Of the digits' model, of the 4-layer CNN, and of one whose parts have more than two segments on 2 ranks."""
SETTINGS = ((20, 0), (100, 0), (50, 5), (50, 20), (20, 20))
"""Mbit/s of every link, and milliseconds from one rank to another."""
SUBNET = "10.77.0"
PORT = 29_777
BURST = 4000
"""Bytes that a link sends at once after it was idle: as few as hold a packet, for the model has none."""
IDLE = 5
"""Seconds after which TCP has forgotten what a connection could carry."""
SEGMENT = 1448
"""Bytes of data in a packet of 1500."""
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000

WORKER = """
import json, os, sys, time
import torch
from fedbsd_dist.wire.channel import Channel
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import meet
torch.set_num_threads(1)
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # a link has no wait for a processor
world = meet()
placement = world.place("cpu")
world.join(placement)
runs, idle, *sizes = json.loads(sys.argv[1])
for parameters in sizes:
    shared, ledger, losses = {"backbone": torch.rand(parameters)}, Ledger(), torch.zeros(2)
    channel = Channel(world, placement, ledger, shared=shared, num_metrics=2, exact=False, weight_bound=world.size)
    channel.start()
    for number in range(runs + 1):
        channel.add(shared, 1.0, losses)
        time.sleep(idle if number else 0)
        channel.reduce(number)
    entries = ledger.drain()[1:]  # the first one connects
    world.say(json.dumps([entries[0].payload_bytes, [entry.seconds for entry in entries]]))
world.leave()
world.part()
"""


@dataclass(frozen=True)
class Wires:
    """Namespaces joined by shaped links."""

    names: Sequence[str]
    mbit: float
    milliseconds: float
    """From one rank to another."""

    def predicted(self, payload: int, window: float = WINDOW) -> float:
        """Seconds of an all-reduce. `window`: as of `Link`."""
        packet = 1500 if self.milliseconds else 1514  # veth's have an Ethernet header
        rate = self.mbit * 1e6 / 8 * SEGMENT / packet
        link = Link(latency=self.milliseconds / 2000, up=rate, down=rate, window=window)
        return ring(len(self.names), Traffic(upload=payload, download=payload), link, link)

    def reduced(self, runs: int, idle: float, parameters: Sequence[int]) -> Iterator[tuple[int, list[float]]]:
        """(bytes, seconds by the ledger of all-reduces with `idle` seconds between) for each number of parameters."""
        for line in self.run("-c", WORKER, json.dumps([runs, idle, *parameters])).splitlines():
            payload, seconds = json.loads(line)
            yield payload, seconds

    def run(self, *arguments: str) -> str:
        """`python ARGUMENTS` as every rank; what rank 0 says."""
        processes = []
        for rank, name in enumerate(self.names):
            environment = {
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": str(len(self.names))},
                **{"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(len(self.names))},
                **{"MASTER_ADDR": f"{SUBNET}.1", "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": "link0"},
                **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            }
            command = ["ip", "netns", "exec", name, sys.executable, *arguments]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
        try:
            said = [process.communicate(timeout=500)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            raise SystemExit(f"exit codes {[process.returncode for process in processes]}")
        return said[0]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def shape(mbit: float, device: str, *inside: str) -> None:
    shaper = f"root tbf rate {mbit}mbit burst {BURST} latency 2s".split()
    subprocess.run([*inside, "tc", "qdisc", "add", "dev", device, *shaper], check=True)


@contextlib.contextmanager
def wires(ranks: int, mbit: float, milliseconds: float) -> Iterator[Wires]:
    """Links of one kind, for as long as the block."""
    own = f"lk{os.getpid()}"
    names = [f"{own}-{rank}" for rank in range(ranks)]
    with contextlib.ExitStack() as stack:
        if not milliseconds:
            ip("link", "add", f"{own}br", "type", "bridge")
            stack.callback(ip, "link", "del", f"{own}br")
            ip("link", "set", f"{own}br", "up")
        devices = []
        for rank, name in enumerate(names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            end = f"{own}p{rank}"
            if milliseconds:
                devices.append(tun(end))
                stack.callback(os.close, devices[-1])
                ip("link", "set", end, "netns", name)
                ip("-n", name, "link", "set", end, "name", "link0", "txqueuelen", "10000")
            else:
                ip("link", "add", end, "type", "veth", "peer", "name", "link0", "netns", name)
                stack.callback(ip, "link", "del", end)  # at once: a namespace goes some time after it is deleted
                ip("link", "set", end, "master", f"{own}br", "up")
                shape(mbit, end)
            ip("-n", name, "addr", "add", f"{SUBNET}.{rank + 1}/24", "dev", "link0")
            ip("-n", name, "link", "set", "link0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            shape(mbit, "link0", "ip", "netns", "exec", name)
            command = ["ip", "netns", "exec", name, "sysctl", "-q", "net.ipv4.tcp_congestion_control=reno"]
            subprocess.run(command, check=True)
        if milliseconds:
            stack.enter_context(handing_on(devices, milliseconds / 1000))
        yield Wires(names, mbit, milliseconds)


def tun(name: str) -> int:
    """A file whose other side is the network device of that name: a packet a read or write."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return file


@contextlib.contextmanager
def handing_on(devices: Sequence[int], delay: float) -> Iterator[None]:
    """A thread takes every packet to the device of the rank that it is for, `delay` seconds after it came."""
    over = threading.Event()

    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))  # of this thread: packets go on in time
        waiting: deque[tuple[float, int, bytes]] = deque()
        poll = select.poll()
        for device in devices:
            poll.register(device, select.POLLIN)
        while not over.is_set():
            while waiting and waiting[0][0] <= time.monotonic():
                _, target, packet = waiting.popleft()
                with contextlib.suppress(OSError):  # an interface that is not up yet
                    os.write(target, packet)
            left = waiting[0][0] - time.monotonic() if waiting else 0.1
            for device, _ in poll.poll(max(0, int(1000 * left))):  # below a millisecond without waiting
                with contextlib.suppress(OSError):
                    packet = os.read(device, 2**16)
                    rank = packet[19] - 1  # the end of an IPv4 packet's target address
                    if packet[0] >> 4 == 4 and rank < len(devices):
                        waiting.append((time.monotonic() + delay, devices[rank], packet))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def compared(what: str, predicted: float, seconds: Sequence[float]) -> Iterator[Row]:
    """Two rows: what was measured, and how far from it the prediction is."""
    yield measured(GOAL, f"{what}, measured ({1000 * predicted:.4g} ms predicted)", [1000 * of for of in seconds], "ms")
    yield measured(GOAL, f"{what}, off by", [max(predicted / of, of / predicted) for of in seconds], bound=BOUND)


def rows(quick: bool, *arguments: str) -> Iterator[Row]:
    """For each number of ranks: all-reduces in each setting, and whole runs."""
    if os.geteuid() or not shutil.which("tc") or not Path("/dev/net/tun").exists():
        yield cannot(GOAL, "shaped links", "needs root, tc and /dev/net/tun: run it as root on Linux with iproute2.")
        return
    runs = 5 if quick else 9
    for ranks in map(int, arguments or (("2", "3") if quick else ("2", "3", "4"))):
        for mbit, milliseconds in SETTINGS[1:4:2] if quick else SETTINGS:
            with wires(ranks, mbit, milliseconds) as joined:
                where = f"{ranks} ranks, {mbit} Mbit/s, {milliseconds} ms"
                for payload, seconds in joined.reduced(runs, 0, PARAMETERS[: 2 if quick else 3]):
                    what = f"{where}, {payload / 1e6:.3g} MB"
                    yield from compared(what, joined.predicted(payload, math.inf), seconds)
                for payload, seconds in joined.reduced(5, IDLE, PARAMETERS[:1]) if milliseconds == 20 else ():
                    what = f"{where}, {payload / 1e6:.3g} MB, idle before"
                    yield from compared(what, joined.predicted(payload), seconds)
        yield from whole_run(ranks, 50, 20, 5 if quick else 9)


def whole_run(ranks: int, mbit: float, milliseconds: float, rounds: int) -> Iterator[Row]:
    """The aggregates of a run, by its ledger; the first round's, which connects, left out."""
    with tempfile.TemporaryDirectory() as folder, wires(ranks, mbit, milliseconds) as joined:
        options = [f"run.dir={folder}/run", f"train.rounds={rounds + 1}", "evaluate.every=0", "evaluate.head_epochs=1"]
        # a large model that learns fast, for long enough that TCP forgets
        joined.run("-m", "fedbsd_dist.main", *options, "model.name=mlp", "train.local_epochs=10")
        entries = [json.loads(line) for line in Path(folder, "run", "ledger.jsonl").read_text().splitlines()]
    aggregates = [entry for entry in entries if entry["purpose"] == "aggregate" and entry["round"] > 1]
    payload = aggregates[0]["payload_bytes"]
    what = f"a run's aggregates, {ranks} ranks, {mbit} Mbit/s, {milliseconds} ms, {payload / 1e6:.3g} MB"
    yield from compared(what, joined.predicted(payload), [entry["seconds"] for entry in aggregates])


if __name__ == "__main__":
    main(rows)
