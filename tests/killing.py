"""Runs under torchrun, driven from outside, by processes and files alone: killed, launched again, and compared."""

import contextlib
import json
import logging
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RANKS = 3
VICTIMS = TORCHRUN, SERVER, CLIENT = "torchrun", "server", "client"
BEFORE, ROUND, CHECKPOINT, AFTER = (
    "before the first round",
    "in a round",
    "writing a checkpoint",
    "after the last round",
)
PHASES = (BEFORE, ROUND, CHECKPOINT, AFTER)
OPTIONS = (
    "model.factory=killing:small",
    "data.num_clients=6",
    "data.classes=[0,1,2,3]",  # fewer samples, less time
    "train.participation=0.5",
    "train.local_epochs=1",
    "train.batch_size=64",
    "evaluate.every=2",
    "evaluate.head_epochs=1",
)
LIMIT = 300.0
"""Seconds after which a launch counts as hanging."""
ORPHANS = 90.0
"""Seconds in which processes whose torchrun was killed have ended by themselves."""
MARK = "LAUNCH_OF_KILLING"
"""Environment variable by which the processes of a launch are found, orphans too."""


class Wrong(Exception):
    """What must not happen, and where to look."""


def small(shape: tuple[int, int, int], num_classes: int) -> Any:
    """A `model.factory`: quick, and with batch norm, which some methods need."""
    from torch import nn

    channels, height, width = shape
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Linear(8 * ((height - 1) // 2) * ((width - 1) // 2), 256), nn.ReLU()),
        nn.Linear(256, num_classes),
    )


class Launch:
    """One torchrun, whose output goes into a file."""

    def __init__(self, log: Path, options: Sequence[str], torchrun: Sequence[str] = (), work: Path = ROOT) -> None:
        """`torchrun`: options of its own; `work`: the folder to start in."""
        self.log, self._mark = log, secrets.token_hex(8)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        # temporary files in the log's folder: a torchrun that is killed leaves some
        variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(log.parent), MARK: self._mark}
        with log.open("w") as output:
            self._torchrun = subprocess.Popen(
                [*command, *torchrun, "-m", "fedbsd_dist.main", *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                env=os.environ | variables,
            )

    def processes(self) -> dict[int, int | None]:
        """Process -> its rank, None for torchrun's own, of all that live."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if b"fedbsd_dist.main" not in (path / "cmdline").read_bytes():
                    continue
                entries = (path / "environ").read_text(errors="replace").split("\0")
                variables = dict(entry.partition("=")[::2] for entry in entries)
                if variables.get(MARK) == self._mark:
                    found[int(path.name)] = int(variables["RANK"]) if "RANK" in variables else None
        return found

    def ended(self, seconds: float) -> bool:
        """Whether torchrun has ended, or does within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._torchrun.wait(seconds)
        return self._torchrun.returncode is not None

    def kill(self, victim: str, draw: random.Random) -> bool:
        """Kill one of VICTIMS as soon as it is there; False where the launch ended before."""
        rank = {TORCHRUN: None, SERVER: 0, CLIENT: draw.randrange(1, RANKS)}[victim]
        while not self.ended(0.01):
            process = next((process for process, of in self.processes().items() if of == rank), None)
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    return True
        return False

    def code(self) -> int:
        """torchrun's exit code. Raises Wrong where it hangs."""
        if not self.ended(LIMIT):
            raise Wrong(f"not at its end after {LIMIT:g} s: {self.log}")
        return self._torchrun.returncode


class Killed:
    """A run that is killed and launched again."""

    def __init__(self, folder: Path, options: Sequence[str], draw: random.Random) -> None:
        """`folder`: for the run directory and what the launches say; `options`: with `train.rounds`."""
        folder.mkdir(parents=True)
        self.run, self._folder, self._draw = folder / "run", folder, draw
        self._options = [*options, f"run.dir={self.run}", "run.resume=auto"]
        self._rounds = next(int(option[13:]) for option in options if option.startswith("train.rounds="))
        self.launches: list[Launch] = []

    def kill(self, victim: str, after: float) -> str:
        """Launch, and kill one of VICTIMS `after` seconds; in which of PHASES, or empty where the run was at its end.

        When torchrun is killed its ranks are left to themselves, and the next launch does not wait for them.
        """
        launch = self._launch()
        if launch.ended(after) or not launch.kill(victim, self._draw):
            self._check(launch)
            return ""
        phase = self._phase(launch)
        launch.code()
        return phase

    def finish(self) -> None:
        """Launch, to the end of the run."""
        self._check(self._launch())

    def _check(self, launch: Launch) -> None:
        if launch.code() != 0:
            raise Wrong(f"exit code {launch.code()} of a launch that nobody killed: {launch.log}")

    def saved(self) -> int:
        """The round that the next launch goes on after."""
        manifests = self.run.glob("checkpoints/round-*/manifest.json")
        return max((int(path.parent.name[6:]) for path in manifests), default=0)

    def _launch(self) -> Launch:
        self.launches.append(Launch(self._folder / f"launch-{len(self.launches) + 1:02}.txt", self._options))
        return self.launches[-1]

    def _phase(self, launch: Launch) -> str:
        """By what the launch has said and the run has written."""
        if not re.search("^clients +[0-9]", launch.log.read_text(), re.M):  # of the plan
            return AFTER if (self.run / "summary.json").exists() else BEFORE
        if any(not (folder / "manifest.json").exists() for folder in self.run.glob("checkpoints/round-*")):
            return CHECKPOINT
        return AFTER if (self.run / "metrics.jsonl").read_text().count("\n") == self._rounds else ROUND


def left_over(launches: Iterable[Launch]) -> list[int]:
    """Processes of launches that are over, and have not ended by themselves in ORPHANS seconds."""
    end, every = time.monotonic() + ORPHANS, [*launches]
    while (left := [process for launch in every for process in launch.processes()]) and time.monotonic() < end:
        time.sleep(0.5)
    return left


def differing(run: Path, other: Path) -> list[str]:
    """What of two finished runs is not equal; seconds may be."""
    facts, others = _facts(run), _facts(other)
    return [name for name, value in facts.items() if value != others[name]]


def _facts(run: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every launch whose rounds were made again
    summary = json.loads((run / "summary.json").read_text())
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    newest = sorted(run.glob("checkpoints/round-*"))[-1]
    return {
        "state_sha256": summary["state_sha256"],
        "summary.json": {**summary, "seconds": None},
        **{name: _lines(run / name) for name in ("metrics.jsonl", "ledger.jsonl")},
        **{name: (run / name).read_text() for name in ("clients.csv", "partition.json")},
        "TensorBoard": {
            tag: [(event.step, 0 if tag.startswith("seconds/") else event.value) for event in events.Scalars(tag)]
            for tag in sorted(events.Tags()["scalars"])
        },
        "checkpoint": {newest.name: json.loads((newest / "manifest.json").read_text())["files"]},
        "names of files": sorted(str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": None} for line in path.read_text().splitlines()]
