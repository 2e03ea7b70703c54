"""All that a run is made of, built and checked before it does anything, and what it will cost."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedbsd_dist.client import check_batch_norm
from fedbsd_dist.clients import coded_groups, private_groups, shared_groups
from fedbsd_dist.cohorts import assign, cohort_size, foresee
from fedbsd_dist.config import Fault, RunConfig
from fedbsd_dist.data import manifest, sources
from fedbsd_dist.data.partition import Partition, make_partition
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.data.shards import Shards
from fedbsd_dist.environment import code_sha256
from fedbsd_dist.errors import UserError
from fedbsd_dist.faults import attend
from fedbsd_dist.host_memory import own_bytes, places
from fedbsd_dist.memory import Memory
from fedbsd_dist.methods import make_method
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.models.flat import Extra, FlatModel
from fedbsd_dist.models.networks import Shape
from fedbsd_dist.models.precision import learn_in_bfloat16
from fedbsd_dist.models.split import build_model
from fedbsd_dist.rehearsal import rehearse
from fedbsd_dist.together import check_together
from fedbsd_dist.trials import check_captured, check_method, check_stacked, check_weights, checked_extras
from fedbsd_dist.units import size
from fedbsd_dist.wire.channel import Channel, Coding
from fedbsd_dist.wire.codecs import Codec, code_bytes, make_codec
from fedbsd_dist.wire.collectives import CLOCKS
from fedbsd_dist.wire.ledger import ALL_REDUCE, Ledger, ring_bytes
from fedbsd_dist.wire.sums import payloads
from fedbsd_dist.wire.world import Placement, World

FLOAT = 4
"""Bytes."""

GB = 1e9
"""Bytes."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What the model takes and tells apart, as summary.json has it."""

    shape: Shape
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of images / 255: an image is to be normalized by it and `std`."""
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The same on every rank."""

    config: RunConfig
    placement: Placement
    samples: Samples
    partition: Partition
    model: FlatModel
    method: Method[Any]
    hosted: list[list[int]]
    """The clients of every rank, ascending."""
    memory: Memory | str = ""
    """What ranks take, which the server alone measures, or why that is not known."""

    @property
    def shared(self) -> dict[str, Tensor]:
        """The live model's buffers that may cross."""
        return shared_groups(self.method, self.model, self.config.model.norm_stats)

    @property
    def codec(self) -> Codec | None:
        """None: uploads cross as they are."""
        return make_codec(self.config.wire.codec, self.config.wire.topk)

    @property
    def coded(self) -> dict[str, int]:
        """Group -> numel, of those whose updates are encoded."""
        groups = coded_groups(self.method, self.model) if self.codec else []
        return {group: self.model.buffers[group].numel() for group in groups}

    @property
    def uploads(self) -> dict[str, int]:
        """Group -> bytes that a client sends in a round."""
        codec, coded = self.codec, self.coded
        return {
            name: code_bytes(codec, coded[name]) if codec and name in coded else FLOAT * buffer.numel()
            for name, buffer in self.shared.items()
        }

    @property
    def upload_bytes(self) -> int:
        """Of one client in one round."""
        return sum(self.uploads.values())

    @property
    def download_bytes(self) -> int:
        """Of one client in one round: always whole, for who was not in the last cohort lacks the last aggregate."""
        return FLOAT * sum(buffer.numel() for buffer in self.shared.values())

    @property
    def model_bytes(self) -> int:
        """What FedAvg would upload."""
        return FLOAT * sum(self.model.buffers[group].numel() for group in self.model.groups)

    @property
    def input(self) -> Input:
        """Of the model: what it takes to use it where the run's data is not."""
        height, width, channels = self.samples.x.shape[1:]
        mean, std = self.samples.mean_and_std(self.partition.learned_from)
        return Input(shape=(channels, height, width), classes=self.samples.classes, mean=mean, std=std)

    def load_shards(self, rank: int) -> Shards:
        """The samples of a rank's clients, onto its device while there is room."""
        return Shards(
            self.samples,
            self.partition,
            self.hosted[rank],
            self.placement.device,
            most_bytes=GB * self.config.data.device_memory,
        )

    def open_channel(self, world: World, ledger: Ledger) -> Channel:
        """The one door, with the live model's shared buffers registered."""
        codec, buffers, coding = self.codec, self.model.buffers, None
        if codec and self.coded:
            errors = {name: buffers[error_of(name)] for name in self.coded if codec.feedback}
            coding = Coding(codec=codec, groups=[*self.coded], errors=errors, seed=self.config.seed)
        return Channel(
            world,
            self.placement,
            ledger,
            shared=self.shared,
            num_metrics=len(self.method.losses) + 1,
            exact=self.config.wire.sum == "exact",
            weight_bound=sum(map(self.method.weight, self.partition.train_sizes[: self.partition.num_clients])),
            coding=coding,
        )

    def check_same(self, world: World) -> None:
        """Raises UserError where this rank has other code, options, data or another first model than the server."""
        mine = {
            "code": code_sha256(),
            "torch": torch.__version__,
            "options": hashlib.sha256(self.config.to_yaml().encode()).hexdigest(),
            "data": self.samples.identity,
            "partition": self.partition.sha256,
            "model": self.model.digest.hex(),
        }
        theirs = json.loads(world.told("same", json.dumps(mine)))
        other = [name for name, value in mine.items() if value != theirs[name]]
        if other:
            raise UserError(
                f"rank {world.rank} (host {world.names[world.rank]}) has other {', '.join(other)} than rank 0 (host "
                f"{world.names[0]}). All hosts need the same files, packages and options."
            )

    def check_memory(self, world: World, rooms: Sequence[str]) -> str:
        """A word of doubt, or none, about the memory of `world`'s hosts, where ranks have said what `room` gives; those
        that are only imagined have not. Raises UserError, on the server alone, where the run does not fit.
        """
        if isinstance(self.memory, str):
            return ""
        told = [json.loads(text) for text in rooms] if len(rooms) == world.size else [json.loads(rooms[world.rank])]
        silent: list[list[float]] = [[]] * (world.size - len(told))
        return self.memory.check(places(world.names, [gpus for gpus, _ in world.hosts], [*told, *silent]))

    @property
    def text(self) -> str:
        """Ranks, clients, memory, bytes a round, for a person."""
        config, sizes = self.config, {group: self.model.buffers[group].numel() for group in self.model.groups}
        hosting = [len(clients) for clients in self.hosted if clients]
        server = "rank 0 is the server" + (" and trains" if self.hosted[0] else "")
        cohort = cohort_size(config.train.participation, config.data.num_clients)
        stays = private_groups(self.method, self.model, self.shared)
        fixed = f"; never changes: {' + '.join(self.method.fixed)}" if self.method.fixed else ""
        train, val = self.partition.train_sizes, sum(self.partition.val_sizes)
        num_ranks = len(self.hosted)
        wire = sum(ring_bytes(payload, num_ranks, name) for name, payload in self.payloads.items())
        everybody, deadline = range(config.data.num_clients), Fault(deadline=config.fault.deadline)
        too_large = attend(deadline, 0, 0, everybody, train[: len(everybody)]).late
        rows = {
            "ranks": f"{num_ranks}: {server}, {len(hosting)} host clients, {_range(hosting)} each",
            "device": f"{self.placement.device.type}, {self.placement.backend}: {self.placement.reason}",
            "data": f"{self.samples.name}: {sum(train)} training, "
            + (f"{val} validation, " if val else "")
            + f"{sum(self.partition.test_sizes)} test samples"
            + (f", {self.partition.left_out} left out" if self.partition.left_out else ""),
            "partition": f"{config.data.partition}{', as in the manifest' if config.data.manifest else ''}, "
            f"{_range(train)} training samples a client",
            "clients": f"{config.data.num_clients}, {cohort} of them a round"
            + (f"; {len(too_large)} have too many samples for fault.deadline, ever" if too_large else "")
            + (f"; {config.data.num_new_clients} new ones, tested at the end" if self.partition.num_new else ""),
            "model": ", ".join(f"{group} {count:,}" for group, count in sizes.items()) + " parameters",
            "crosses": f"{' + '.join(self.shared) or 'nothing'}; stays: {' + '.join(stays) or 'nothing'}{fixed}",
            "bytes a round": f"{size(self.upload_bytes * cohort)} up and "
            f"{size(self.download_bytes * cohort) if self.codec else 'as much'} down, "
            f"of {size(self.model_bytes * cohort)} with FedAvg",
            "on the wire": ", ".join(f"one {name} of {size(payload)}" for name, payload in self.payloads.items())
            + f", {size(wire)} between ranks by the ring model",
            "memory": self.memory if isinstance(self.memory, str) else self.memory.text,
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())

    @property
    def payloads(self) -> dict[str, int]:
        """Collective of a round -> bytes that a rank hands in; of sparse codes where the cohort is spread evenly."""
        codec, found = self.codec, {ALL_REDUCE: self.payload_bytes}
        if codec and self.coded and self.config.wire.sum != "exact":
            cohort = cohort_size(self.config.train.participation, self.config.data.num_clients)
            hosting = sum(map(bool, self.hosted))
            found |= payloads(codec, self.coded, len(self.hosted), -(-cohort // hosting))
        return found

    @property
    def payload_bytes(self) -> int:
        """Of the round's all-reduce."""
        numel, num_ranks = self.download_bytes // FLOAT, len(self.hosted)
        if self.coded and self.config.wire.sum != "exact":
            numel += num_ranks - sum(self.coded.values())
        item = 8 if self.config.wire.sum == "exact" else FLOAT
        return item * (numel + 4 + len(self.method.losses) + CLOCKS * num_ranks)


def error_of(group: str) -> str:
    """The buffer of what has not been sent yet of a group."""
    return f"unsent_{group}"


def prepare_data(config: RunConfig, world: World) -> None:
    """Decode what must be decoded: the server first, then one rank of each host that does not see its files."""
    for whose, mine in (
        ("the server's", world.is_server),
        ("each host's", world.local_rank == 0 and not world.is_server),
    ):
        with world.one_voice(f"data, {whose}"):
            if mine:
                sources.prepare(config.data)


def make_plan(config: RunConfig, world: World) -> Plan:
    """Raises UserError for all that can be wrong with data, partition, model, device and number of ranks.

    The plan's configuration is the resolved one: with the partition of a manifest, and the number of clients.
    """
    torch.set_num_threads(config.run.threads)
    placement = world.place(config.run.device)
    samples = sources.load(config.data)
    config, partition = divide(samples, config)
    height, width, channels = samples.x.shape[1:]
    method, model = make_model(config, (channels, height, width), len(samples.classes), placement.device)
    check_weights(method, config, partition.train_sizes)
    if config.method.factory:
        check_method(config, model, (channels, height, width), len(samples.classes))
    check_batch_norm(model, config.train.batch_size, partition.train_sizes)
    if config.train.together > 1:
        check_together(model, method.stacks, config.method.factory or config.method.name, (channels, height, width))
    if config.method.factory and config.train.together > 1:
        # in float32: in half precision another order of operations was seen to make 0.4 of what is learned
        train = config.train.model_copy(update={"precision": "float32"})
        exact = config.model_copy(update={"train": train})
        _, twin = make_model(exact, (channels, height, width), len(samples.classes), placement.device)
        check_stacked(exact, twin, (channels, height, width), len(samples.classes))
    if placement.device.type == "cuda" and config.train.cuda_graphs:
        check_captured(config, model, (channels, height, width), len(samples.classes))
    ranks = range(0 if config.server.trains or world.size == 1 else 1, world.size)
    plan = Plan(
        config=config,
        placement=placement,
        samples=samples,
        partition=partition,
        model=model,
        method=method,
        hosted=assign(partition.train_sizes, partition.num_new, ranks, foresee(config) if len(ranks) > 1 else ()),
    )
    return replace(plan, memory=measure_memory(plan)) if world.is_server else plan


def measure_memory(plan: Plan) -> Memory | str:
    """What this process holds now, and what a turn takes; or why that cannot be said."""
    model, (height, width, channels) = plan.model, plan.samples.x.shape[1:]
    live = FLOAT * sum(buffer.numel() for buffer in model.buffers.values())
    kept = private_groups(plan.method, model, plan.shared)
    runtime = own_bytes() - (live if plan.placement.device.type == "cpu" else 0)
    try:
        rehearsal = rehearse(plan.config, model, (channels, height, width), len(plan.samples.classes))
    except Exception as error:  # of a method or model of the user's, which a run may never have learn from so few
        return f"not known: learning from a few black images failed ({type(error).__name__}: {error})"
    return Memory(
        config=plan.config,
        device=plan.placement.device,
        sizes=plan.partition.sizes,
        train_sizes=plan.partition.train_sizes,
        hosted=plan.hosted,
        pixels=height * width * channels,
        runtime=runtime,
        live=live,
        private=FLOAT * sum(model.buffers[name].numel() for name in kept),
        upload=plan.download_bytes,
        payload=plan.payload_bytes,
        rehearsal=rehearsal,
    )


def make_model(
    config: RunConfig, shape: Shape, num_classes: int, device: torch.device
) -> tuple[Method[Any], FlatModel]:
    """The method, and the live model with what the method adds to it, as all clients begin.

    Raises UserError for a model that cannot be built, or that the method cannot be done with.
    """
    method = make_method(config.method, config.train)
    split = build_model(config.model, shape, num_classes, config.seed)
    model = FlatModel(split, device, norm_apart=method.local_norm)
    method.check(model)
    model.extend(checked_extras(method, config, model))
    codec = make_codec(config.wire.codec, config.wire.topk)
    if codec and codec.feedback:
        # what a client has not sent yet is its own, from turn to turn
        model.extend({error_of(name): Extra(like=name, start=0.0) for name in coded_groups(method, model)})
    if config.train.precision == "bfloat16":
        learn_in_bfloat16(split, device)
    return method, model


def divide(samples: Samples, config: RunConfig) -> tuple[RunConfig, Partition]:
    """Who owns what: drawn, or as `data.manifest` says. The configuration is the resolved one, as in a plan."""
    data = config.data
    if data.manifest:
        data = manifest.options(data)
        partition = manifest.partition(samples, data)
    else:
        partition = make_partition(samples, data, config.seed)
        data = data.model_copy(update={"num_clients": partition.num_clients})
    return config.model_copy(update={"data": data}), partition


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
