"""The memory that there is: of this process's host, and of its GPU."""

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def own_bytes() -> float:
    """What this process holds in pages of its own, no file's; where the system does not tell, its peak with them."""
    if not Path("/proc/self/status").exists():
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024.0 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """What processes here can still take: of the host's memory, and of the limit of every control group that they are
    in, of which files' pages can be dropped. Infinite where the system says neither.
    """
    rooms = []
    if (proc / "meminfo").exists():
        fields = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        rooms.append(1024.0 * int(fields["MemAvailable"].split()[0]))
    lines = (proc / "self/cgroup").read_text().splitlines() if (proc / "self/cgroup").exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            top = groups / controllers
            here = top / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if not controllers:
                names = ("memory.max", "memory.current", "inactive_file")
            rooms += [_room(folder, *names) for folder in (here, *here.parents) if folder.is_relative_to(top)]
    return min(rooms, default=float("inf"))


def _room(group: Path, limit: str, usage: str, droppable: str) -> float:
    try:
        most = float((group / limit).read_text().replace("max", "inf"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - int((group / usage).read_text()) + int(statistics[droppable])
    except (OSError, KeyError):  # the group is not to be seen from here, or has no limit
        return float("inf")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The memory of a host, or of one of its GPUs."""

    name: str
    ranks: Sequence[int]
    """Those that share it."""
    room: float
    """Bytes that they have there in all, what they hold already included."""
    is_device: bool = False


def room(device: "torch.device") -> list[float]:
    """Bytes that this process can see now: available on its host, held by it there; the same of its GPU, or none."""
    host = [available_bytes(), own_bytes()]
    if device.type == "cpu":
        return host
    import torch  # which who reads samples alone does without

    return [*host, torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)]


def places(names: Sequence[str], gpus: Sequence[int], rooms: Sequence[Sequence[float]]) -> list[Place]:
    """Of a launch: `names` of every rank's host, how many `gpus` there, and what each rank says as `room`.

    A rank of a launch that is only imagined says nothing: it holds nothing, and there is no less room for it.
    """
    found = []
    for name in dict.fromkeys(names):
        ranks = [rank for rank, other in enumerate(names) if other == name]
        told = [rooms[rank] for rank in ranks if rooms[rank]]
        there = min(said[0] for said in told) + sum(said[1] for said in told)
        host = f"host {name}" if name else "this host"
        found.append(Place(name=host, ranks=ranks, room=there))
        for gpu in range(min(gpus[ranks[0]], len(ranks))):
            sharing = ranks[gpu :: gpus[ranks[0]]]
            told = [rooms[rank] for rank in sharing if rooms[rank][2:]]
            if told:
                there = min(said[2] for said in told) + sum(said[3] for said in told)
                found.append(Place(name=f"GPU {gpu} of {host}", ranks=sharing, room=there, is_device=True))
    return found
