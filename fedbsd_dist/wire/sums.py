"""Sums of updates over ranks, on a wire that carries a codec's form. Every rank comes to the same bits."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedbsd_dist.wire.codecs import CHUNK, Codec, code_bytes, parts
from fedbsd_dist.wire.ledger import ALL_GATHER, ALL_TO_ALL


class Carry(Protocol):
    """A collective of the channel's, with its line in the ledger."""

    def __call__(self, collective: str, mine: Tensor, elements_by_group: Mapping[str, int]) -> Tensor:
        """ALL_TO_ALL: row i of `mine` [num_ranks, ...] goes to rank i; ALL_GATHER: all of `mine` to every rank.
        Returns what came from each rank, [num_ranks, ...].
        """


class Sum(Protocol):
    """Of one round after the other."""

    def add(self, codes: Mapping[str, Tensor], updates: Mapping[str, Tensor], weight: Tensor) -> None:
        """One upload: the codes of its groups and what they stand for. `weight`: float32 [] on the device."""

    def total(self, carry: Carry, uploads: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """Over all ranks, float32 [numel] of each group; every rank calls it. Leaves the sum empty. `uploads`: how many
        each rank has added.
        """

    def clear(self) -> None:
        """Leave the sum empty."""


class DenseSum:
    """A reduction in two steps, of codes where a ring would have floats: every rank sums one part of the vector, whose
    codes all others send it, and sends them the code of its sum.
    """

    def __init__(self, codec: Codec, sizes: Mapping[str, int], num_ranks: int, device: torch.device) -> None:
        """`sizes`: numel of each group."""
        self._codec, self._sizes = codec, sizes
        self.part = part_length(sum(sizes.values()), num_ranks)
        self._local = torch.zeros(num_ranks, self.part, device=device)

    def add(self, codes: Mapping[str, Tensor], updates: Mapping[str, Tensor], weight: Tensor) -> None:
        """One pass a group."""
        for name, place in self._split(self._local).items():
            place.addcmul_(updates[name], weight)

    def total(self, carry: Carry, uploads: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """Two collectives."""
        mine = torch.stack([self._codec.encode(part, generator) for part in self._local])
        self.clear()
        summed = torch.zeros(self.part, device=mine.device)
        for code in carry(ALL_TO_ALL, mine, self._sizes):
            summed += self._codec.decode(code, self.part)
        shares = {name: numel // len(mine) for name, numel in self._sizes.items()}  # a rank's, on average
        theirs = carry(ALL_GATHER, self._codec.encode(summed, generator), shares)
        return self._split(torch.stack([self._codec.decode(code, self.part) for code in theirs]))

    def clear(self) -> None:
        """Zeros."""
        self._local.zero_()

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        flat = vector.view(-1)[: sum(self._sizes.values())]
        return dict(zip(self._sizes, flat.split([*self._sizes.values()]), strict=True))


class SparseSum:
    """Every upload's code goes to every rank, its values times its weight; ranks with fewer fill up with zeros."""

    def __init__(self, codec: Codec, sizes: Mapping[str, int], num_ranks: int, device: torch.device) -> None:
        """`sizes`: numel of each group."""
        self._sizes, self._device = sizes, device
        self._lengths = {name: codec.length(numel) for name, numel in sizes.items()}
        self._codes: list[Tensor] = []

    def add(self, codes: Mapping[str, Tensor], updates: Mapping[str, Tensor], weight: Tensor) -> None:
        """Nothing is summed before it has crossed."""
        weighted = []
        for name in self._sizes:
            code = codes[name].view(2, -1)
            values = torch.where(weight > 0, code[1].view(torch.float32) * weight, 0.0)
            weighted += [code[0], values.view(torch.int32)]
        self._codes.append(torch.cat(weighted))

    def total(self, carry: Carry, uploads: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """One collective."""
        most = max(uploads)
        mine = torch.zeros(most, sum(self._lengths.values()), dtype=torch.int32, device=self._device)
        for row, code in zip(mine, self._codes, strict=False):
            row.copy_(code)
        self.clear()
        theirs = carry(ALL_GATHER, mine, {name: most * length for name, length in self._lengths.items()})
        total = {name: torch.zeros(numel, device=self._device) for name, numel in self._sizes.items()}
        for codes, count in zip(theirs, uploads, strict=True):
            for row in codes[:count]:
                for name, code in zip(total, row.split([*self._lengths.values()]), strict=True):
                    # no place twice in a code: the order of additions is that of the uploads, on GPUs too
                    total[name].index_add_(0, *parts(code))
        return total

    def clear(self) -> None:
        """No codes."""
        self._codes = []


def payloads(codec: Codec, sizes: Mapping[str, int], num_ranks: int, uploads: int) -> dict[str, int]:
    """Collective -> bytes that a rank hands in. `uploads`: of the rank that has most."""
    if codec.sparse:
        return {ALL_GATHER: uploads * sum(code_bytes(codec, numel) for numel in sizes.values())}
    part = code_bytes(codec, part_length(sum(sizes.values()), num_ranks))
    return {ALL_TO_ALL: num_ranks * part, ALL_GATHER: part}


def part_length(numel: int, num_ranks: int) -> int:
    """Of the vector, a rank's: whole chunks."""
    return -(-numel // (num_ranks * CHUNK)) * CHUNK


def make_sum(codec: Codec, sizes: Mapping[str, int], num_ranks: int, device: torch.device) -> Sum:
    """As the codec's form wants it."""
    kind = SparseSum if codec.sparse else DenseSum
    return kind(codec, sizes, num_ranks, device)
