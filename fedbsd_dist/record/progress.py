"""Where a sweep stands: a line before each of its runs, and the table that it ends with."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedbsd_dist.record.directory import is_finished
from fedbsd_dist.units import duration
from fedbsd_dist.wire.world import World


class Progress:
    """Of the runs of one launch; every rank has it, the server speaks."""

    def __init__(self, runs: Mapping[Path, bool], world: World) -> None:
        """`runs`: the directory of each -> whether it is made again where it is finished already. Every rank hears
        from the server which are to be left as they are.
        """
        self._runs, self._world = [*runs], world
        finished = (is_finished(run) and not again for run, again in runs.items())
        states = "".join("01"[done] for done in finished) if world.is_server else ""
        self._done = [state == "1" for state in world.told("finished runs", states)]
        self._left = self._done.count(False)
        self._start, self._made = time.perf_counter(), 0
        self._failed: list[str] = []

    @property
    def listing(self) -> str:
        """A line a run."""
        states = ("finished" if done else "to do" for done in self._done)
        return "\n".join(f"  {state:9} {run.name}" for state, run in zip(states, self._runs, strict=True))

    def begin(self, number: int) -> bool:
        """Say that a run is next; whether it is finished already, and to be skipped."""
        head = f"run {number + 1} of {len(self._runs)}: {self._runs[number].name}"
        if self._done[number]:
            self._world.say(f"{head}  finished already")
            return True
        left = ""
        if self._made:
            seconds = (time.perf_counter() - self._start) / self._made * (self._left - self._made)
            left = f"  ({self._made} made, about {duration(seconds)} left)"
        self._made += 1
        self._world.say(f"\n{head}{left}")
        return False

    def fail(self, number: int, problem: str) -> None:
        """A run was given up, and the others go on."""
        self._world.complain(f"{self._runs[number].name}: {problem} The other runs go on.")
        self._failed.append(self._runs[number].name)

    def finish(self, runs: Sequence[Path], compared: Callable[[Sequence[Path]], str]) -> None:
        """Say how all runs of the sweep compare, other launches' too; fails where one of this launch did."""
        if self._world.is_server:
            finished = [run for run in runs if is_finished(run)]
            parts = [f"{self._made} runs in {duration(time.perf_counter() - self._start)}"]
            parts += [compared(finished)] if finished else []
            if len(finished) < len(runs):
                parts.append(f"{len(runs) - len(finished)} of the {len(runs)} runs of this sweep are not finished.")
            self._world.say("\n" + "\n\n".join(parts))
        if self._failed:
            self._world.fail(
                f"{len(self._failed)} of {len(self._runs)} runs failed: {', '.join(self._failed)}. The same command "
                f"with sweep.dir={self._runs[0].parent} tries them again."
            )
