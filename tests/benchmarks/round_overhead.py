"""What does a round cost beyond its SGD steps?

    python tests/benchmarks/round_overhead.py [--quick] [RANKS [ROUNDS]] [section.field=value ...]

Times, in turn and on the same ranks, clients and samples, (a) a whole round: load clients, train, upload, reduce,
server step, record; evaluation left out; and (b) a plain PyTorch loop doing the same SGD steps: one model, the
tensors in memory and in the fastest format (channels_last), torch.optim.SGD, for FedBSD a frozen copy as teacher in
every step. The rows are the ratio a / b at two batch sizes, with all clients taking part.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import torch.distributed as dist
from ranks import run_ranks
from rows import Row, main, measured
from torch.nn import functional as F

from fedbsd_dist.commandline import load
from fedbsd_dist.federation import Federation
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.split import build_model
from fedbsd_dist.plan import Plan, make_plan
from fedbsd_dist.record.recorder import open_record
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World

SECONDS = 100, 50
"""It takes, whole and quick."""


def plain_round(plan: Plan, federation: Federation, number: int, inputs: dict, module: torch.nn.Module) -> None:
    """The same number of steps on the same samples as the round `number`, with nothing around them."""
    train, options = plan.config.train, plan.method.options
    for client in federation.cohort(number):
        if client not in inputs:
            continue
        images, labels = inputs[client]
        teacher = copy.deepcopy(module).requires_grad_(False)
        optimizer = torch.optim.SGD(
            [
                {"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": train.weight_decay},
                {"params": [p for p in module.parameters() if p.dim() <= 1]},
            ],
            lr=train.lr,
            momentum=train.momentum,
        )
        for _ in range(train.local_epochs):
            for index in torch.randperm(len(labels)).split(train.batch_size):
                x, y = images[index], labels[index]
                optimizer.zero_grad()
                features = module.backbone(x)
                logits = module.head(features)
                loss = F.cross_entropy(logits, y)
                if options.name == "fedbsd":
                    head = {name: p.detach() for name, p in module.head.named_parameters()}
                    with torch.no_grad():
                        target = module.head(teacher.backbone(x))
                    logits = torch.func.functional_call(module.head, head, features)
                    tau = options.temperature
                    soft, hard = F.log_softmax(logits / tau, 1), F.log_softmax(target / tau, 1)
                    divergence = F.kl_div(soft, hard, log_target=True, reduction="batchmean")
                    loss = loss + options.distillation_weight * tau**2 * divergence
                loss.backward()
                optimizer.step()


def measure(world: World, rounds: int, run_dir: str, overrides: list[str]) -> list[tuple[float, float]]:
    """(seconds of the round, seconds of the plain loop), round by round."""
    config = load(["train.rounds=100000", "evaluate.every=0", *overrides], OPTIONS)
    plan = make_plan(config, world)
    world.join(plan.placement)
    ledger = Ledger()
    channel = plan.open_channel(world, ledger)
    sizes = plan.partition.train_sizes
    federation = Federation(config, plan.method, plan.model, channel, plan.load_shards(world.rank), sizes)
    recorder = open_record(plan, Path(run_dir), 0, world)
    recorder.say = lambda text: None  # type: ignore[method-assign]
    shape = plan.samples.x.shape[1:]
    module = build_model(config.model, (shape[2], shape[0], shape[1]), len(plan.samples.classes), 0)
    module = module.to(memory_format=torch.channels_last)
    inputs = {
        client: (shard.normalized(shard.train_images).contiguous(memory_format=torch.channels_last), shard.train_labels)
        for client, shard in federation.shards.items()
    }
    times = []
    for number in range(1, rounds + 2):
        dist.barrier()
        start = time.perf_counter()
        plain_round(plan, federation, number, inputs, module)
        dist.barrier()
        between = time.perf_counter()
        recorder.round(federation.round(number), ledger.drain())
        dist.barrier()
        times.append((time.perf_counter() - between, between - start))
    return times[1:]  # the first round warms up


def rows(quick: bool, *arguments: str) -> Iterator[Row]:
    """A row a method and batch size."""
    numbers = [int(argument) for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    ranks, rounds = [*numbers, *(3, 3 if quick else 9)[len(numbers) :]]
    for batch_size, bound in ((10, 1.10), (64, 1.05)):
        for method in ("fedavg", "fedbsd"):
            options = [f"train.batch_size={batch_size}", "train.participation=1.0", f"method.name={method}"]
            with tempfile.TemporaryDirectory() as run_dir:
                times = run_ranks(ranks, measure, rounds, run_dir, [*options, *overrides])[0]
            what = f"{method}, batch {batch_size}, {ranks} ranks {' '.join(overrides)}".rstrip()
            yield measured(1, what, [ours / plain for ours, plain in times], bound=bound)


if __name__ == "__main__":
    main(rows)
