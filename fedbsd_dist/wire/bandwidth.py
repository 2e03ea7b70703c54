"""How fast the ranks sum a buffer, measured before it matters."""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fedbsd_dist.wire.ledger import ring_bytes
from fedbsd_dist.wire.world import Placement, World

SECONDS = 3.0
"""Of measuring, about."""
MOST = 20
"""Times that it is measured."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one all-reduce."""

    payload_bytes: int
    seconds: float
    """Median of several."""
    rank_bytes_per_second: float
    """That each rank sends, by the ring model."""


def measure(world: World, placement: Placement, payload_bytes: int) -> Speed:
    """All ranks call it, and come to the same. Without NCCL, GPUs' buffers cross in host memory, as in a run."""
    staged = placement.backend != "nccl"
    buffer = torch.zeros(max(1, payload_bytes // 4), device="cpu" if staged else placement.device)
    with world.watch.meeting("measuring the all-reduce"):
        dist.all_reduce(buffer)  # the first one connects
        took = [_timed(buffer)]
        longest = torch.tensor(took, device=buffer.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        took += [_timed(buffer) for _ in range(min(MOST, int(SECONDS / float(longest))))]
        longest = torch.tensor(took, device=buffer.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    seconds = float(longest.median())
    payload = buffer.numel() * buffer.element_size()
    return Speed(
        payload_bytes=payload,
        seconds=seconds,
        rank_bytes_per_second=ring_bytes(payload, world.size) / world.size / seconds,
    )


def _timed(buffer: torch.Tensor) -> float:
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(buffer)
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)
    return time.perf_counter() - start
