"""What does each codec save, and what does it cost in accuracy and time?

    python tests/benchmarks/codecs.py [--quick] [section.field=value ...]

Whole runs of FedAvg on 2 ranks, one of them the server that trains too, alike but for `wire.codec`: on the embedded
digits, and on CIFAR-10 where the environment variable CIFAR10 names its folder or archive of images (see `sides`). For
each: what clients sent, what ranks sent by the ring model, accuracy at `received` in the last evaluation, what clients
had sent when it first was 95 % of the best that `none` came to, and the seconds of uploading, collectives and the
server's step, of all rounds. Quick: fewer rounds, one seed and only the digits.
"""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import ranks
from ranks import federate
from rows import Row, cannot, main, measured

SECONDS = 2400, 150
"""It takes, whole and quick."""

ranks.TIMEOUT = 3600
GOAL = 11
SHARE = 0.95
CODECS = {
    "none": ["wire.codec=none"],
    "bf16": ["wire.codec=bf16"],
    "int8": ["wire.codec=int8"],
    **{f"topk {share}": ["wire.codec=topk", f"wire.topk={share}"] for share in (0.1, 0.03, 0.01)},
}
COMMON = ("method.name=fedavg", "server.trains=true", "evaluate.head_epochs=0", "checkpoint.every=0", "data.alpha=1.0")
DIGITS = ("train.batch_size=32", "train.local_epochs=1", "train.lr=0.05")
CIFAR10 = ("data.source=folder", "train.batch_size=50", "train.local_epochs=1", "train.lr=0.05", "data.num_clients=10")


@dataclass(frozen=True)
class Outcome:
    """Of one run."""

    up: float
    """MB that clients sent."""
    wire: float
    """MB that ranks sent."""
    curve: Sequence[tuple[float, float]]
    """(MB that clients had sent, accuracy at `received`) at each evaluation."""
    seconds: float
    """Of phase `reduce`, of the mean rank that hosts clients, all rounds together."""

    def sent_until(self, target: float) -> float | None:
        """MB."""
        return next((sent for sent, accuracy in self.curve if accuracy >= target), None)


def outcome(run: Path) -> Outcome:
    """Of a finished run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sent, curve = 0.0, []
    for line in lines:
        sent += line["bytes"]["federated_up"] / 1e6
        if "received" in line["accuracy"]:
            curve.append((sent, line["accuracy"]["received"]["mean"]))
    wire = sum(line["bytes"]["wire"] for line in lines) / 1e6
    return Outcome(sent, wire, curve, sum(line["seconds"]["phases"]["reduce"] for line in lines))


def rows(quick: bool, *arguments: str) -> Iterator[Row]:
    """Five rows for each data set and codec."""
    length = ("train.rounds=10", "evaluate.every=2") if quick else ("train.rounds=40", "evaluate.every=2")
    yield from compared("digits", [*COMMON, *DIGITS, *length, *arguments], 1 if quick else 3)
    if not quick and not Path(os.environ.get("CIFAR10") or "/nowhere").exists():
        why = "its data is not here. Set the environment variable CIFAR10 to a folder or archive of its images."
        yield cannot(GOAL, "CIFAR-10", why)
    elif not quick:
        root = f"data.root={Path(os.environ['CIFAR10']).resolve()}"
        options = [*COMMON, *CIFAR10, root, "train.rounds=30", "evaluate.every=3", "train.participation=0.5"]
        yield from compared("CIFAR-10", [*options, *arguments], 1)


def compared(data: str, options: Sequence[str], seeds: int) -> Iterator[Row]:
    """All codecs on one data set."""
    target = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in CODECS.items():
            found = []
            for seed in range(seeds):
                run = Path(folder) / f"{name}-{seed}"
                federate(run, 2, *options, *codec, f"seed={seed}")
                found.append(outcome(run))
            if name == "none":
                target = SHARE * statistics.fmean(max(accuracy for _, accuracy in of.curve) for of in found)
            what = f"{data}, {name}"
            yield measured(GOAL, f"{what}: sent by clients", [of.up for of in found], "MB")
            yield measured(GOAL, f"{what}: sent by ranks", [of.wire for of in found], "MB")
            yield measured(GOAL, f"{what}: received", [100 * of.curve[-1][1] for of in found], "%")
            reached = [sent for of in found if (sent := of.sent_until(target)) is not None]
            until = f"{what}: sent until {100 * target:.1f} %"
            if len(reached) == len(found):
                yield measured(GOAL, until, reached, "MB")
            else:
                yield cannot(GOAL, until, f"{len(found) - len(reached)} of {len(found)} runs did not come to it.")
            yield measured(GOAL, f"{what}: uploads, collectives, step", [of.seconds for of in found], "s")


if __name__ == "__main__":
    main(rows)
