"""The runs of a sweep, one after another in one process group, and the table of all."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fedbsd_dist.config import RunConfig
from fedbsd_dist.errors import RunFailed
from fedbsd_dist.plan import Plan
from fedbsd_dist.preflight import inspect
from fedbsd_dist.record import claim, communication
from fedbsd_dist.record.compare import comparison
from fedbsd_dist.record.directory import AUTO
from fedbsd_dist.record.progress import Progress
from fedbsd_dist.sweep import Point, part_of, placed
from fedbsd_dist.wire.world import World


def run_all(
    points: Sequence[Point],
    check: int | None,
    world: World,
    planned: Callable[[RunConfig, World, int | None], Plan],
    one_run: Callable[[Plan, World], bool],
) -> None:
    """Do this launch's slice of `points`, each as `planned` and `one_run` would alone; `check`: only plan them.

    A run that is given up is told of, and the others go on; then the launch fails at the end.
    """
    folder = claim.agree_sweep(points[0].config, world)
    placed_ones = [placed(point, folder) for point in part_of(points)]
    # torchrun may have started the ranks again: what was made already goes on
    configs = [claim.again(config, world.within(f"again/{number}")) for number, config in enumerate(placed_ones)]
    # all are checked before the first begins, and planned again when it is their turn, for a plan holds memory
    plans = (planned(config, world.within(f"check/{number}"), check) for number, config in enumerate(configs))
    texts = [plan.text for plan in plans]
    progress = Progress({Path(config.run.dir): config.run.overwrite for config in configs}, world)
    if check is not None:
        found = inspect(planned(configs[0], world.within("check"), check), world) if check == 0 else ""
        world.say(f"{texts[0]}{found}\n\nThe first of {len(texts)} runs:\n{progress.listing}")
        return world.leave()
    with world.one_voice("folder"):
        if world.is_server and points[0].config.sweep.dir == AUTO:
            claim.remember(Path(folder))
    world.say(f"sweep: {len(configs)} of {len(points)} runs, in {folder}")
    for number, config in enumerate(configs):
        if progress.begin(number):
            continue
        gc.collect()  # a model that refers to itself would keep the memory of the run before
        here = world.within(f"run/{number}")
        try:
            if not one_run(planned(config, here, None), here):
                return world.leave()  # asked to stop
        except RunFailed as failure:
            progress.fail(number, failure.problem)
    world.leave()
    profile = points[0].config.profile
    told = partial(communication.report, Path(folder), target=profile.target) if profile.comm else comparison
    progress.finish([Path(folder) / point.name for point in points], told)
