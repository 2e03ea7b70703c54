"""What is gained by several clients in one step?

    python tests/benchmarks/together.py [TIMES] [section.field=value ...]

Has all clients learn for one round, one at a time and with `train.together` of 2, 8 and so on to all of them, in turn,
TIMES times (5), after one that does not count. Prints for each the clients' steps a second (the median) as a ratio
to one at a time, and the operations that a client's step takes, views left out: on a GPU, about as many launches.
By default 32 clients with as many samples each, of the size of Fashion-MNIST's, drawn at random, batches of 10.
"""

import itertools
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import torch
from test_federation import build
from torch.utils._python_dispatch import TorchDispatchMode

from fedbsd_dist.federation import Federation
from fedbsd_dist.wire.world import World, meet

COMMON = (
    "run.device=auto",
    "data.source=python",
    f"data.factory={Path(__file__).stem}:samples",
    "data.num_clients=32",
    "data.partition=iid",
    "train.local_epochs=1",
    "train.batch_size=10",
)


def samples() -> dict[str, Any]:
    """A `data.factory`: 100 training samples for each of the 32 clients."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3840, 28, 28, 1), dtype=np.uint8)
    return {"x": x, "y": np.arange(3840) % 10, "split": np.repeat(["train", "test"], [3200, 640])}


def learn(federation: Federation, together: int) -> float:
    """Seconds of everybody's local learning."""
    train = federation.config.train.model_copy(update={"together": together})
    federation.config = federation.config.model_copy(update={"train": train})
    start = time.perf_counter()
    for _ in federation._learned(federation.training, 1, "{} learns"):
        pass
    if federation.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Operations(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not function.is_view
        return function(*args, **(kwargs or {}))


def numbers(clients: int) -> Iterator[int]:
    """1, 2, 8, 32 and so on, and all of them."""
    yield 1
    yield from itertools.takewhile(lambda number: number < clients, (2 * 4**power for power in itertools.count()))
    yield clients


def main(world: World) -> None:
    arguments = sys.argv[1:]
    times = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else 5
    for method in ("fedavg", "fedbsd"):
        # refused here, if anywhere
        federation = build(world, *COMMON, f"method.name={method}", "train.together=2", *arguments)
        sizes, train = federation._train_sizes, federation.config.train
        steps = train.local_epochs * sum(-(-sizes[client] // train.batch_size) for client in federation.training)
        tried = [*numbers(len(federation.training))]
        seconds = [[learn(federation, number) for number in tried] for _ in range(times + 1)][1:]
        medians = [statistics.median(of_one) for of_one in zip(*seconds, strict=True)]
        for number, median in zip(tried, medians, strict=True):
            with Operations() as operations:
                learn(federation, number)
            print(
                f"{method:8} together {number:4}  {steps / median:8.0f} steps/s, {medians[0] / median:5.2f} times, "
                f"{operations.number / steps:6.1f} operations a step",
                flush=True,
            )
        torch.distributed.destroy_process_group()
    print(f"{platform.processor() or platform.machine()}, {federation.model.device}, torch {torch.__version__}")


if __name__ == "__main__":
    main(meet())
