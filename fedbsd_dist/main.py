"""The walk through one run. From the repository's root:

torchrun --nproc_per_node=8 -m fedbsd_dist.main                        the default run
python -m fedbsd_dist.main train.rounds=5                              a laptop, one process
torchrun --nproc_per_node=8 -m fedbsd_dist.main run.yaml seed=1        a file of options, and one more
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fedbsd_dist import environment
from fedbsd_dist.commandline import help_text, load
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.data.shards import load_shard
from fedbsd_dist.data.sources import SOURCES
from fedbsd_dist.errors import UserError
from fedbsd_dist.federation import Federation, shared_groups
from fedbsd_dist.methods import METHODS, OPTIONS
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model
from fedbsd_dist.plan import make_plan
from fedbsd_dist.record import directory
from fedbsd_dist.record.checkpoint import Checkpoints
from fedbsd_dist.record.recorder import open_record
from fedbsd_dist.wire.channel import Channel
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World, entry_point, meet


def run(arguments: Sequence[str], world: World) -> None:
    """One run, from its command line to its record."""
    check = "--check" in arguments
    with world.one_voice("plan"):
        environment.check()
        config = load([argument for argument in arguments if argument != "--check"], OPTIONS)
        torch.set_num_threads(config.run.threads)
        placement = world.place(config.run.device)
        samples = SOURCES[config.data.source]()
        partition = make_partition(
            samples,
            kind=config.data.partition,
            num_clients=config.data.num_clients,
            alpha=config.data.alpha,
            min_samples=config.data.min_samples,
            seed=config.seed,
        )
        height, width, channels = samples.x.shape[1:]
        split = build_model(config.model, (channels, height, width), len(samples.classes), config.seed)
        model = FlatModel(split, placement.device)
        method = METHODS[config.method.name](config.method, config.train)
        plan = make_plan(config, world, placement, samples, partition, method, model)
        run_dir = directory.choose(config)
        directory.check(run_dir, config)
    if check:
        return world.say(plan.text)

    run_dir = Path(world.told("run directory", str(run_dir)))
    checkpoints, resumed = Checkpoints(run_dir, config, world), 0
    facts = f"{model.digest.hex()} {partition.sha256}"
    with world.one_voice("start"):
        if facts != world.told("facts", facts):
            raise UserError(
                f"rank {world.rank} has another model or partition than rank 0: same code and packages everywhere?"
            )
        if world.is_server:
            directory.claim(run_dir, config)
            resumed = checkpoints.newest() if config.run.resume == "auto" else 0
    resumed = int(world.told("resumed", str(resumed)))
    if world.told("finished", str(directory.is_finished(run_dir))) == "True":
        return world.say(f"{run_dir} holds this run, finished: nothing to do.")

    world.join(placement, config.wire.timeout)
    ledger = Ledger()
    channel = Channel(
        world,
        placement,
        ledger,
        shared=shared_groups(method, model),
        num_metrics=len(method.losses) + 1,
        exact=config.wire.sum == "exact",
        weight_bound=sum(method.weight(size) for size in partition.train_sizes),
    )
    hosted = plan.clients[world.rank]
    shards = {
        client: load_shard(samples, partition.train[client], partition.test[client], placement.device)
        for client in hosted
    }
    federation = Federation(config, method, model, channel, shards)
    if resumed:
        checkpoints.restore(resumed, federation.shared, federation.states())
    recorder = open_record(
        world.is_server,
        run_dir,
        config,
        train_sizes=partition.train_sizes,
        upload_bytes=plan.upload_bytes,
        resumed=resumed,
    )
    recorder.say(plan.text + (f"\nresumed after round {resumed}" if resumed else ""))
    for number in range(resumed + 1, config.train.rounds + 1):
        recorder.round(federation.round(number), ledger.drain())
        if checkpoints.due(number):
            written = checkpoints.write(number, federation.shared, federation.states())
            digests = channel.gather(written, 1 + config.data.num_clients, 32, round=number, purpose="checkpoint")
            recorder.ledger(ledger.drain())
            if world.is_server:
                checkpoints.commit(number, digests)
    state = federation.state_sha256(config.train.rounds)
    recorder.ledger(ledger.drain())
    recorder.finish(
        {
            "world_size": world.size,
            "device": placement.device.type,
            "backend": placement.backend,
            "state_sha256": state,
        },
        {
            "parameters": plan.model_parameters,
            "head": plan.head_parameters,
            "bytes": 4 * plan.model_parameters,
        },
    )
    world.leave()


def main() -> None:
    """Exit code 0, or 2 for what the user can mend."""
    arguments = sys.argv[1:]
    world = meet()
    if "--help" in arguments or "-h" in arguments:
        world.say(help_text(OPTIONS))
        return
    run(arguments, world)


if __name__ == "__main__":
    entry_point(main)()
