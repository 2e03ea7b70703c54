"""`--check` under torchrun: what only the ranks together can find wrong, before a run's first round."""

from fedbsd_dist.plan import Plan
from fedbsd_dist.record import claim, directory
from fedbsd_dist.units import size
from fedbsd_dist.wire.bandwidth import measure
from fedbsd_dist.wire.world import World


def inspect(plan: Plan, world: World) -> str:
    """Lines for the plan. Ends the launch where ranks do not agree, or do not share the run directory."""
    with world.one_voice("same everywhere"):
        plan.check_same(world)
    place = directory.nearest(plan.config)
    with world.one_voice("shared directory"):
        claim.check_shared(place, world)
    if world.size == 1:
        return f"\nrun directory  {place} can be written"
    world.join(plan.placement)
    speed = measure(world, plan.placement, plan.payload_bytes)
    rate = f"{size(speed.rank_bytes_per_second)} a second from each rank by the ring model"
    hosts = len(set(world.names))
    return (
        f"\nagreed         all {world.size} ranks, on {hosts} host{'s' if hosts > 1 else ''}: code, packages, options, "
        "data, partition, model"
        f"\nrun directory  {place}: all ranks see it and can write"
        f"\nall-reduce     of {size(speed.payload_bytes)} in {1000 * speed.seconds:.1f} ms, {rate}"
    )
