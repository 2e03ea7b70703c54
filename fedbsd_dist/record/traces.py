"""Traces of chosen rounds, one a rank, for chrome://tracing and Perfetto; the phases are named ranges in them."""

import gzip
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import UserError
from fedbsd_dist.phases import Phases
from fedbsd_dist.record.directory import TRACES
from fedbsd_dist.record.files import sync, telling
from fedbsd_dist.wire.world import World


def check_rounds(config: RunConfig) -> None:
    """Raises UserError where a trace is asked for of a round that there is not."""
    beyond = [number for number in config.profile.rounds if number > config.train.rounds]
    if config.profile.trace and beyond:
        raise UserError(
            f"profile.rounds={config.profile.rounds}: there is no round {beyond[0]} in a run of "
            f"train.rounds={config.train.rounds}. Choose among 1 to {config.train.rounds}."
        )


HANDED = {"c10d::allreduce_": 0, "c10d::alltoall_base_": 1, "c10d::allgather_": 1}
"""Name of a collective in a trace, whatever the backend -> which of its arguments a rank hands in."""


class Traces:
    """The traces of one rank, which are none where `profile.trace` is false."""

    def __init__(self, run: Path, config: RunConfig, world: World, phases: Phases, device: torch.device) -> None:
        """`device`: what is traced beside the host."""
        self._folder, self._world, self._phases, self._device = run / TRACES, world, phases, device
        self._rounds = config.profile.rounds if config.profile.trace else []
        self._shapes = config.profile.counters  # which make a trace larger, and say how much crossed
        if self._rounds:
            with self._profiler():  # the first one takes seconds to get ready, which are to be no round's
                pass

    @contextmanager
    def round(self, number: int) -> Iterator[None]:
        """The block is a round; its trace is on disk afterwards, whole. Raises UserError where it cannot be written."""
        if number not in self._rounds:
            yield
            return
        from torch.profiler import record_function

        with self._profiler() as taken:
            about = {"rank": self._world.rank, "host": self._world.names[self._world.rank], "round": number}
            taken.add_metadata_json("fedbsd_dist", json.dumps(about))
            self._phases.annotate = record_function
            try:
                with record_function(f"round {number}"):
                    yield
            finally:
                self._phases.annotate = nullcontext
        self._world.watch.at("writing the trace")
        with telling(self._folder.parent):
            self._write(taken, self._folder / f"round-{number:06d}-rank-{self._world.rank}.json.gz")

    def _profiler(self) -> Any:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else each rank tells of its stages, and that it has no GPU
        from torch.profiler import ProfilerActivity, profile

        return profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])],
            record_shapes=self._shapes,
        )

    def _write(self, taken: Any, path: Path) -> None:
        """In a folder beside, always the same one, and then under its own name."""
        beside = self._folder / f".rank-{self._world.rank}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        plain, packed = beside / "trace.json", beside / "trace.json.gz"
        try:
            taken.export_chrome_trace(str(plain))
            if not plain.exists():  # what the profiler cannot write whole it takes back, without a word of why
                raise OSError("the trace does not fit")
            with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target)
            sync(packed)
            os.replace(packed, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync(self._folder)


def collectives(path: Path) -> list[int] | None:
    """Elements that a rank handed to every collective in a trace; None of a trace without shapes (without
    `profile.counters`).
    """
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    calls = [(HANDED[event["name"]], event["args"]) for event in events if event.get("name") in HANDED]
    if not all("Input Dims" in of for _, of in calls):
        return None
    return [_elements(of["Input Dims"][argument]) for argument, of in calls]


def _elements(shapes: Any) -> int:
    """Of a tensor's shape, or of those of a list of tensors."""
    if any(isinstance(of, list) for of in shapes):
        return sum(map(_elements, shapes))
    return math.prod(shapes)
