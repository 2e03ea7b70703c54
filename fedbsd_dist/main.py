"""The walk through one run, or through the runs of a sweep. From the repository's root:

torchrun --nproc_per_node=8 -m fedbsd_dist.main                        the default run
python -m fedbsd_dist.main train.rounds=5                              a laptop, one process
torchrun --nproc_per_node=8 -m fedbsd_dist.main run.yaml seed=1        a file of options, and one more
torchrun --nproc_per_node=8 -m fedbsd_dist.main seed=[0,1,2]           three runs in one launch, and a table
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from fedbsd_dist import environment
from fedbsd_dist.commandline import check_flag, help_text
from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import RunFailed
from fedbsd_dist.federation import Federation
from fedbsd_dist.host_memory import room
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.plan import Plan, make_plan, prepare_data
from fedbsd_dist.preflight import inspect
from fedbsd_dist.record import claim, directory
from fedbsd_dist.record.checkpoint import Checkpoints
from fedbsd_dist.record.recorder import diverged_before, open_record
from fedbsd_dist.record.saved import take_up
from fedbsd_dist.record.traces import Traces, check_rounds
from fedbsd_dist.record.traffic import Traffic
from fedbsd_dist.series import run_all
from fedbsd_dist.sweep import expand
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World, entry_point, meet


def run(arguments: Sequence[str], world: World) -> None:
    """A launch, from its command line to its records."""
    with world.ending():
        with world.one_voice("options"):
            check, options = check_flag(arguments)
            environment.check()
            points = expand(options, OPTIONS)
        if points[0].name:
            return run_all(points, check, world, planned, one_run)
        plan = planned(points[0].config, world, check)
        if check is not None:
            world.say(plan.text + (inspect(plan, world) if check == 0 else ""))
        else:
            one_run(plan, world)
        world.leave()


def planned(config: RunConfig, world: World, check: int | None) -> Plan:
    """Finds all that can be wrong with a run. `check`: plan for a launch of so many ranks, 0 for this one's."""
    world.watch.expect(config.wire.silence, config.wire.timeout)
    config = claim.again(config, world)
    prepare_data(config, world)
    ranks = world.imagined(check) if check else world
    with world.one_voice("plan"):
        plan = make_plan(config, ranks)
        directory.check(plan.config)
        check_rounds(plan.config)
    with world.one_voice("memory"):
        if doubts := plan.check_memory(ranks, world.everyone("room", json.dumps(room(plan.placement.device)))):
            world.complain(doubts)
    return plan


def one_run(plan: Plan, world: World) -> bool:
    """Claim the run's directory, and go on from where it is. Whether it came to its end."""
    config = plan.config
    world.watch.clients = plan.hosted
    run_dir = directory.agree(config, world)
    checkpoints = Checkpoints(run_dir, config, world)
    with world.one_voice("same everywhere"):
        plan.check_same(world)
    found = 0
    with ExitStack() as lock:
        with world.one_voice("start"):
            if world.is_server:
                lock.enter_context(claim.claim(run_dir, config))
                # another launch may have had it since
                directory.check(config)
                if config.run.resume == "auto":
                    found = checkpoints.newest()
                directory.check_partition(run_dir, plan.samples.identity, plan.partition.sha256, found)
        with world.one_voice("shared directory"):
            claim.check_shared(run_dir, world)
        if world.told("finished", str(config.run.resume == "auto" and directory.is_finished(run_dir))) == "True":
            world.say(f"{run_dir} holds this run, finished: nothing to do.")
            return True
        return train(plan, world, checkpoints, run_dir, int(world.told("resumed", str(found))))


def train(plan: Plan, world: World, checkpoints: Checkpoints, run_dir: Path, resumed: int) -> bool:
    """The rounds after round `resumed`, each recorded, and the summary; not all of them when asked to stop."""
    config, ledger = plan.config, Ledger()
    world.join(plan.placement)
    channel = plan.open_channel(world, ledger)
    shards, sizes = plan.load_shards(world.rank), plan.partition.train_sizes[: config.data.num_clients]
    with world.one_voice("going on"):
        private_file = run_dir / f"private-{world.rank}"
        federation = Federation(config, plan.method, plan.model, channel, shards, sizes, private_file)
        if resumed:
            checkpoints.goes_on(resumed, take_up(run_dir, resumed, federation.shared, federation.private))
    federation.diverged |= diverged_before(resumed, run_dir, world)
    if world.is_server:
        checkpoints.tidy(resumed)
    traces = Traces(run_dir, config, world, channel.phases, plan.placement.device)
    traffic = Traffic(run_dir, config, world, channel, len(plan.hosted[world.rank]))
    with world.stop.heard(world.watch.alarm), closing(open_record(plan, run_dir, resumed, world)) as recorder:
        recorder.say(plan.text + (f"\nresumed      after round {resumed}" if resumed else ""))
        traffic.start(resumed)
        channel.start()
        stop = False
        for number in range(resumed + 1, config.train.rounds + 1):
            with traces.round(number):
                try:
                    report = federation.round(number)
                except RunFailed:  # by all ranks alike: what is being saved is there to go on from
                    checkpoints.finish()
                    raise
                entries = ledger.drain()
                traffic.round(number, entries)
                with channel.phases("record"):
                    recorder.round(report, entries)
                stop = report.stop
                if checkpoints.due(number) or stop:
                    with channel.phases("checkpoint"):
                        checkpoints.begin(number, federation.shared, federation.private)
            checkpoints.check()
            if stop and number < config.train.rounds:
                checkpoints.finish()
                recorder.stopped(number)
                return False
        state = federation.state_sha256(config.train.rounds)
        recorder.ledger(ledger.drain())
        checkpoints.finish()
        recorder.finish(state, checkpoints.seconds)
    return not stop


def main(*options: str) -> None:
    """Exit code 0, or 2 for what the user can mend. `options`: beside those of the command line."""
    environment.print_any_name()
    arguments = [*sys.argv[1:], *options]
    world = meet()
    if "--help" in arguments or "-h" in arguments:
        world.say(help_text(OPTIONS))
    else:
        run(arguments, world)
    world.part()


start = entry_point(main)

if __name__ == "__main__":
    start()
