"""The clients of one process: the shared state, each one's private state, and their turns at one live model."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.models.flat import NORM, STATISTICS, FlatModel, State
from fedbsd_dist.phases import Phases
from fedbsd_dist.private import PrivateState, Rows, in_file, in_memory


class Clients:
    """The shared state and, of the clients here, the private state."""

    def __init__(
        self,
        config: RunConfig,
        method: Method[Any],
        model: FlatModel,
        shards: Mapping[int, Shard],
        phases: Phases | None = None,
        private_file: Path | None = None,
    ) -> None:
        """`shards`: of the clients here, the new ones too. All clients begin with the model's present state.
        `private_file`: to be made for `client.store=mmap`.
        """
        self.config, self.method, self.model, self.shards = config, method, model, shards
        self.phases = phases or Phases()
        self.shared = {
            name: buffer.clone() for name, buffer in shared_groups(method, model, config.model.norm_stats).items()
        }
        """Group -> float32 [numel]"""
        self._start = {name: buffer.clone() for name, buffer in model.buffers.items() if name not in self.shared}
        """All but the shared state at the start of the run: a new client's, always."""
        self.training = [client for client in shards if client < config.data.num_clients]
        """The clients here that train."""
        start = {name: self._start[name] for name in private_groups(method, model, self.shared)}
        self.private = PrivateState(start, self.training, self._rows(start, private_file))

    def _rows(self, start: State, file: Path | None) -> Rows:
        """Where `client.store` says."""
        numel, store = sum(values.numel() for values in start.values()), self.config.client.store
        if store == "mmap" and numel and self.training:
            assert file
            return in_file(numel, len(self.training), file)
        device = self.model.device if store == "device" else torch.device("cpu")
        return in_memory(numel, len(self.training), device)

    @property
    def has_common_backbone(self) -> bool:
        """Whether all personal models of clients that train have the backbone as it is received."""
        own = self.private.start.keys() & {"backbone", NORM, STATISTICS["backbone"]}
        return not own and (type(self.method).deploy is Method.deploy or self.method.deploys_head_alone)

    def receive(self, client: int, round: int, *, shard: Shard | None = None, as_is: Container[str] = ()) -> Turn:
        """Load the live model with the shared state and the client's private state. `shard`: the client's, if it is
        at hand; `as_is`: groups that the live model has already.
        """
        with self.phases("load"):
            private = self.private.of(client) if client in self.private else {}
            state = {**self._start, **self.shared, **private}
            self.model.put({name: values for name, values in state.items() if name not in as_is})
            return Turn(
                client=client,
                round=round,
                seed=self.config.seed,
                options=self.config.train,
                augmentation=self.config.augment,
                model=self.model,
                shard=shard or self.shards[client],
                private=private,
                phases=self.phases,
            )

    def deployed(self, client: int, round: int, *, shard: Shard | None = None, as_is: Container[str] = ()) -> Turn:
        """The client has received, as `receive` says, and the live model is its personal one. One that never learned,
        for it is new or was in no cohort yet, is welcomed.
        """
        turn = self.receive(client, round, shard=shard, as_is=as_is)
        if not self.private.has_learned(client):
            if STATISTICS["backbone"] in self._start:
                turn.estimate_statistics()
            self.method.welcome(turn)
        self.method.deploy(turn)
        return turn

    def head_tuned(self, client: int, round: int, epochs: int) -> Turn:
        """Deployed, and then the head alone has learned."""
        turn = self.deployed(client, round)
        turn.tune_head(epochs)
        return turn


def shared_groups(method: Method[Any], model: FlatModel, norm_stats: Literal["shared", "local"]) -> State:
    """The live model's buffers that may cross: the parameters that the method shares, the running statistics that
    belong to them if `norm_stats` is `shared` and batch norm is not local by the method, and shared extras.
    """
    crossing = {*method.shared}
    if norm_stats == "shared" and not method.local_norm:
        crossing |= {STATISTICS[group] for group in method.shared}
    crossing |= {name for name, extra in method.extras(model.groups).items() if extra.shared}
    return {name: buffer for name, buffer in model.buffers.items() if name in crossing}


def coded_groups(method: Method[Any], model: FlatModel) -> list[str]:
    """Of what may cross, the parameters: of these an update can be encoded. Running statistics cannot: a variance that
    is only nearly right may be negative. Nor shared extras: what they mean, and whether an error in them can be made
    up for later, the method alone knows.
    """
    return [group for group in model.parameter_groups if group in method.shared]


def private_groups(method: Method[Any], model: FlatModel, shared: Mapping[str, Tensor]) -> list[str]:
    """Names of the live model's buffers of which every client has its own."""
    return [name for name in model.buffers if name not in shared and name not in method.fixed]
