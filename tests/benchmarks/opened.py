"""A federation as the program opens it, for benchmarks to do single rounds of; and what memory a process has."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from fedbsd_dist.commandline import load
from fedbsd_dist.federation import Federation, Report
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.plan import Plan, make_plan
from fedbsd_dist.record.checkpoint import Checkpoints
from fedbsd_dist.record.recorder import Silence, open_record
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World


@dataclass
class Opened:
    """A run before its next round, on this rank."""

    plan: Plan
    federation: Federation
    checkpoints: Checkpoints
    recorder: Silence
    ledger: Ledger
    number: int = 0
    """Of the last round."""
    recording: float = 0.0
    """Seconds that the record of the last round took."""

    def round(self) -> Report:
        """The next round, recorded."""
        self.number += 1
        report = self.federation.round(self.number)
        start = time.perf_counter()
        with self.federation.phases("record"):
            self.recorder.round(report, self.ledger.drain())
        self.recording = time.perf_counter() - start
        return report

    def timed(self) -> tuple[float, Report]:
        """The next round, recorded, and its seconds from all ranks' start to the last one's end."""
        dist.barrier()
        start = time.perf_counter()
        report = self.round()
        dist.barrier()
        return time.perf_counter() - start, report


def opened(world: World, run_dir: Path, options: list[str]) -> Opened:
    """As the program does it, in the same order; without end, evaluation and checkpoints unless `options` ask."""
    always = ["train.rounds=1000000", "evaluate.every=0", "checkpoint.every=0", f"run.dir={run_dir}"]
    plan = make_plan(load([*always, *options], OPTIONS), world)
    world.join(plan.placement)
    ledger = Ledger()
    channel = plan.open_channel(world, ledger)
    shards, sizes = plan.load_shards(world.rank), plan.partition.train_sizes[: plan.config.data.num_clients]
    run_dir.mkdir(parents=True, exist_ok=True)
    private_file = run_dir / f"private-{world.rank}"
    federation = Federation(plan.config, plan.method, plan.model, channel, shards, sizes, private_file)
    recorder = open_record(plan, run_dir, 0, world)
    recorder.say = lambda text: None  # type: ignore[method-assign]
    channel.start()
    return Opened(plan, federation, Checkpoints(run_dir, plan.config, world), recorder, ledger)


def own_bytes() -> int:
    """Memory of this process now, without what it has mapped from files."""
    return 1024 * _status("RssAnon")


def peak_bytes() -> int:
    """The most memory that this process ever had, mapped files and packages included."""
    return 1024 * _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
