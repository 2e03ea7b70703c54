"""What does a round cost beyond its SGD steps?

    python tests/benchmarks/round_overhead.py [RANKS [ROUNDS]] [section.field=value ...]

Times, in turn and on the same ranks, clients and samples, (a) a whole round: load clients, train, upload, reduce,
server step, record; evaluation left out; and (b) a plain PyTorch loop doing the same SGD steps: one model, the
tensors in memory and in the fastest format (channels_last), torch.optim.SGD, for FedBSD a frozen copy as teacher in
every step. Prints the ratio a / b of each method: median, and least to greatest over the rounds.
"""

import copy
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.nn import functional as F

from fedbsd_dist.commandline import load
from fedbsd_dist.federation import Federation
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.split import build_model
from fedbsd_dist.plan import Plan, make_plan
from fedbsd_dist.record.recorder import open_record
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World


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
                    loss = loss + tau**2 * F.kl_div(soft, hard, log_target=True, reduction="batchmean")
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


def main() -> None:
    """Print a row a method."""
    numbers = [int(argument) for argument in sys.argv[1:] if "=" not in argument]
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    ranks, rounds = [*numbers, *(3, 7)[len(numbers) :]]
    print(f"{platform.machine()}, torch {torch.__version__}, {ranks} ranks, {' '.join(overrides) or 'default options'}")
    rows = []
    for method in ("fedavg", "fedbsd"):
        with tempfile.TemporaryDirectory() as run_dir:
            times = run_ranks(ranks, measure, rounds, run_dir, [f"method.name={method}", *overrides])[0]
        ratios = [ours / plain for ours, plain in times]
        ours, plain = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append(
            f"{method:8} round {ours:.3f} s, plain loop {plain:.3f} s, "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {rounds} rounds)"
        )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
