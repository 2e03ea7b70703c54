"""Tests of a rank's clients at the stages of evaluation; nothing is uploaded, and no state changes.

Where all personal models have the backbone that was received, it is asked once for the images of all clients
together; then each client's head has its turn. Nobody waits for the device between clients.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fedbsd_dist.batches import large_batch
from fedbsd_dist.client import Turn
from fedbsd_dist.clients import Clients
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.models.flat import STATISTICS

TOGETHER = 8
"""Large batches that clients are asked for at least at once: the last one is filled up."""
BACKBONE = ("backbone", STATISTICS["backbone"])

Learned = Callable[[Sequence[int], int, str], Iterable[tuple[Turn, Tensor]]]
"""(clients, round, what to say that is done, of {}) -> each one's turn, with the live model after its learning, and its
losses."""
Tests = dict[int, Tensor]
"""Client -> what `score` gives of its test samples, and behind it of its validation samples where a stage has them:
float64 [3] or [6], on the device.
"""


class Testing:
    """The stages, each of all clients here."""

    def __init__(self, clients: Clients, learned: Learned, at: Callable[[str], None]) -> None:
        """`learned` has clients learn in a round; `at` is told what is done now."""
        self._clients, self._learned, self._at = clients, learned, at
        self._validates = clients.config.data.val_fraction > 0

    def received(self, round: int) -> Tests:
        """Personal models with the newest shared state."""
        if self._clients.has_common_backbone:
            return {turn.client: self._heads(turn, *features) for turn, *features in self._turns(round)}
        return {client: self._received(client, round) for client in self._clients.training}

    def last(self, round: int) -> dict[str, Tests]:
        """Every stage, every client."""
        clients, config = self._clients, self._clients.config
        received, tuned = self._received_and_tuned(round)
        stages = {
            "received": received,
            "trained": self._trained(round),
            "head_tuned": tuned,
        }
        if clients.method.finetunes:
            stages["finetuned"] = {client: self._finetuned(client, round) for client in clients.training}
        if config.data.num_new_clients:
            new = (client for client in clients.shards if client not in clients.private)
            stages["new_client"] = {client: self._head_tuned(client, round) for client in new}
        return stages

    def of(self, turn: Turn) -> Tensor:
        """The live model, on test samples, and on validation samples if some are held out."""
        tests = turn.test()
        return torch.cat([tests, turn.test(validation=True)]) if self._validates else tests

    def _received_and_tuned(self, round: int) -> tuple[Tests, Tests]:
        clients, epochs = self._clients, self._clients.config.evaluate.head_epochs
        received, tuned = {}, {}
        if not clients.has_common_backbone:
            for client in clients.training:
                received[client] = self._received(client, round)
                tuned[client] = self._head_tuned(client, round)
            return received, tuned
        for turn, test, val, train in self._turns(round, tuning=True):
            received[turn.client] = self._heads(turn, test, val, train)
            turn.tune_head(epochs, features=train)
            tuned[turn.client] = turn.score_head(test, turn.shard.test_labels)
        return received, tuned

    def _turns(self, round: int, *, tuning: bool = False) -> Iterator[tuple[Turn, Tensor, Tensor, Tensor]]:
        """Each client, deployed, with the common backbone's features of its test images, and of its validation images
        and, for `tuning`, of its training images: else of none.
        """
        for group in self._groups(tuning):
            first = self._clients.receive(next(iter(group)), round)
            shards = list(group.values())
            wanted = (
                [shard.test_images for shard in shards],
                [shard.val_images if self._validates else shard.test_images[:0] for shard in shards],
                [shard.train_images if tuning else shard.test_images[:0] for shard in shards],
            )
            said = [together(first, images) for images in wanted]
            for (client, shard), *features in zip(group.items(), *said, strict=True):
                turn = self._clients.deployed(client, round, shard=shard, as_is=BACKBONE)
                yield turn, *features

    def _groups(self, tuning: bool) -> Iterator[dict[int, Shard]]:
        """All clients here that train, some at a time: features of all at once may be more than there is memory for."""
        group, waiting = dict[int, Shard](), 0
        for client in self._clients.training:
            self._at(f"client {client} is tested, as received")
            shard = group[client] = self._clients.shards[client]
            waiting += len(shard.test_labels) + len(shard.val_labels) + tuning * len(shard.train_labels)
            if waiting >= TOGETHER * large_batch(self._clients.model.device):
                yield group
                group, waiting = {}, 0
        if group:
            yield group

    def _heads(self, turn: Turn, test: Tensor, val: Tensor, _: Tensor) -> Tensor:
        tests = turn.score_head(test, turn.shard.test_labels)
        return torch.cat([tests, turn.score_head(val, turn.shard.val_labels)]) if self._validates else tests

    def _received(self, client: int, round: int) -> Tensor:
        self._at(f"client {client} is tested, as received")
        return self.of(self._clients.deployed(client, round))

    def _trained(self, round: int) -> Tests:
        """After one more local learning of everybody, as in a round."""
        tests = {}
        for turn, _ in self._learned(self._clients.training, round, "{} is tested, trained"):
            self._clients.method.deploy(turn)
            tests[turn.client] = self.of(turn)
        return tests

    def _head_tuned(self, client: int, round: int) -> Tensor:
        """As received, and then its head alone."""
        self._at(f"client {client} is tested, its head tuned")
        return self._clients.head_tuned(client, round, self._clients.config.evaluate.head_epochs).test()

    def _finetuned(self, client: int, round: int) -> Tensor:
        """The newest shared state, then the method's own test-time step."""
        self._at(f"client {client} is tested, finetuned")
        turn = self._clients.receive(client, round)
        self._clients.method.finetune(turn)
        return turn.test()


@torch.no_grad()
def together(turn: Turn, images: Sequence[Tensor]) -> Sequence[Tensor]:
    """Features [n, ...] of the live backbone for each of several clients' images, uint8 [n, h, w, c].

    In batches of one size, the last filled up: a sample's features then depend on nothing but itself, to the bit,
    whoever else is on the rank.
    """
    backbone = turn.model.module.eval().backbone
    every = torch.cat([*images])
    size = large_batch(every.device)
    if not len(every):
        return images
    filled = torch.cat([every, every[:1].expand(-len(every) % size, *every.shape[1:])])
    features = torch.cat([backbone(turn.shard.normalized(batch)) for batch in filled.split(size)])
    parts: Sequence[Tensor] = features[: len(every)].split([len(some) for some in images])
    return parts
