"""Seconds from launch to the first SGD step, and memory of each rank then.

    python tests/benchmarks/start_up.py [RANKS ...] [CONFIG.yaml] [section.field=value ...]

Starts the program under torchrun for each number of ranks (8 if none is given), all clients taking part, and stops it
when every rank that hosts clients has made its first step. A rank's own memory is all but files mapped into it.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = "START_UP_FOLDER"


def child(folder: Path) -> None:
    """A rank: the program itself, with a note at each mark of the way."""
    marks = {"process": time.time()}
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import torch

    from fedbsd_dist import main, optimizer
    from fedbsd_dist.wire.channel import Channel

    marks["imports"] = time.time()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def leave(*_: object) -> None:
        marks["step"] = time.time()
        fields = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        kilobytes = {key.rstrip(":"): int(value) for key, value in fields.items()}
        memory = {"own": 1000 * kilobytes["Anonymous"]}
        partial = folder / f".{rank}"
        partial.write_text(json.dumps({**marks, **memory}))
        partial.rename(folder / f"{rank}.json")
        while len(list(folder.glob("*.json"))) < size:
            time.sleep(0.01)
        os._exit(0)

    step = optimizer.SGD.step
    optimizer.SGD.step = lambda self, loss: (step(self, loss), leave())  # type: ignore[method-assign]
    Channel.reduce = leave  # type: ignore[method-assign]  # the server comes here without a step
    load = main.Plan.load_shards
    main.Plan.load_shards = lambda self, rank: (marks.update(plan=time.time()), load(self, rank))[1]  # type: ignore
    torch.set_num_threads(1)
    main.main()


def measure(ranks: int, arguments: list[str]) -> None:
    """Print a row."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        marks.mkdir()
        environment = os.environ | {CHILD: str(marks), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", __file__]
        options = [*arguments, "train.participation=1.0", f"run.dir={folder}/run"]
        start = time.time()
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
        found = [json.loads(path.read_text()) for path in marks.glob("*.json")]
        if len(found) < ranks:
            sys.exit(done.stderr[:3000])
    first = min(mark["step"] for mark in found) - start
    last = max(mark["step"] for mark in found) - start
    spawned = max(mark["process"] for mark in found) - start
    imports = max(mark["imports"] - mark["process"] for mark in found)
    planned = max(mark["plan"] - mark["imports"] for mark in found)
    own = [mark["own"] / 1e6 for mark in found]
    print(
        f"{ranks} ranks: first step after {first:.1f} s, on all ranks after {last:.1f} s; "
        f"torchrun's start {spawned:.1f} s, importing packages {imports:.1f} s, data and plan {planned:.1f} s; "
        f"own memory {min(own):.0f} to {max(own):.0f} MB a rank, {sum(own):.0f} MB in all"
    )


def main() -> None:
    """Print a row a number of ranks."""
    if folder := os.environ.get(CHILD):
        return child(Path(folder))
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()] or [8]
    arguments = [argument for argument in sys.argv[1:] if not argument.isdigit()]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(arguments) or 'default options'}")
    for ranks in numbers:
        measure(ranks, arguments)


if __name__ == "__main__":
    main()
