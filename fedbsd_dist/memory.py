"""What every rank takes at its peak, and whether there is so much: measured where that is cheap, else counted.

    runtime       what this process holds now: interpreter, packages, the source's samples; measured
    samples       of the rank's clients, as far as `data.device_memory` lets them stay
    private state a row for each of its clients that will have learned, where `client.store` keeps it in memory
    model         the live model, the shared state, the start, the channel's buffers, gradients, momentum, and
                  whatever copies the method makes
    activations   what a step or a test keeps for its batch, the images prepared for it, a teacher's features
    checkpoint    copies that are being written, beside the next rounds
    heap          what the C library's heap takes beside them
    libraries     what those of a GPU take to work in

Model and activations come of a rehearsal. What is said of the host's memory is of pages of the ranks' own: those of
files, such as packages' code and the decoded samples, are the system's to drop and to share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedbsd_dist.batches import PREPARED, large_batch
from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.host_memory import Place
from fedbsd_dist.rehearsal import Rehearsal
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
"""Bytes of the heap a byte of what comes and goes in a turn, on a CPU: freed blocks of some MB that the next ones do
not fit into. 0.3 to 0.9 were measured, and none at all where every large block was mapped by itself
(MALLOC_MMAP_THRESHOLD_=1048576), with which learning took a quarter longer."""
STEPS = 15e6
"""Bytes of holes that the small results of the first hundred steps leave, for they lie between larger blocks: 12 to
18 MB were measured."""
LIBRARIES = 100e6
"""Bytes of a GPU that cuBLAS and cuDNN take to work in: 116 MB were measured once, on an H200."""
WORTH = 0.01
"""Of all: parts and remedies that are less are not spoken of."""

Bytes = dict[str, float]
"""What for -> bytes."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What ranks take at their peak."""

    config: RunConfig
    device: torch.device
    sizes: Sequence[int]
    """All samples of every client."""
    train_sizes: Sequence[int]
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
        # what did not change since the one before is not copied, nor what is not in memory
        copied = self._learned(clients, min(every, train.rounds)) * (config.client.store != "mmap")
        saved = self.private * copied + self.upload * server + max(self.private * bool(private), self.upload * server)
        if every >= train.rounds:  # the one at the end, when nothing else is done
            saved = max(saved - fixed - activations, 0.0)
        host: Bytes = {
            "runtime": self.runtime + TENSORBOARD * server,
            "checkpoint": saved * bool(every),
        }
        device: Bytes = {
            "samples": self._samples(clients),
            "model": self.live + self.rehearsal.copies + self.payload + self.upload + fixed,
            "activations": activations,
        }
        if config.client.store != "mmap":
            (device if config.client.store == "device" else host)["private state"] = private
        if self.device.type == "cpu":
            return {**host, **device, "heap": (HEAP * (fixed + activations) + STEPS) * bool(clients)}, {}
        host["model"] = self.payload  # staged
        device["libraries"] = LIBRARIES
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
        wire = self.config.wire
        # double beside float, or int64 too; of an update, what is drawn, its units and what they stand for
        reduction = self.upload * ((5 if wire.sum == "exact" else 2) + 3 * (wire.codec != "none"))
        if not clients:
            return reduction, 0.0
        rehearsal = self.rehearsal
        train = max(self.train_sizes[client] for client in clients)
        samples = sum(self.sizes[client] for client in clients)
        batch, large = min(train, self.config.train.batch_size), min(samples, large_batch(self.device))
        learning = max(rehearsal.learning, key=lambda line: line.at(batch))
        testing = max(rehearsal.testing, key=lambda line: line.at(large))
        prepared = FLOAT * self.pixels * (min(train, max(PREPARED, batch)) - batch)
        together = min(samples, TOGETHER * large + max(self.sizes[client] for client in clients))
        stacked = min(self.config.train.together, len(clients))
        turn = learning.a_sample * batch + prepared + rehearsal.features * train
        phases = [
            (learning.fixed * stacked, turn * stacked),
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
