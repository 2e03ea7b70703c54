"""What keeps one GPU busy, and what a round takes on it, with each lever on and off.

    python tests/benchmarks/gpu.py [--quick] [--fashion=DIR] [--device=cpu]

Two settings, in one process, all clients in every round, 1 epoch of batch 10: FedRep's CNN with 100 clients of 100
samples (noise, 3 x 32 x 32), without evaluation; and 20 clients, Dirichlet(0.1), of the 582,026-parameter CNN, all
evaluated each round, on torchvision's Fashion-MNIST in DIR, or without it on noise of the same shape and number of
samples. Each with FedAvg and FedBSD; the levers are
  together     clients that learn in one step (train.together)
  bf16         autocast to bfloat16 around the round
  4 processes  four ranks that share the GPU
and `loop` is a plain PyTorch loop of FedAvg's steps on the same GPU (tensors in memory, channels_last, fused SGD).
Every lever begins at the same state, and its state after the first round is compared with the plain one's; later a
unit or a maximum that rounding tips over makes thousands of times as much of it.

Busy: of one round, the time in which a kernel or a copy is under way on the GPU, by torch.profiler, what overlaps
counted once, over the median time of the rounds that are not profiled. --device=cpu goes the same way with tiny
settings, to see that it goes; its figures say nothing (busy is then of the operators on the CPU).
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import ranks
import torch
from opened import Opened, opened
from ranks import run_ranks
from rows import Row, cannot, main, measured
from synthetic import overrides
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from fedbsd_dist.models.split import build_model
from fedbsd_dist.wire.world import World

SECONDS = 500, 200
"""It takes, whole and quick."""

ranks.TIMEOUT = 590
TITLE = "one GPU"
BUSY = {
    "cuda": (ProfilerActivity.CUDA, ("kernel", "gpu_memcpy", "gpu_memset")),
    "cpu": (ProfilerActivity.CPU, ("cpu_op",)),
}
"""What the profiler looks at, and the events of a trace in which the device works."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Clients and their model. `noise` is of all clients together where the program deals it out."""

    name: str
    noise: tuple[int, ...]
    """Owners, training and test samples of each, height, width, channels."""
    options: tuple[str, ...]
    together: int


def settings(device: str, fashion: str) -> list[Setting]:
    """The two, or tiny ones for the CPU."""
    many, each, clients, dealt_out = (100, 100, 20, (52_410, 17_500)) if device == "cuda" else (4, 20, 4, (200, 50))
    dealt = ["data.partition=dirichlet", "data.alpha=0.1", f"data.num_clients={clients}", "data.min_samples=10"]
    images = ["data.source=fashion_mnist", f"data.root={fashion}", "data.factory=", "data.test_fraction=0.25"]
    return [
        Setting(
            name=f"FedRep's CNN, {many} clients",
            noise=(many, each, 1, 32, 32, 3),
            options=("model.name=fedrep_cnn",),
            together=many,
        ),
        Setting(
            name=f"{clients} clients of {'Fashion-MNIST' if fashion else 'noise'}",
            noise=(1, *dealt_out, 28, 28, 1),
            options=(*dealt, "model.name=cnn", "evaluate.every=1", *(images if fashion else ())),
            together=clients,
        ),
    ]


def start(world: World, folder: str, setting: Setting, device: str, options: list[str]) -> Opened:
    """A federation of the setting."""
    always = ["train.participation=1.0", "train.local_epochs=1", "train.batch_size=10", "server.trains=true"]
    data = overrides(*setting.noise)
    return opened(world, Path(folder), [*data, *always, f"run.device={device}", *setting.options, *options])


def measure(
    world: World, folder: str, setting: Setting, device: str, options: list[str], bf16: bool, runs: int
) -> tuple[list[float], float, dict[str, np.ndarray]]:
    """Seconds of the rounds after the first; seconds in which the device worked in one more; and the state after the
    first, of which a rank has what is shared and its own clients' private state.
    """
    federation = start(world, folder, setting, device, options)
    # without its cache: that would keep the weights as they were before the first step
    with torch.autocast(device, torch.bfloat16, cache_enabled=False) if bf16 else nullcontext():
        federation.round()  # warms up
        first = _state(federation)
        seconds = [federation.timed()[0] for _ in range(runs)]
        activity, _ = BUSY[device]
        with profile(activities=[activity]) as profiler:
            federation.round()
    trace = Path(folder) / f"trace-{world.rank}.json"
    profiler.export_chrome_trace(str(trace))
    busy = worked(json.loads(trace.read_text())["traceEvents"], BUSY[device][1])
    return seconds, busy, first


def _state(federation: Opened) -> dict[str, np.ndarray]:
    """Copies of what is shared and of this rank's clients' private state."""
    states = {"shared": federation.federation.shared, **federation.federation.private.learned()}
    return {
        f"{whose} {group}": values.cpu().numpy().copy() for whose, of in states.items() for group, values in of.items()
    }


def worked(events: Iterable[dict], categories: tuple[str, ...]) -> float:
    """Seconds in which one or more events of these categories were under way."""
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in categories)
    total, until = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total / 1e6


def measure_loop(world: World, folder: str, setting: Setting, device: str, runs: int) -> list[float]:
    """Seconds of the plain loop over all clients, without any evaluation."""
    federation = start(world, folder, setting, device, ["method.name=fedavg"])
    plan, options = federation.plan, federation.plan.config.train
    model = build_model(plan.config.model, plan.input.shape, len(plan.input.classes), 0)
    model = model.to(device, memory_format=torch.channels_last)
    start_state = {name: values.clone() for name, values in model.state_dict().items()}
    inputs = [
        (shard.normalized(shard.train_images), shard.train_labels) for shard in federation.federation.shards.values()
    ]
    seconds = []
    for _ in range(runs + 1):
        _finish(device)
        began = time.perf_counter()
        for images, labels in inputs:
            model.load_state_dict(start_state)
            optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=options.momentum, fused=True)
            for index in torch.randperm(len(labels), device=device).split(options.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(images[index]), labels[index]).backward()
                optimizer.step()
        _finish(device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rows(quick: bool, *arguments: str) -> Iterator[Row]:
    """Each setting with each method and lever."""
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    device, fashion = flags.get("device", "cuda"), flags.get("fashion", "")
    if device == "cuda" and not torch.cuda.is_available():
        yield cannot(3, TITLE, "PyTorch sees no GPU. Run `python tests/benchmarks/gpu.py` on a machine with one.")
        return
    where = torch.cuda.get_device_name() if device == "cuda" else "tried on the CPU"
    runs = 2 if quick else 5
    for setting in settings(device, fashion):
        yield from _setting(setting, f"{setting.name} ({where})", device, runs)


def _setting(setting: Setting, name: str, device: str, runs: int) -> Iterator[Row]:
    evaluated = "evaluate.every=1" in setting.options
    limit, busy_limit = (0.5, None) if evaluated else (None, 90.0)
    if device == "cpu":
        limit = busy_limit = None
    with tempfile.TemporaryDirectory() as folder:
        loop = run_ranks(1, measure_loop, folder, setting, device, runs)[0]
    yield measured(3, f"{name}: loop, without evaluation", loop, "s")
    together = [f"train.together={setting.together}"]
    levers: dict[str, tuple[int, list[str], bool]] = {
        "plain": (1, [], False),
        "together": (1, together, False),
        "bf16": (1, [], True),
        "together, bf16": (1, together, True),
        "4 processes": (4, [], False),
    }
    for method in ("fedavg", "fedbsd"):
        plain: dict[str, np.ndarray] = {}
        for lever, (size, options, bf16) in levers.items():
            what = f"{name}, {method}, {lever}"
            with tempfile.TemporaryDirectory() as folder:
                of_method = [f"method.name={method}", *options]
                found = run_ranks(size, measure, folder, setting, device, of_method, bf16, runs)
            seconds, busy, _ = found[0]
            state = {key: values for _, _, of_rank in found for key, values in of_rank.items()}
            plain = plain or state
            yield measured(3, f"{what}: a round", seconds, "s", bound=limit)
            yield measured(3, f"{what}: to the loop", [of / statistics.median(loop) for of in seconds])
            if size == 1:
                share = 100 * busy / statistics.median(seconds)
                yield measured(3, f"{what}: GPU busy", [share], "%", bound=busy_limit, at_most=False)
            if lever != "plain":
                apart = max(float(np.abs(values - plain[key]).max()) for key, values in state.items())
                yield measured(
                    3, f"{what}: largest difference from plain after a round", [apart], "", bound=None if bf16 else 1e-5
                )


if __name__ == "__main__":
    main(rows)
