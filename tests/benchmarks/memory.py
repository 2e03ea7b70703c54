"""Memory for 500 clients of the 4-layer CNN of 582,026 parameters, beside the way that copies the model for each.

    python tests/benchmarks/memory.py [--quick] [section.field=value ...]

Each in a process of its own, which trains all clients for a round: (a) ours, on one process, for FedBSD and for Ditto,
which keeps a whole personal model of each client; (b) the deep-copy way: a model of every client, each received by
`load_state_dict` and trained by torch.optim.SGD in its place, where its last gradients stay with it, and for the
personal method a second one each. A client has 10 training samples and a test sample (noise, 1 x 28 x 28). A figure is
the most memory that the process ever had, less the most until its imports were done.
"""

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import ranks
import torch
from opened import opened, peak_bytes
from ranks import run_ranks
from rows import Row, main, measured
from synthetic import overrides
from torch import nn
from torch.nn import functional as F

from fedbsd_dist.models.networks import cnn
from fedbsd_dist.wire.world import World

SECONDS = 120, 40
"""It takes, whole and quick."""

ranks.TIMEOUT = 600
SHAPE = (1, 28, 28)
SAMPLES = 10


def ours(world: World, folder: str, clients: int, method: str, options: list[str]) -> dict[str, float]:
    """Bytes: the peak, and the private state in it."""
    before = peak_bytes()
    data = overrides(clients, SAMPLES, 1, *SHAPE[1:], SHAPE[0])
    everybody = ["train.participation=1.0", "train.local_epochs=1", f"method.name={method}"]
    federation = opened(world, Path(folder), [*data, *everybody, *options])
    federation.round()
    states = federation.federation.private.learned().values()
    private = sum(values.nbytes for state in states for values in state.values())
    return {"peak": peak_bytes() - before, "private": private}


def deep_copies(world: World, clients: int, models_each: int) -> dict[str, float]:
    """The same of the other way: the mean of all models is the next global one."""
    torch.set_num_threads(1)
    common = cnn(SHAPE, 10)
    torch.optim.SGD(common.parameters())  # the first one imports what belongs to the packages
    before = peak_bytes()
    models = [[copy.deepcopy(common) for _ in range(models_each)] for _ in range(clients)]
    images, labels = torch.randn(SAMPLES, *SHAPE), torch.randint(10, (SAMPLES,))
    for of_client in models:
        of_client[0].load_state_dict(common.state_dict())
        for model in of_client:
            _train(model, images, labels)
    with torch.no_grad():
        for mean, *theirs in zip(common.parameters(), *(of[0].parameters() for of in models), strict=True):
            mean.copy_(sum(theirs) / clients)
    return {"peak": peak_bytes() - before}


def _train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def rows(quick: bool, *options: str) -> Iterator[Row]:
    """Ours, the copies, and how many times ours they are."""
    clients = 50 if quick else 500
    for method, models_each in (("fedbsd", 1), ("ditto", 2)):
        with tempfile.TemporaryDirectory() as folder:
            mine = _alone(ours, folder, clients, method, [*options])
        copies = _alone(deep_copies, clients, models_each)
        what = f"{method}, {clients} clients"
        yield measured(9, f"{what}: peak", [mine["peak"] / 1e6], "MB")
        yield measured(9, f"{what}: private state in it", [mine["private"] / 1e6], "MB")
        yield measured(
            9,
            f"{what}: peak of {models_each} deep cop{'ies' if models_each > 1 else 'y'} a client",
            [copies["peak"] / 1e6],
            "MB",
        )
        yield measured(9, f"{what}: deep copies to ours", [copies["peak"] / mine["peak"]])


def _alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    return run_ranks(1, function, *arguments)[0]


if __name__ == "__main__":
    main(rows)
