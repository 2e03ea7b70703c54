"""A common backbone is asked once for the images of all clients: the same numbers as client by client, sooner."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import federate, run_ranks
from test_federation import FEW, build
from test_interface import SHORT

from fedbsd_dist.batches import large_batch
from fedbsd_dist.clients import Clients
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.testing import TOGETHER, together
from fedbsd_dist.wire.world import World

COMMON = ("fedbsd", "fedavg", "fedrep", "fedrod", "fedbabu")
OWN = ("local", "ditto", "lg_fedavg", "apfl", "pfedme")
OPTIONS = (
    FEW,
    "data.val_fraction=0.1",
    "data.num_new_clients=2",
    "evaluate.head_epochs=2",
    "train.participation=0.5",
)


def _tables(world: World, method: str) -> tuple[bool, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(whether the backbone is common, stages as they are, and client by client), after a round."""
    federation = build(world, f"method.name={method}", *OPTIONS)
    federation.round(1)
    common = federation.has_common_backbone
    tables = [federation._gather(1, federation._testing.last(2))]
    Clients.has_common_backbone = property(lambda self: False)  # type: ignore[method-assign, assignment]
    tables.append(federation._gather(1, federation._testing.last(2)))
    return common, *tables


@pytest.mark.parametrize("method", [*COMMON, *OWN])
def test_the_numbers_are_those_of_client_by_client(method):
    ((common, mine, alone),) = run_ranks(1, _tables, method)
    assert common == (method in COMMON)
    assert mine.keys() == alone.keys()
    for stage, table in mine.items():
        right = [column for column in range(table.shape[1]) if column % 3 != 2]
        assert (table[:, right] == alone[stage][:, right]).all(), stage
        np.testing.assert_allclose(table, alone[stage], rtol=1e-5)
    assert len({table[:, 2].tobytes() for table in mine.values()}) == len(mine)  # the stages differ


def _calls(world: World) -> tuple[int, int, int]:
    """Forward passes of the backbone in a test of all clients, large batches of their test samples, and clients."""
    federation = build(world, "method.name=fedbsd")
    calls = []
    federation.model.module.backbone.register_forward_hook(lambda *_: calls.append(1))
    federation._testing.received(2)
    samples = sum(len(federation.shards[client].test_labels) for client in federation.training)
    return len(calls), -(-samples // large_batch(torch.device("cpu"))), len(federation.training)


def test_the_backbone_is_asked_for_many_clients_at_once():
    calls, batches, clients = run_ranks(1, _calls)[0]
    assert batches <= calls <= batches + batches // TOGETHER < batches + clients


def _features(world: World) -> list[bool]:
    """Whether features are the same to the bit whoever else is asked for, and in whichever order."""
    federation = build(world, "method.name=fedavg")
    turn = federation.receive(0, 1)
    shards: list[Shard] = [federation.shards[client] for client in federation.training]
    images = [shard.test_images for shard in shards]
    every = together(turn, images)
    backwards = together(turn, images[::-1])[::-1]
    alone = [together(turn, [some])[0] for some in images]
    return [
        torch.equal(one, other) and torch.equal(one, third)
        for one, other, third in zip(every, backwards, alone, strict=True)
    ]


def test_features_do_not_depend_on_who_else_is_on_the_rank():
    same = run_ranks(1, _features)[0]
    assert same
    assert all(same)


def test_any_number_of_ranks_gives_the_same_tests_to_the_bit(tmp_path: Path):
    options = [*SHORT, *OPTIONS, "model.name=cnn", "evaluate.every=1", "wire.sum=exact", "data.num_clients=7"]
    for ranks in (1, 3):
        federate(tmp_path / str(ranks), ranks, *options)
    assert (tmp_path / "1/clients.csv").read_bytes() == (tmp_path / "3/clients.csv").read_bytes()
