"""Seconds from launch to the first SGD step, and memory of each rank then.

    python tests/benchmarks/start_up.py [--quick] [RANKS ...] [CONFIG.yaml] [section.field=value ...]

Starts the program under torchrun for each number of ranks (8 if none is given), all clients taking part, and stops it
when every rank that hosts clients has made its first step. A rank's own memory is all but files mapped into it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rows import Row, main, measured

SECONDS = 120, 50
"""It takes, whole and quick."""

CHILD = "START_UP_FOLDER"


def child(folder: Path) -> None:
    """A rank: the program itself, with a note at each mark of the way."""
    marks = {"process": time.time()}
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import torch

    from fedbsd_dist import main as program
    from fedbsd_dist import optimizer
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

    step, load = optimizer.SGD.step, program.Plan.load_shards

    def planned(plan: program.Plan, rank: int) -> object:
        """From here on a step is one of the run: the plan has rehearsed some."""
        marks["plan"] = time.time()
        optimizer.SGD.step = lambda self, *of: (step(self, *of), leave())  # type: ignore[method-assign]
        return load(plan, rank)

    program.Plan.load_shards = planned  # type: ignore[method-assign, assignment]
    Channel.reduce = leave  # type: ignore[method-assign]  # the server comes here without a step
    torch.set_num_threads(1)
    program.main()


def measure(ranks: int, arguments: list[str]) -> dict[str, float]:
    """Of one launch, seconds and MB."""
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
    imported = max(mark["imports"] for mark in found)
    return {
        "launched": max(mark["process"] for mark in found) - start,
        "imports": max(mark["imports"] - mark["process"] for mark in found),
        "planned": max(mark["plan"] for mark in found) - imported,
        "beyond": max(mark["step"] for mark in found) - imported,
        "step": max(mark["step"] for mark in found) - start,
        "least": min(mark["own"] / 1e6 for mark in found),
        "most": max(mark["own"] / 1e6 for mark in found),
    }


def rows(quick: bool, *arguments: str) -> Iterator[Row]:
    """Of each number of ranks."""
    numbers = [int(argument) for argument in arguments if argument.isdigit()] or [8]
    options = [argument for argument in arguments if not argument.isdigit()]
    for ranks in numbers:
        runs = [measure(ranks, options) for _ in range(2 if quick else 5)]
        for key, what, unit, bound in (
            ("beyond", "from packages imported to the first step on all ranks", "s", 2.0),
            ("step", "from launch to the first step on all ranks", "s", None),
            ("launched", "of that, until torchrun has started the ranks", "s", None),
            ("imports", "of that, importing packages", "s", None),
            ("planned", "of that, data and plan", "s", None),
            ("least", "a rank's own memory then, the smallest", "MB", None),
            ("most", "a rank's own memory then, the largest", "MB", None),
        ):
            what = f"{ranks} ranks, {' '.join(options) or 'embedded data'}: {what}"
            yield measured(5, what, [run[key] for run in runs], unit, bound=bound)


if __name__ == "__main__":
    if folder := os.environ.get(CHILD):
        child(Path(folder))
    else:
        main(rows)
