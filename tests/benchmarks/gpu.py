"""What keeps one GPU busy, and what a round takes on it, with each lever on and off.

    FASHION_MNIST=DIR python tests/benchmarks/gpu.py [--quick] [--device=cpu]

Two settings, in one process, all clients in every round, 1 epoch of batch 10: FedRep's CNN with 100 clients of 500
samples, as many as of CIFAR-10 (noise, 3 x 32 x 32), without evaluation; and 20 clients, Dirichlet(0.1), of the
582,026-parameter CNN, all evaluated each round, on Fashion-MNIST as sides.py has it, or without it on noise of the same
shape and number of samples. Each with FedAvg and FedBSD; the levers are
  graphs       steps captured and replayed (train.cuda_graphs), which is the default; all that follow have it
  together     clients that learn in one step (train.together)
  bfloat16     train.precision
  4 processes  four ranks that share the GPU
and `loop` is a plain PyTorch loop of FedAvg's steps on the same GPU (tensors in memory, channels_last, fused SGD).
Every lever begins at the same state, and its state after the first round is compared with the plain one's; later a
unit or a maximum that rounding tips over makes thousands of times as much of it.

Busy: of one round, the time in which a kernel or a copy is under way on the GPU, by torch.profiler, what overlaps
counted once, over the median time of the rounds that are not profiled; of the training phase where nothing is
evaluated. --device=cpu goes the same way with tiny settings, to see that it goes; its figures say nothing (busy is then
of the operators on the CPU).
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import ranks
import torch
from opened import Opened, opened
from ranks import run_ranks
from rows import Row, cannot, main, measured
from sides import Missing, fashion_mnist
from synthetic import overrides
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from fedbsd_dist.commandline import load
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.split import build_model
from fedbsd_dist.plan import prepare_data
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
    """Clients and their model."""

    name: str
    noise: tuple[int, ...]
    """Owners, training and test samples of each, height, width, channels; none: real data."""
    options: tuple[str, ...]
    together: int


def settings(device: str, folder: Path) -> list[Setting]:
    """The two, or tiny ones for the CPU. `folder`: for what they need."""
    many, each, clients, dealt_out = (100, 500, 20, (52_410, 17_500)) if device == "cuda" else (4, 20, 4, (200, 50))
    of_many = Setting(
        name=f"FedRep's CNN, {many} clients",
        noise=(many, each, 1, 32, 32, 3),
        options=("model.name=fedrep_cnn",),
        together=many,
    )
    common = ("model.name=cnn", "evaluate.every=1")
    try:
        real = fashion_mnist(folder)
        few = Setting(name=f"{clients} clients of Fashion-MNIST", noise=(), options=(*real, *common), together=clients)
    except Missing:
        dealt = ("data.partition=dirichlet", "data.alpha=0.1", f"data.num_clients={clients}", "data.min_samples=10")
        name, noise = f"{clients} clients of noise", (1, *dealt_out, 28, 28, 1)
        few = Setting(name=name, noise=noise, options=(*dealt, *common), together=clients)
    return [few, of_many]


def start(world: World, folder: str, setting: Setting, device: str, options: list[str]) -> Opened:
    """A federation of the setting."""
    always = ["train.participation=1.0", "train.local_epochs=1", "train.batch_size=10", "server.trains=true"]
    data = overrides(*setting.noise) if setting.noise else []
    every = [*data, *setting.options, *always, f"run.device={device}", *options]
    prepare_data(load(every, OPTIONS), world)
    return opened(world, Path(folder), every)


@dataclass(frozen=True, kw_only=True)
class Found:
    """By one lever, with one method."""

    seconds: list[float]
    """Of the rounds after the first."""
    training: list[float]
    """Of their training phase, on this rank."""
    busy: float
    """Seconds in which the device worked in one more."""
    state: dict[str, np.ndarray]
    """After the first: what is shared, and this rank's clients' private state."""


def measure(
    world: World, folder: str, setting: Setting, device: str, options: dict[str, list[str]], runs: int
) -> dict[str, Found]:
    """By the name that `options` have."""
    return {
        name: _measure(world, f"{folder}/{number}", setting, device, of_one, runs, "together" in name)
        for number, (name, of_one) in enumerate(options.items())
    }


def _measure(
    world: World, folder: str, setting: Setting, device: str, options: list[str], runs: int, profiled: bool
) -> Found:
    federation = start(world, folder, setting, device, options)
    federation.round()  # warms up
    state, busy = _state(federation), float("nan")
    timed = [federation.timed() for _ in range(runs)]
    # read a round late where the device is behind
    training = [float(report.phases["train"][world.rank]) for _, report in timed]
    if profiled:
        activity, categories = BUSY[device]
        with profile(activities=[activity]) as profiler:
            federation.round()
            _finish(device)
        trace = Path(folder) / f"trace-{world.rank}.json"
        profiler.export_chrome_trace(str(trace))
        busy = worked(json.loads(trace.read_text())["traceEvents"], categories)
    return Found(seconds=[seconds for seconds, _ in timed], training=training, busy=busy, state=state)


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
    device = flags.get("device", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        yield cannot(3, TITLE, "PyTorch sees no GPU. Run `python tests/benchmarks/gpu.py` on a machine with one.")
        return
    where = torch.cuda.get_device_name() if device == "cuda" else "tried on the CPU"
    runs = 2 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings(device, Path(folder)):
            yield from _setting(setting, f"{setting.name} ({where})", device, runs)


def _setting(setting: Setting, name: str, device: str, runs: int) -> Iterator[Row]:
    evaluated = "evaluate.every=1" in setting.options
    limit, busy_limit = (0.5, None) if evaluated else (None, 90.0)
    if device == "cpu":
        limit = busy_limit = None
    graphs, together = ["train.cuda_graphs=true"], ["train.cuda_graphs=true", f"train.together={setting.together}"]
    levers = {
        "plain": ["train.cuda_graphs=false"],
        "graphs": graphs,
        "together": together,
        "together, bfloat16": [*together, "train.precision=bfloat16"],
    }
    methods = ("fedavg", "fedbsd")
    alone = {f"{method}, {lever}": [f"method.name={method}", *of] for method in methods for lever, of in levers.items()}
    shared = {f"{method}, 4 processes": [f"method.name={method}", *graphs] for method in methods}
    with tempfile.TemporaryDirectory() as folder:
        loop = run_ranks(1, measure_loop, folder, setting, device, runs)[0]
        found: dict[str, Found] = run_ranks(1, measure, folder, setting, device, alone, runs)[0]
        of_ranks: list[dict[str, Found]] = run_ranks(4, measure, f"{folder}/4", setting, device, shared, runs)
    found |= {
        what: replace(of_ranks[0][what], state={key: of for one in of_ranks for key, of in one[what].state.items()})
        for what in shared
    }
    yield measured(3, f"{name}: loop, without evaluation", loop, "s")
    for what, of in sorted(found.items()):
        yield measured(3, f"{name}, {what}: a round", of.seconds, "s", bound=limit)
        yield measured(3, f"{name}, {what}: to the loop", [one / statistics.median(loop) for one in of.seconds])
        if "together" in what:
            share = 100 * of.busy / statistics.median(of.seconds if evaluated else of.training)
            yield measured(3, f"{name}, {what}: GPU busy", [share], "%", bound=busy_limit, at_most=False)
        if "plain" not in what:
            plain = found[f"{what.partition(',')[0]}, plain"].state
            apart = max(float(np.abs(of.state[key] - values).max()) for key, values in plain.items())
            bound = None if "bfloat16" in what else 1e-5
            yield measured(3, f"{name}, {what}: largest difference from plain after a round", [apart], "", bound=bound)


if __name__ == "__main__":
    main(rows)
