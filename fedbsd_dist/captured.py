"""A step of learning as a CUDA graph: a small model on a GPU waits for launches, of which a replayed step takes one."""

import functools
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from fedbsd_dist.errors import UserError

Step = Callable[..., Tensor]
"""Learns from a batch of tensors, and returns what is reported of it."""
REMEDY = "Set train.cuda_graphs=false."


def captured(step: Step, device: torch.device, asked: bool, *, lasting: bool = False) -> Step:
    """The step, as a graph where there is a GPU and `asked`. `lasting`: a shape of a batch comes many times."""
    return Captured(step, device, lasting) if asked and device.type == "cuda" else step


class Captured:
    """A step whose first time is as it is written, which makes what lasts (momentum, a library's workspace), and later
    ones are replays: of its second time with a batch of that shape, or where shapes are `lasting` of its first.

    That holds for a step that is nothing but operations on tensors: what Python does in between is not done again.
    """

    def __init__(self, step: Step, device: torch.device, lasting: bool = False) -> None:
        """`device`: a GPU."""
        self._step, self._device, self._lasting = step, device, lasting
        self._seen: set[object] = set()
        self._graphs: dict[object, _Graph] = {}

    def __call__(self, *batch: Tensor) -> Tensor:
        """As the step itself.

        Raises UserError where it cannot be captured: it waits for the device.
        """
        shape = tuple(tensor.shape for tensor in batch)
        worth = bool(self._seen) if self._lasting else shape in self._seen
        self._seen.add(shape)
        if not worth:
            return self._step(*batch)
        if shape not in self._graphs:
            self._graphs[shape] = _Graph(self._step, batch, self._device)
        return self._graphs[shape](batch)


class _Graph:
    """Of a step on batches of one shape."""

    def __init__(self, step: Step, batch: tuple[Tensor, ...], device: torch.device) -> None:
        self._batch = [torch.empty_like(tensor) for tensor in batch]
        self._kinds = {tensor.dtype for tensor in batch}
        self._graph = torch.cuda.CUDAGraph()
        stream, first = _home(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # other threads (NCCL's) may meanwhile do what a capture forbids its own
            self._graph.capture_begin(first.pool(), capture_error_mode="thread_local")
            try:
                self._reported = step(*self._batch)
            except RuntimeError as error:
                with suppress(RuntimeError):  # it cannot be ended well, and says so again
                    self._graph.capture_end()
                problem = str(error).partition("\n")[0]
                raise UserError(
                    "train.cuda_graphs: a step of this model and method could not be captured (it must not wait "
                    f"for the GPU): {problem} {REMEDY}"
                ) from None
            self._graph.capture_end()

    def __call__(self, batch: tuple[Tensor, ...]) -> Tensor:
        for kind in self._kinds:
            # one kernel for all of a type
            own, given = ([tensor for tensor in of if tensor.dtype == kind] for of in (self._batch, batch))
            torch._foreach_copy_(own, given)
        self._graph.replay()
        return self._reported.clone()


@functools.cache
def _home(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """The stream on which steps are captured, and a graph that keeps the memory which the others take turns in: what
    one of them leaves there is read before the next one is replayed.
    """
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        graph.capture_end()
    return stream, graph
