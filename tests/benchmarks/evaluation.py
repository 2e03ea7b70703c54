"""What it costs to evaluate all clients.

    python tests/benchmarks/evaluation.py [--quick] [section.field=value ...]

Share: on 2 ranks that both train, the seconds of evaluation over those of the rounds from one evaluation to the next,
every 5 rounds (the default) and every round; of the default run on the digits, and of 100 clients of 40 training and 20
test samples (noise, 1 x 28 x 28), 10 of them a round.

Ratio: on one process, in turn, the usual ways of testing all clients after a round, over ours (which tests besides the
one client that trained). The usual ways: a model and a tensor of normalized test samples a client, in batches of 10 or
of 256, whose correct ones and whose loss are counted batch by batch. All find the same clients' correct samples, but
for those that rounding decides.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import ranks
import torch
from opened import Opened, opened
from ranks import run_ranks
from rows import Row, main, measured
from synthetic import overrides
from torch import Tensor, nn
from torch.nn import functional as F

from fedbsd_dist.evaluation import CORRECT
from fedbsd_dist.models.split import build_model
from fedbsd_dist.wire.world import World

SECONDS = 200, 60
"""It takes, whole and quick."""

ranks.TIMEOUT = 600
SETTINGS: dict[str, tuple[int, ...]] = {"digits, 20 clients": (), "noise, 100 clients": (100, 40, 20, 28, 28, 1)}
"""Of noise: clients, training and test samples of each, shape."""


def start(world: World, folder: str, noise: tuple[int, ...], options: list[str]) -> Opened:
    """The digits as by default, or clients of noise."""
    data = [*overrides(*noise), "train.participation=0.1"] if noise else []
    return opened(world, Path(folder), [*data, "server.trains=true", *options])


def measure_share(
    world: World, folder: str, noise: tuple[int, ...], every: int, runs: int, options: list[str]
) -> list[float]:
    """Percent of the rounds from one evaluation to the next that it takes, run by run."""
    federation = start(world, folder, noise, [f"evaluate.every={every}", *options])
    shares = []
    for _ in range(runs + 1):
        rounds = [federation.timed() for _ in range(every)]
        evaluation = sum(report.evaluation_seconds for _, report in rounds)
        shares.append(100 * evaluation / sum(seconds for seconds, _ in rounds))
    return shares[1:]  # the first one warms up


def usual_way(models: dict[int, nn.Module], tests: dict[int, tuple[Tensor, Tensor]], size: int) -> list[int]:
    """Correct test samples of every client."""
    found = []
    for client, (images, labels) in tests.items():
        model = models[client].eval()
        correct, loss = 0, 0.0
        with torch.no_grad():
            for x, y in zip(images.split(size), labels.split(size), strict=True):
                logits = model(x)
                correct += int((logits.argmax(1) == y).sum())
                loss += float(F.cross_entropy(logits, y, reduction="sum"))
        found.append(correct)
    return found


def measure_ratio(
    world: World, folder: str, noise: tuple[int, ...], runs: int, options: list[str]
) -> list[tuple[float, float, float]]:
    """Seconds of ours, of batches of 10, and of batches of 256, run by run."""
    one = 1 / noise[0] if noise else 0.05
    federation = start(world, folder, noise, [*options, "evaluate.every=1", f"train.participation={one}"])
    plan, state = federation.plan, federation.federation
    empty = build_model(plan.config.model, plan.input.shape, len(plan.input.classes), 0)
    models = {client: copy.deepcopy(empty) for client in plan.hosted[0]}
    shards = {client: state.shards[client] for client in models}
    tests = {
        client: (shard.normalized(shard.test_images).contiguous(), shard.test_labels)
        for client, shard in shards.items()
    }
    times = []
    for _ in range(runs + 1):
        report = federation.round()
        for client, model in models.items():
            model.load_state_dict(state.deployed(client, federation.number + 1).model.module.state_dict())
        taken = [report.evaluation_seconds]
        for size in (10, 256):
            began = time.perf_counter()
            found = usual_way(models, tests, size)
            taken.append(time.perf_counter() - began)
            ours = report.stages["received"][:, CORRECT]
            assert sum(abs(ours - found)) <= 0.002 * sum(len(labels) for _, labels in tests.values()), (ours, found)
        times.append((taken[0], taken[1], taken[2]))
    return times[1:]  # the first one warms up


def rows(quick: bool, *options: str) -> Iterator[Row]:
    """Shares of a round, and ratios to the usual ways."""
    runs = 3 if quick else 7
    for name, noise in SETTINGS.items():
        for every, bound in ((5, 10.0), (1, None)):
            with tempfile.TemporaryDirectory() as folder:
                shares = run_ranks(2, measure_share, folder, noise, every, runs, [*options])[0]
            often = f"every {every} rounds" if every > 1 else "every round"
            yield measured(4, f"{name}, evaluation {often}", shares, "% of the rounds", bound=bound)
        with tempfile.TemporaryDirectory() as folder:
            times = run_ranks(1, measure_ratio, folder, noise, runs, [*options])[0]
        yield measured(4, f"{name}: an evaluation", [1000 * ours for ours, _, _ in times], "ms")
        yield measured(4, f"{name}: batches of 10 a client, to ours", [small / ours for ours, small, _ in times])
        yield measured(4, f"{name}: batches of 256 a client, to ours", [large / ours for ours, _, large in times])


if __name__ == "__main__":
    main(rows)
