"""Memory that --check foretells beside what the ranks of the run then take at their peak.

    python tests/benchmarks/check_memory.py [--quick] [--json] [SETTING ...]

The peak is of a rank's own pages, looked at every 2 ms: files' pages (packages, decoded samples) are shared, and the
system's to drop. Runs are short: as many rounds, checkpoints and tests as it takes to come to the peak. SETTING: its
number below.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rows import Row, main, measured

SECONDS = 600, 60
"""It takes, whole and quick."""

FOLDER, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SYNTHETIC = "CHECK_MEMORY_SAMPLES"
ROUNDS = ["train.rounds=3", "evaluate.every=1", "checkpoint.every=1"]
DIGITS = [*ROUNDS, "data.source=digits"]
MADE = [
    *("train.rounds=2", "evaluate.every=1", "checkpoint.every=1", "evaluate.head_epochs=1", "train.participation=1.0"),
    *("data.source=python", f"data.factory={Path(__file__).stem}:load", "data.partition=natural", "data.num_clients=0"),
]
SETTINGS: list[tuple[int, tuple[int, ...], list[str]]] = [
    (1, (), [*DIGITS]),
    (3, (), [*DIGITS]),
    (3, (), [*DIGITS, "method.name=scaffold", "train.batch_size=64"]),
    (1, (4, 600, 100, 28, 1), [*MADE, "train.batch_size=10"]),
    (1, (4, 600, 100, 28, 1), [*MADE, "train.batch_size=64", "method.name=ditto"]),
    (3, (4, 600, 100, 28, 1), [*MADE, "train.batch_size=256", "method.name=scaffold"]),
    (1, (4, 600, 100, 28, 1), [*MADE, "train.batch_size=256", "model.name=mlp", "method.name=ditto"]),
    (1, (8, 200, 20, 32, 3), [*MADE, "train.batch_size=10", "model.name=fedrep_cnn", "train.together=8"]),
    (1, (200, 10, 5, 28, 1), [*MADE, "train.batch_size=10", "method.name=ditto"]),
    (1, (200, 10, 5, 28, 1), [*MADE, "train.batch_size=10", "method.name=ditto", "client.store=mmap"]),
    (1, (2, 20, 10, 32, 3), [*MADE, "train.batch_size=10", "model.name=resnet18"]),
    (1, (2, 64, 10, 32, 3), [*MADE, "train.batch_size=64", "model.name=resnet18", "checkpoint.every=10"]),
    (1, (2, 20, 10, 32, 3), [*MADE, "train.batch_size=10", "model.name=resnet18", "method.name=ditto"]),
    (3, (2, 20, 10, 32, 3), [*MADE, "train.batch_size=10", "model.name=resnet18", "method.name=scaffold"]),
]
"""(ranks, samples made, options); samples made: clients, training and test samples of each, pixels a side, channels."""


def load() -> dict[str, Any]:
    """The samples of a setting."""
    clients, train, test, side, channels = json.loads(os.environ[SYNTHETIC])
    n = clients * (train + test)
    return {
        "x": np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8),
        "y": np.arange(n) % 10,
        "client": np.repeat(np.arange(clients), train + test),
        "split": np.tile(np.repeat(["train", "test"], [train, test]), clients),
    }


def foretold(ranks: int, options: list[str]) -> list[float]:
    """In this process: bytes of every rank."""
    from fedbsd_dist.commandline import load as configuration
    from fedbsd_dist.methods import OPTIONS
    from fedbsd_dist.plan import make_plan, prepare_data
    from fedbsd_dist.wire.world import meet

    config = configuration(options, OPTIONS)
    prepare_data(config, meet())
    memory = make_plan(config, meet().imagined(ranks)).memory
    assert not isinstance(memory, str), memory
    return [sum(memory.of(rank)[0].values()) for rank in range(ranks)]


def own_pages(process: int) -> int:
    """Bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def peaks(ranks: int, options: list[str], environment: dict[str, str]) -> list[int]:
    """Bytes of every rank of a run at its peak."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        mine = environment | meeting | {name: str(value) for name, value in place.items()}
        command = [sys.executable, "-m", "fedbsd_dist.main", *options]
        processes.append(subprocess.Popen(command, env=mine, cwd=ROOT, stdout=subprocess.DEVNULL))
    found = [0] * ranks
    while any(process.poll() is None for process in processes):
        found = [max(peak, own_pages(process.pid)) for peak, process in zip(found, processes, strict=True)]
        time.sleep(0.002)
    assert not any(process.returncode for process in processes), options
    return found


def rows(quick: bool, *arguments: str) -> Iterator[Row]:
    """For each setting the server, and the rank that is foretold worst."""
    numbers = [int(argument) for argument in arguments] or ([0, 3] if quick else range(len(SETTINGS)))
    for number in numbers:
        ranks, samples, options = SETTINGS[number]
        shown = " ".join(option for option in options if option not in {*DIGITS, *MADE})
        what = f"{number}: {ranks} ranks, {f'{samples}' if samples else 'digits'}, {shown or 'defaults'}"
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOLDER)]),
                SYNTHETIC: json.dumps(samples),
            }
            given = [*options, "run.device=cpu", f"run.dir={folder}/run", f"data.cache={folder}/cache"]
            command = [sys.executable, __file__, "--foretell", str(ranks), *given]
            said = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            expected, taken = json.loads(said.stdout.splitlines()[-1]), peaks(ranks, given, environment)
        off = {rank: abs(expected[rank] / taken[rank] - 1) for rank in range(ranks)}
        for rank in dict.fromkeys((0, max(off, key=lambda rank: off[rank] * (rank > 0)))):
            compared = f"{expected[rank] / 1e6:.0f} MB foretold, {taken[rank] / 1e6:.0f} taken"
            yield measured(6, f"{what}: rank {rank}, {compared}", [off[rank]], "of it off", bound=0.1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--foretell"]:
        print(json.dumps(foretold(int(sys.argv[2]), sys.argv[3:])))
    else:
        main(rows)
