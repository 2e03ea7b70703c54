"""Where clients' private state lives between their turns: a row of one tensor for each that has ever learned."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedbsd_dist.errors import UserError
from fedbsd_dist.models.flat import State

FLOAT = 4
"""Bytes."""
OWNER_ONLY = 0o600
BLOCK = 64 * 2**20
"""Bytes of rows made at once: so many lie apart from the heap, and are memory only once they are written to."""

Rows = Callable[[], Tensor]
"""Makes room for one more client, float32 [numel]."""


class PrivateState:
    """The private state of some clients. One that never learned has the common start, and takes no room."""

    def __init__(self, start: State, clients: Sequence[int], rows: Rows) -> None:
        """`start`: group -> float32 [numel], what every client begins with."""
        self.start, self.clients, self._rows = start, clients, rows
        self._sizes = [values.numel() for values in start.values()]
        self._all = frozenset(clients)
        self._kept: dict[int, dict[str, Tensor]] = {}
        self.changed: set[int] = set()
        """Clients that learned since this was last emptied."""

    def __contains__(self, client: object) -> bool:
        return client in self._all

    def has_learned(self, client: int) -> bool:
        """Whether it has state of its own."""
        return client in self._kept

    def of(self, client: int) -> Mapping[str, Tensor]:
        """Group -> float32 [numel], wherever it lies; not to be changed in place."""
        return self._kept.get(client, self.start)

    def room(self, client: int) -> dict[str, Tensor]:
        """The same, to be changed in place: from now on this client has state of its own."""
        self.changed.add(client)
        if not self.start:
            return {}
        if client not in self._kept:
            parts = self._rows().split(self._sizes)
            self._kept[client] = {
                name: part.copy_(values) for part, (name, values) in zip(parts, self.start.items(), strict=True)
            }
        return self._kept[client]

    def keep(self, client: int, values: Mapping[str, Tensor], counts: Tensor) -> None:
        """`values` are the client's state now, if `counts`, a bool tensor [] on their device."""
        for name, row in self.room(client).items():
            row.copy_(torch.where(counts, values[name], row.to(values[name].device)))

    def learned(self) -> dict[int, Mapping[str, Tensor]]:
        """Of the clients that ever learned, in client order."""
        return {client: self._kept[client] for client in self.clients if client in self._kept}


def in_memory(numel: int, clients: int, device: torch.device) -> Rows:
    """Rows on the device or the host; for a GPU's sake those of the host are pinned.

    Made many at once: a row by itself, among what a client's learning leaves free, was seen to cost the heap half a MB.
    """
    pinned = device.type == "cpu" and torch.cuda.is_available()
    at_once = max(1, min(clients, BLOCK // (FLOAT * max(numel, 1))))

    def rows() -> Iterator[Tensor]:
        while True:
            yield from torch.empty(at_once, numel, device=device, pin_memory=pinned)

    return partial(next, rows())


def in_file(numel: int, clients: int, file: Path) -> Rows:
    """Rows in a mapped file, which the system keeps on disk when memory is short. The file has no name, for none goes
    on from it, and is gone with its process.

    Raises UserError, also while rows are made, where the disk has no room.
    """
    if not hasattr(os, "posix_fallocate"):
        raise UserError("client.store=mmap: this system cannot reserve room in a file. Use client.store=host.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, OWNER_ONLY)
        try:
            os.truncate(handle, FLOAT * numel * clients)
            mapped = torch.from_file(str(file), shared=True, size=numel * clients, dtype=torch.float32)
        finally:
            file.unlink()
    except (OSError, RuntimeError) as error:
        raise _no_room(file, error) from None
    rows: Iterator[Tensor] = iter(mapped.split(numel))
    places = iter(range(0, FLOAT * numel * clients, FLOAT * numel))

    def row() -> Tensor:
        try:  # what is mapped and has no room on disk would end the process when it is written to
            os.posix_fallocate(handle, next(places), FLOAT * numel)
        except OSError as error:
            raise _no_room(file, error) from None
        return next(rows)

    return row


def _no_room(file: Path, error: Exception) -> UserError:
    return UserError(
        f"client.store=mmap: {file} cannot be made or enlarged ({getattr(error, 'strerror', None) or error}). Make "
        "room there, or use client.store=host."
    )
