"""How a client's update is represented where it crosses, and what of it is made up for later.

An upload goes through steps, each of which makes of tensors others of the same shapes:

    upload -> update -> REPRESENTATION -> weight -> SUM over clients -> mean update -> new shared state

The update is the upload minus what the client has received, and the representation, a `Codec`, is each client's own:
it sees one group of one client, never a rank, so that the number of ranks changes nothing. The sum is the channel's:
of 64-bit integers (`exact`), or of floats, on a wire between ranks that carries the codec's form (`sums`). Neither
knows of the other, and further steps fit between them:

- Clipping and noise (differential privacy) are a step on the update before the codec: a function of the update and of
  a generator seeded by (seed, round, client), as `Codec.encode` has one. What is left over must then not be sent
  later: no error feedback across it.
- Pairwise masks (secure aggregation) are a step on the integers of the exact sum, after the codec and the weight: two
  clients add and subtract the same random integers modulo 2**64, of which nothing is left in the sum.

Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847): with the error e of a client, v = update + e
is encoded, and what the code lacks is its next error. So nothing is lost, only late: all that a client has sent, and
its last error, add up to its updates. The error is private state of the client like any other.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256
"""Numbers of int8 that have a scale in common: the scales are 1.6 % of the code."""
LEVELS = 127
"""Of int8, on either side of 0."""
SCALE = 4
"""Bytes of a scale."""


class Codec(Protocol):
    """A representation. All is done on the device of the values, and nobody waits for it."""

    dtype: torch.dtype
    """Of a code."""
    feedback: bool
    """What a code lacks is added to the client's next update."""
    sparse: bool
    """A code has few of the values, each with its place."""

    def length(self, numel: int) -> int:
        """Elements of the code of `numel` values."""

    def encode(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """The code [length] of values, float32 [numel]."""

    def decode(self, code: Tensor, numel: int) -> Tensor:
        """The values that a code stands for, float32 [numel]."""


def code_bytes(codec: Codec, numel: int) -> int:
    """Of the code of `numel` values."""
    return codec.length(numel) * codec.dtype.itemsize


class BFloat16:
    """Rounded to the nearest of 8 bits of precision: off by at most 2**-8 of the value."""

    dtype, feedback, sparse = torch.bfloat16, False, False

    def length(self, numel: int) -> int:
        """One each."""
        return numel

    def encode(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Nothing is drawn."""
        return values.to(torch.bfloat16)

    def decode(self, code: Tensor, numel: int) -> Tensor:
        """The same numbers."""
        return code.float()


class Int8:
    """Whole multiples, from -127 to 127, of a scale for every chunk, rounded up or down at random (QSGD, arXiv
    1610.02132): each value is met on average, and is off by less than a scale. The scales come first.
    """

    dtype, feedback, sparse = torch.int8, False, False

    def length(self, numel: int) -> int:
        """The scales too."""
        return numel + SCALE * _chunks(numel)

    def encode(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """The largest of a chunk is 127 scales."""
        numel = values.numel()
        chunks = F.pad(values, (0, -numel % CHUNK)).view(-1, CHUNK)
        scales = chunks.abs().amax(1) / LEVELS
        draws = torch.rand(chunks.shape, generator=generator, device=values.device)
        units = draws.add_(chunks / torch.where(scales > 0, scales, 1.0)[:, None]).floor_()
        # what lies on a whole number may, by rounding of the sum, come to one more
        codes = units.clamp_(-LEVELS, LEVELS).to(torch.int8)
        return torch.cat([scales.view(torch.int8), codes.view(-1)[:numel]])

    def decode(self, code: Tensor, numel: int) -> Tensor:
        """Unit times scale."""
        head = SCALE * _chunks(numel)
        units = F.pad(code[head:].float(), (0, -numel % CHUNK)).view(-1, CHUNK)
        return (units * code[:head].view(torch.float32)[:, None]).view(-1)[:numel]


@dataclass(frozen=True)
class TopK:
    """The fraction of the values that are largest in magnitude, with their places; the error has the others."""

    fraction: float
    """In (0, 1]; one value at least."""
    dtype, feedback, sparse = torch.int32, True, True

    def length(self, numel: int) -> int:
        """Place and value of each."""
        return 2 * self._count(numel)

    def _count(self, numel: int) -> int:
        return max(1, math.floor(self.fraction * numel + 0.5))

    def encode(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Places as int32, then the values as they are in memory."""
        places = values.abs().topk(self._count(values.numel()), sorted=False).indices
        return torch.cat([places.to(torch.int32), values[places].view(torch.int32)])

    def decode(self, code: Tensor, numel: int) -> Tensor:
        """0 where nothing was sent."""
        places, values = parts(code)
        return torch.zeros(numel, device=code.device).scatter_(0, places, values)


def parts(code: Tensor) -> tuple[Tensor, Tensor]:
    """(places int64 [k], values float32 [k]) of a sparse code."""
    places, values = code.view(2, -1)
    return places.long(), values.view(torch.float32)


def make_codec(name: str, topk: float) -> Codec | None:
    """Of the options of section `wire`; None: uploads cross as they are."""
    codecs: dict[str, Codec] = {"bf16": BFloat16(), "int8": Int8(), "topk": TopK(topk)}
    return codecs.get(name)


def _chunks(numel: int) -> int:
    return -(-numel // CHUNK)
