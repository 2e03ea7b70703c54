"""The clients of one process: the shared state, each one's private state, and their turns at one live model."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from fedbsd_dist.client import Turn
from fedbsd_dist.config import RunConfig
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.models.flat import STATISTICS, FlatModel, State
from fedbsd_dist.phases import Phases


class Clients:
    """The shared state and, of the clients here, the private state."""

    def __init__(
        self,
        config: RunConfig,
        method: Method[Any],
        model: FlatModel,
        shards: Mapping[int, Shard],
        phases: Phases | None = None,
    ) -> None:
        """`shards`: of the clients here, the new ones too. All clients begin with the model's present state."""
        self.config, self.method, self.model, self.shards = config, method, model, shards
        self.phases = phases or Phases()
        self.shared = {
            name: buffer.clone() for name, buffer in shared_groups(method, model, config.model.norm_stats).items()
        }
        """Group -> float32 [numel]"""
        self._start = {name: buffer.clone() for name, buffer in model.buffers.items() if name not in self.shared}
        """All but the shared state at the start of the run: a new client's, always."""
        self._row = {client: row for row, client in enumerate(self._training)}
        self.private = {
            name: self._start[name].repeat(len(self._row), 1) for name in private_groups(method, model, self.shared)
        }
        """Group -> float32 [training clients here, numel], in the order of `shards`"""

    @property
    def _training(self) -> list[int]:
        """The clients here that train."""
        return [client for client in self.shards if client < self.config.data.num_clients]

    def receive(self, client: int, round: int) -> Turn:
        """Load the live model with the shared state and the client's private state."""
        with self.phases("load"):
            private = {}
            if client in self._row:
                private = {name: rows[self._row[client]] for name, rows in self.private.items()}
            self.model.put({**self._start, **self.shared, **private})
            return Turn(
                client=client,
                round=round,
                seed=self.config.seed,
                options=self.config.train,
                augmentation=self.config.augment,
                model=self.model,
                shard=self.shards[client],
                private=private,
                phases=self.phases,
            )

    def deployed(self, client: int, round: int) -> Turn:
        """The client has received, and the live model is its personal one."""
        turn = self.receive(client, round)
        if client not in self._row:
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

    def states(self) -> dict[int, dict[str, Tensor]]:
        """The private state of the clients here, client -> group -> float32 [numel]."""
        return {
            client: {name: rows[row] for name, rows in self.private.items()}
            for client, row in self._row.items()
            if self.private
        }


def shared_groups(method: Method[Any], model: FlatModel, norm_stats: Literal["shared", "local"]) -> State:
    """The live model's buffers that may cross: the parameters that the method shares, the running statistics that
    belong to them if `norm_stats` is `shared` and batch norm is not local by the method, and shared extras.
    """
    crossing = {*method.shared}
    if norm_stats == "shared" and not method.local_norm:
        crossing |= {STATISTICS[group] for group in method.shared}
    crossing |= {name for name, extra in method.extras(model.groups).items() if extra.shared}
    return {name: buffer for name, buffer in model.buffers.items() if name in crossing}


def private_groups(method: Method[Any], model: FlatModel, shared: Mapping[str, Tensor]) -> list[str]:
    """Names of the live model's buffers of which every client has its own."""
    return [name for name in model.buffers if name not in shared and name not in method.fixed]
