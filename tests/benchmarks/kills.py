"""Does a run that is killed at any instant, and launched again, end as one that never was?

    python tests/benchmarks/kills.py [KILLS [SEED]]

For every method in turn: a run under torchrun that nobody disturbs; then the same run with run.resume=auto, in each
launch of which one process (torchrun's own, the server, or a rank of clients) gets SIGKILL after a random fraction of
the time that the undisturbed run would have taken, until the last launch, which nobody kills, or until the run came to
its end before its kill, whereupon another begins. All that the runs have written is compared, apart from seconds. 100
kills unless said otherwise, dealt out to the methods; a seed repeats the draws, though not what the processes were at
just then. Exits with 1, and keeps all files, where anything differs, hangs or is left over.
"""

import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from killing import BEFORE, OPTIONS, PHASES, RANKS, VICTIMS, Killed, Wrong, differing, left_over

from fedbsd_dist.methods import METHODS
from fedbsd_dist.units import duration


@dataclass
class Tally:
    """Of all methods."""

    kills: int
    """To be made."""
    draw: random.Random
    start: float = field(default_factory=time.monotonic)
    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(victim, phase) -> kills."""
    runs: list[Killed] = field(default_factory=list)
    late: int = 0
    """Kills that were to come after the end of the run, and so did not."""
    compared: int = 0
    equal: int = 0
    wrong: list[str] = field(default_factory=list)

    def begin(self, folder: Path, options: Sequence[str]) -> Killed:
        """A run."""
        self.runs.append(Killed(folder, options, self.draw))
        return self.runs[-1]

    def killed(self, method: str, victim: str, phase: str) -> None:
        """Count a kill, and tell of it."""
        self.done[victim, phase] += 1
        made = self.done.total()
        left = (time.monotonic() - self.start) / made * (self.kills - made)
        print(f"{made:3} of {self.kills}  {method:10}  {victim:8}  {phase:21}  left {duration(left)}", flush=True)

    def fail(self, problem: str) -> None:
        """Note what is wrong, and go on."""
        self.wrong.append(problem)
        print(f"WRONG  {problem}", flush=True)

    def table(self) -> str:
        """Kills by phase and victim, and what came of them."""
        rows = [
            "| killed | torchrun | the server | a rank of clients |\n|---|---|---|---|",
            *(f"| {phase} | {' | '.join(str(self.done[victim, phase]) for victim in VICTIMS)} |" for phase in PHASES),
        ]
        spent = duration(time.monotonic() - self.start)
        return "\n".join(rows) + (
            f"\n\n{self.done.total()} kills in {spent}, {self.late} more came too late; "
            f"{self.compared} runs compared, {self.equal} exactly equal"
        )


def disturb(tally: Tally, folder: Path, method: str, varied: Sequence[str], kills: int) -> None:
    """The undisturbed run of a method, and others with so many kills among them, compared with it."""
    options = [*OPTIONS, "train.rounds=12", f"method.name={method}", *varied]
    whole = tally.begin(folder / "undisturbed", options)
    begin = time.monotonic()
    whole.finish()
    seconds = time.monotonic() - begin
    rounds = [line["seconds"]["total"] for line in map(json.loads, (whole.run / "metrics.jsonl").open())]
    while kills:
        run = tally.begin(folder / f"killed-{len(tally.runs):03}", options)
        phase = BEFORE
        while kills and phase:
            victim = tally.draw.choice(VICTIMS)
            # the root: most of a short run is its start-up, and later instants are to be drawn more often
            phase = run.kill(victim, tally.draw.random() ** 0.5 * (seconds - sum(rounds[: run.saved()])))
            if phase:
                tally.killed(method, victim, phase)
                kills -= 1
        if phase:
            run.finish()
        else:
            tally.late += 1
        tally.compared += 1
        if differences := differing(run.run, whole.run):
            tally.fail(f"{run.run}: {', '.join(differences)} differ from {whole.run}")
        else:
            tally.equal += 1


def main() -> None:
    """Kill, compare, and print the table."""
    kills, seed = [*map(int, sys.argv[1:]), *(100, random.SystemRandom().randrange(10**6))[len(sys.argv) - 1 :]]
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"{platform.machine()}, torch {torch.__version__}, {RANKS} ranks, {kills} kills, seed {seed}, {folder}")
    tally = Tally(kills, random.Random(seed))
    shares = [(kills + number) // len(METHODS) for number in reversed(range(len(METHODS)))]
    for number, (method, share) in enumerate(zip(METHODS, shares, strict=True)):
        varied = f"wire.sum={('exact', 'float32')[number % 2]}", f"checkpoint.every={1 + number // 2 % 2}"
        try:
            if share:
                disturb(tally, folder / method, method, varied, share)
        except (Wrong, OSError, ValueError) as problem:  # the last two: of files that are not as they have to be
            tally.fail(f"{method}: {problem}")
    if left := left_over(launch for run in tally.runs for launch in run.launches):
        tally.fail(f"processes that did not end by themselves: {', '.join(map(str, left))}")
    for process in left:
        os.kill(process, signal.SIGKILL)
    print(f"\n{tally.table()}")
    if tally.wrong:
        sys.exit("\n".join(tally.wrong))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
