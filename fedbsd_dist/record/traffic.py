"""What left the hosts' network interfaces in every round, as the kernel counted it; and what each rank hid of its
communication behind work. A file a rank, so that nothing of this crosses.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fedbsd_dist.config import RunConfig
from fedbsd_dist.record.directory import TRAFFIC, read_lines
from fedbsd_dist.record.files import telling, write_atomically
from fedbsd_dist.wire.channel import Channel
from fedbsd_dist.wire.ledger import Entry
from fedbsd_dist.wire.world import World

INTERFACES = Path("/proc/net/dev")
"""Of the network namespace of the process that reads it, as /sys/class/net need not be."""
COUNTED = re.compile(r"lo|(eth|en|ib)[^.]*")
"""Loopback and cards: bridges, bonds, VLANs and tunnels would count what goes through a card once more."""
RDMA = Path("/sys/class/infiniband")
WORD = 4
"""Bytes, in which InfiniBand's counters count."""


class Traffic:
    """The counts of one rank; none, and no meetings, where `profile.counters` is false."""

    def __init__(self, run: Path, config: RunConfig, world: World, channel: Channel, num_hosted: int) -> None:
        """`run`: the run directory. `num_hosted`: clients of this rank."""
        self._path, self._world, self._channel = run / TRAFFIC / file_name(world.rank), world, channel
        self._on, self._num_hosted = config.profile.counters, num_hosted
        self._reads = world.names.index(world.names[world.rank]) == world.rank  # one rank a host
        self._sent: dict[str, int] = {}
        self._overlapped = 0.0

    def start(self, resumed: int) -> None:
        """Before the first round, or the one after round `resumed`; every rank calls it. Later lines are dropped."""
        if not self._on:
            return
        with telling(self._path.parent.parent):
            self._path.parent.mkdir(exist_ok=True)
            kept = [line for line in read_lines(self._path) if line["round"] <= resumed]
            write_atomically(self._path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        self._sent = self._read(resumed)

    def round(self, number: int, entries: Sequence[Entry]) -> None:
        """After a round; every rank calls it. `entries`: the collectives of the round, as this rank saw them."""
        if not self._on:
            return
        before, self._sent = self._sent, self._read(number)
        overlapped, self._overlapped = self._channel.overlapped - self._overlapped, self._channel.overlapped
        line = {
            "round": number,
            "clients": self._num_hosted,
            "exposed": sum(entry.seconds for entry in entries),
            "overlapped": overlapped,
            "sent": {name: count - before[name] for name, count in self._sent.items() if name in before},
        }
        # not waited for until it is on disk, as the record is: the other ranks would wait too
        with telling(self._path.parent.parent), self._path.open("a") as file:
            file.write(f"{json.dumps(line)}\n")

    def _read(self, number: int) -> dict[str, int]:
        """Between two meetings: nobody sends any more when it is read, and nobody again."""
        self._world.wait(f"counters after round {number}")
        sent = sent_bytes() if self._reads else {}
        self._world.wait(f"counters after round {number} read")
        return sent


def file_name(rank: int) -> str:
    """Below TRAFFIC."""
    return f"rank-{rank:06d}.jsonl"


def sent_bytes() -> dict[str, int]:
    """Interface -> bytes sent since it is up, headers included; none where the system does not say. Over loopback a
    byte is sent once, as it is received once.
    """
    found = {}
    if INTERFACES.exists():
        for line in INTERFACES.read_text().splitlines()[2:]:
            name, _, columns = line.partition(":")
            if COUNTED.fullmatch(name.strip()):
                found[name.strip()] = int(columns.split()[8])  # eight columns of what came, then of what went
    for counter in RDMA.glob("*/ports/*/counters/port_xmit_data"):  # it passes by the kernel's network
        device, _, port = counter.parts[-5:-2]
        found[f"{device}/{port}"] = WORD * int(counter.read_text())
    return found
