"""What every rank takes at its peak, and whether there is so much: measured where that is cheap, else counted.

    runtime       what this process holds now: interpreter, packages, the source's samples; measured
    samples       of the rank's clients, as far as `data.device_memory` lets them stay
    private state a row for each of its clients that will have learned, where `client.store` keeps it in memory
    model         the live model, the shared state, the start, the channel's buffer, gradients, momentum, and
                  whatever copies the method makes
    activations   what a step or a test keeps for its batch, the images prepared for it, a teacher's features
    checkpoint    copies that are being written, beside the next rounds
    heap          what the C library's heap takes beside them

Model and activations come of a rehearsal: the method's own local learning on a few samples of zeros, twice, with all
bytes of tensors counted after every operation. They are linear in the number of samples, operation by operation, so
that two sizes tell of every other. What is said of the host's memory is of pages of the ranks' own: those of files,
such as packages' code and the decoded samples, are the system's to drop and to share.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedbsd_dist.batches import PREPARED, large_batch
from fedbsd_dist.clients import Clients
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import make_method
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.networks import Shape
from fedbsd_dist.testing import TOGETHER
from fedbsd_dist.units import size

FLOAT = 4
"""Bytes."""
GB = 1e9
"""Bytes."""
UNCERTAINTY = 0.1
"""Of what is foretold. Nothing is refused that could fit within it."""
TENSORBOARD = 4e6
"""Bytes that its import and its writer take on the server: 3 to 5 MB were measured."""
HEAP = 0.5
"""Bytes of the heap a byte of what comes and goes in a turn and a checkpoint, on a CPU: freed blocks of some MB that
the next ones do not fit into. 0.3 to 0.9 were measured, and none at all where every large block was mapped by itself
(MALLOC_MMAP_THRESHOLD_=1048576), with which learning took a quarter longer."""
STEPS = 15e6
"""Bytes of holes that the small results of the first hundred steps leave, for they lie between larger blocks: 12 to
18 MB were measured."""
WORTH = 0.01
"""Of all: parts and remedies that are less are not spoken of."""
FEW = (4, 6)
"""Samples of a rehearsal: enough for batch norm on half of them."""

Bytes = dict[str, float]
"""What for -> bytes."""


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations in its block have made and that are still there."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known`: tensors from before, which do not count, whatever view of them an operation returns."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.series: list[int] = []
        """Bytes after every operation, backward ones too."""
        self._now = 0
        self._known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}
        self._held: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this, PyTorch imports its compiler to keep out of it: two seconds and 80 MB."""
        return False

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operation, and then the count."""
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        self.series.append(self._now)
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = id(storage), storage.nbytes()
        if key in self._held or key in self._known:
            return

        def gone(_: object) -> None:
            del self._held[key]
            self._now -= num_bytes

        self._held[key] = weakref.ref(storage, gone)
        self._now += num_bytes


@dataclass(frozen=True, kw_only=True)
class Line:
    """Bytes as a function of the number of samples."""

    fixed: float
    a_sample: float

    def at(self, samples: float) -> float:
        """Bytes."""
        return self.fixed + self.a_sample * samples


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What the tensors of one client's turn take, beside the live model."""

    copies: float
    """Bytes of the shared state and of the start."""
    learning: Sequence[Line]
    """After every operation of two epochs of one batch each, `copies` left out."""
    testing: Sequence[Line]
    """The same, of a test."""
    features: float
    """Bytes of the backbone's features of a sample."""


def rehearse(config: RunConfig, model: FlatModel, shape: Shape, num_classes: int) -> Rehearsal:
    """On a copy of `model`, where that is; with the generator of random numbers as it was."""
    marks, copies, features = zip(*(_turn(config, model, shape, num_classes, samples) for samples in FEW), strict=True)
    learning, testing = (_lines(*runs) for runs in zip(*marks, strict=True))
    return Rehearsal(copies=copies[0], learning=learning, testing=testing, features=features[0])


def _lines(few: Sequence[int], more: Sequence[int]) -> list[Line]:
    slopes = [(b - a) / (FEW[1] - FEW[0]) for a, b in zip(few, more, strict=True)]
    return [Line(fixed=a - FEW[0] * slope, a_sample=slope) for a, slope in zip(few, slopes, strict=True)]


def _turn(
    config: RunConfig, model: FlatModel, shape: Shape, num_classes: int, samples: int
) -> tuple[tuple[list[int], list[int]], int, float]:
    """((bytes after every operation of learning, and of a test), bytes before it, bytes of a sample's features)."""
    channels, height, width = shape
    device, model = model.device, copy.deepcopy(model)
    train = config.train.model_copy(update={"local_epochs": 2, "batch_size": samples})
    config = config.model_copy(update={"train": train, "client": config.client.model_copy(update={"store": "device"})})
    images = torch.zeros(samples, height, width, channels, dtype=torch.uint8, device=device)
    labels = torch.arange(samples, device=device) % num_classes
    shard = Shard(
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        mean=torch.zeros(channels, device=device),
        std=torch.ones(channels, device=device),
    )
    live = Live([*model.buffers.values(), *model.module.buffers(), images, labels, shard.mean, shard.std])
    with torch.random.fork_rng(devices=[]), live:
        clients = Clients(config, make_method(config.method, train), model, {0: shard})
        turn = clients.receive(0, 1)
        first = len(live.series)
        clients.method.learn(turn)
        second = len(live.series)
        turn.test()
        third = len(live.series)
        features = turn.outputs(model.module.backbone, images).nbytes / samples
    before = live.series[first - 1]
    learning, testing = live.series[first:second], live.series[second:third]
    return ([now - before for now in learning], [now - before for now in testing]), before, features


def own_bytes() -> float:
    """What this process holds in pages of its own, no file's."""
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


def room(device: torch.device) -> list[float]:
    """Bytes that this process can see now: available on its host, held by it there; the same of its GPU, or none."""
    host = [available_bytes(), own_bytes()]
    return (
        host
        if device.type == "cpu"
        else [*host, torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)]
    )


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


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What ranks take at their peak."""

    config: RunConfig
    device: torch.device
    sizes: Sequence[int]
    """All samples of every client."""
    train_sizes: Sequence[int]
    test_sizes: Sequence[int]
    hosted: Sequence[Sequence[int]]
    """The clients of every rank."""
    pixels: int
    """Bytes of an image."""
    runtime: float
    """Bytes that this process held before the rehearsal, the live model's left out."""
    live: float
    """Bytes of the live model."""
    private: float
    """Bytes of a client's private state."""
    upload: float
    """Bytes of what crosses, of one client."""
    payload: float
    """Bytes of the channel's buffer."""
    rehearsal: Rehearsal

    def of(self, rank: int) -> tuple[Bytes, Bytes]:
        """(bytes of the host's memory, of the device's), by what they are for. All is the host's where the device is
        the CPU.
        """
        config, clients, server = self.config, self.hosted[rank], rank == 0
        fixed, activations = self._work(clients)
        train, every = config.train, config.checkpoint.every
        private = self.private * self._learned(clients, train.rounds)
        # what did not change since the one before is not copied
        saved = (
            self.private * self._learned(clients, min(every, train.rounds))
            + self.upload * server
            + max(self.private * bool(private), self.upload * server)
        )
        if every >= train.rounds:  # the one at the end, when nothing else is done
            saved = max(saved - fixed - activations, 0.0)
        host: Bytes = {
            "runtime": self.runtime + TENSORBOARD * server,
            "checkpoint": saved * bool(every),
        }
        device: Bytes = {
            "samples": self._samples(clients),
            "model": self.live + self.rehearsal.copies + self.payload + fixed,
            "activations": activations,
        }
        if config.client.store != "mmap":
            (device if config.client.store == "device" else host)["private state"] = private
        if self.device.type == "cpu":
            comes_and_goes = fixed + activations + host["checkpoint"]
            return {**host, **device, "heap": (HEAP * comes_and_goes + STEPS) * bool(clients)}, {}
        host["model"] = self.payload  # staged
        return host, device

    def _learned(self, clients: Sequence[int], rounds: int) -> float:
        """How many of these learn at least once in so many rounds, to be expected."""
        known = self.config.data.num_clients
        share = max(self.config.train.participation, 1 / known)
        return sum(client < known for client in clients) * (1 - (1 - share) ** rounds)

    def _samples(self, clients: Sequence[int]) -> float:
        """With one client at its turn that does not stay."""
        sizes = [self.sizes[client] for client in clients]
        images, room = self.pixels * sum(sizes), GB * self.config.data.device_memory
        stay = min(images, room + self.pixels * max(sizes, default=0))
        return stay * (1 + 8 / self.pixels)  # labels are of eight bytes

    def _work(self, clients: Sequence[int]) -> tuple[float, float]:
        """Bytes of the phase that takes most: (of the model's size, of the batch's)."""
        reduction = self.upload * (5 if self.config.wire.sum == "exact" else 3)  # double beside float, or int64 too
        if not clients:
            return reduction, 0.0
        rehearsal = self.rehearsal
        train = max(self.train_sizes[client] for client in clients)
        samples = sum(self.sizes[client] for client in clients)
        batch, large = min(train, self.config.train.batch_size), min(samples, large_batch(self.device))
        learning = max(rehearsal.learning, key=lambda line: line.at(batch))
        testing = max(rehearsal.testing, key=lambda line: line.at(large))
        prepared = FLOAT * self.pixels * (min(train, max(PREPARED, batch)) - batch)
        together = min(samples, TOGETHER * large * sum(self.sizes) / max(sum(self.test_sizes), 1))
        # clients that learn at once have a state each, and a copy of it that learns
        stacked = min(self.config.train.together, len(clients))
        states = 2 * self.live * stacked if stacked > 1 else 0.0
        turn = learning.a_sample * batch + prepared + rehearsal.features * train
        phases = [
            (learning.fixed * stacked + states, turn * stacked),
            (testing.fixed, testing.a_sample * large + (rehearsal.features + self.pixels) * together),
            (reduction, 0.0),
        ]
        return max(phases, key=sum)

    @property
    def text(self) -> str:
        """What the server and the fullest rank take, for a person."""
        ranks = range(len(self.hosted))
        fullest = max(ranks, key=lambda rank: sum(map(_sum, self.of(rank))))
        said = []
        for rank in dict.fromkeys((0, fullest)):
            host, device = self.of(rank)
            on_device = f", and of GPU memory {size(_sum(device))} ({_listed(device)})" if device else ""
            said.append(f"{size(_sum(host))} on rank {rank} ({_listed(host)}){on_device}")
        if self.config.client.store == "mmap" and self.private:
            rows = sum(self._learned(clients, self.config.train.rounds) for clients in self.hosted)
            said.append(f"private state {size(self.private * rows)} on disk, in the run directory")
        return "; ".join(said)

    def check(self, places: Sequence[Place]) -> str:
        """A word about memory that may just do, or none. Raises UserError where it does not do."""
        doubts = ""
        for place in places:
            need = self._need(place)
            where = f"the memory of {place.name}: {_ranks(place.ranks)}"
            said = f"{where} will take {size(need)}, and there is {size(place.room)}"
            if need * (1 - UNCERTAINTY) > place.room:
                raise UserError(f"{said}. {self._advice(place)}")
            if need * (1 + UNCERTAINTY) > place.room:
                doubts = f"{said}: it may just do. The estimate is good to {UNCERTAINTY:.0%}."
        return doubts

    def _need(self, place: Place) -> float:
        return sum(_sum(self.of(rank)[place.is_device]) for rank in place.ranks)

    def _advice(self, place: Place) -> str:
        """The largest parts, and what to change: what helps most first."""
        config, need = self.config, self._need(place)
        stores = ("mmap", "host") if place.is_device else ("mmap",)
        smaller = max(1, config.train.batch_size // 2)
        changes: dict[str, dict[str, dict[str, Any]]] = {
            **{f"client.store={store}": {"client": {"store": store}} for store in stores},
            "data.device_memory=0": {"data": {"device_memory": 0.0}},
            f"train.batch_size={smaller}": {"train": {"batch_size": smaller}},
        }
        saved = {}
        for change, sections in changes.items():
            other = {name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()}
            saved[change] = need - replace(self, config=config.model_copy(update=other))._need(place)
        parts: Bytes = {}
        for rank in place.ranks:
            for name, num_bytes in self.of(rank)[place.is_device].items():
                parts[name] = parts.get(name, 0.0) + num_bytes
        if len(place.ranks) > 1:
            # its clients and their samples go to the others
            every_rank = sum(parts.get(name, 0.0) for name in ("runtime", "model", "activations"))
            saved["fewer ranks there"] = every_rank / len(place.ranks)
        helpful = sorted((change for change in saved if saved[change] > WORTH * need), key=lambda name: -saved[name])
        options = [f"{change} ({size(saved[change])} less)" for change in helpful]
        return f"Most of it: {_listed(parts)}. Use {', '.join([*options, 'or ' * bool(options) + 'a smaller model'])}."


def _sum(parts: Bytes) -> float:
    return sum(parts.values())


def _listed(parts: Bytes) -> str:
    """The largest first, without what a person need not know of."""
    largest = sorted(parts, key=lambda name: -parts[name])
    return ", ".join(f"{name} {size(parts[name])}" for name in largest if parts[name] > WORTH * _sum(parts))


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"{len(ranks)} ranks"
