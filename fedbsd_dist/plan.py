"""What a run will do, worked out before it does anything: who hosts whom, memory, bytes a round."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.partition import Partition
from fedbsd_dist.data.sources import Samples
from fedbsd_dist.errors import UserError
from fedbsd_dist.federation import cohort_size, shared_groups
from fedbsd_dist.methods.contract import AnyOptions, Method
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.record.console import size
from fedbsd_dist.wire.ledger import ring_bytes
from fedbsd_dist.wire.world import Placement, World

FLOAT = 4
"""Bytes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The part of a plan that the run needs."""

    clients: list[list[int]]
    """Of every rank, ascending."""
    model_parameters: int
    head_parameters: int
    upload_bytes: int
    """Of one client in one round; its download is as large."""
    text: str


def make_plan(
    config: RunConfig,
    world: World,
    placement: Placement,
    samples: Samples,
    partition: Partition,
    method: Method[AnyOptions],
    model: FlatModel,
) -> Plan:
    """Raises UserError when there are fewer clients than ranks to host them."""
    clients = assign(partition.train_sizes, host_ranks(config, world.size), world.size)
    sizes = {group: buffer.numel() for group, buffer in model.buffers.items()}
    shared = {group: sizes[group] for group in shared_groups(method, model)}
    private = sum(count for group, count in sizes.items() if group not in shared or group in method.kept)
    upload = FLOAT * sum(shared.values())
    cohort = cohort_size(config.train.participation, config.data.num_clients)
    item = 8 if config.wire.sum == "exact" else FLOAT
    payload = item * (sum(shared.values()) + 3 + len(method.losses) + 2 * world.size)
    whole = FLOAT * sum(sizes.values())
    pixels = int(samples.x[0].size)
    memory = [
        # live model, gradient, momentum; shared state and its mean; the channel's buffer
        3 * whole
        + 2 * upload
        + payload
        # the hosted clients' private state and samples; the turn's images as floats, twice while shuffled
        + sum(
            FLOAT * private + pixels * (partition.train_sizes[client] + partition.test_sizes[client])
            for client in hosted
        )
        + 2 * FLOAT * pixels * max((partition.train_sizes[client] for client in hosted), default=0)
        for hosted in clients
    ]
    hosting = [len(hosted) for hosted in clients if hosted]
    server = "rank 0 is the server" + (" and trains" if clients[0] else "")
    stays = [group for group in sizes if group not in shared]
    wire = ring_bytes(payload, world.size)
    rows = {
        "ranks": f"{world.size}: {server}, {len(hosting)} host clients, {_range(hosting)} each",
        "device": f"{placement.device.type}, {placement.backend}: {placement.reason}",
        "data": f"{samples.name}: {sum(partition.train_sizes)} training, {sum(partition.test_sizes)} test samples",
        "partition": f"{config.data.partition}, {_range(partition.train_sizes)} training samples a client",
        "clients": f"{config.data.num_clients}, {cohort} of them a round",
        "model": ", ".join(f"{group} {count:,}" for group, count in sizes.items()) + " parameters",
        "crosses": f"{' + '.join(shared) or 'nothing'}; stays: {' + '.join(stays) or 'nothing'}",
        "bytes a round": f"{size(upload * cohort)} up and as much down, of {size(whole * cohort)} with FedAvg",
        "on the wire": f"one all-reduce of {size(payload)}, {size(wire)} between ranks by the ring model",
        "memory": f"at most {size(max(memory))} of tensors a rank, activations and the runtime apart",
    }
    width = max(map(len, rows))
    return Plan(
        clients=clients,
        model_parameters=sum(sizes.values()),
        head_parameters=sizes["head"],
        upload_bytes=upload,
        text="\n".join(f"{name:{width}}  {value}" for name, value in rows.items()),
    )


def host_ranks(config: RunConfig, world_size: int) -> range:
    """The ranks that host clients."""
    return range(0 if config.server.trains or world_size == 1 else 1, world_size)


def assign(costs: Sequence[int], ranks: Sequence[int], world_size: int) -> list[list[int]]:
    """Clients of every rank, balanced by cost: the costliest first, each to the rank with least so far."""
    if len(costs) < len(ranks):
        raise UserError(
            f"data.num_clients={len(costs)}: fewer clients than the {len(ranks)} ranks that host them. "
            f"Use data.num_clients={len(ranks)} or more, or {world_size - len(ranks) + len(costs)} ranks or fewer."
        )
    hosted: list[list[int]] = [[] for _ in range(world_size)]
    load = dict.fromkeys(ranks, 0)
    for client in sorted(range(len(costs)), key=lambda client: (-costs[client], client)):
        rank = min(ranks, key=lambda rank: (load[rank], rank))
        hosted[rank].append(client)
        load[rank] += costs[client]
    return [sorted(clients) for clients in hosted]


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
