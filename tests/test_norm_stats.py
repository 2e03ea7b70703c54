"""Running statistics of normalisation: they cross with the parameters they belong to, or stay with each client."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from ranks import run_ranks, states
from test_federation import SHORT, build
from torch import nn

from fedbsd_dist.clients import shared_groups
from fedbsd_dist.commandline import load
from fedbsd_dist.methods import METHODS, OPTIONS
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model
from fedbsd_dist.wire.world import World


def tiny_bn(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Batch norm in the backbone (4 channels) and, where the head is two layers, in the head (8 features)."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Sequential(nn.Conv2d(shape[0], 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
            fc=nn.Sequential(nn.Linear(4 * 3 * 3, 8), nn.BatchNorm1d(8), nn.ReLU()),
            classifier=nn.Linear(8, num_classes),
        )
    )


BOTH = (f"model.factory={__name__}:tiny_bn", "model.head_layers=2")


@pytest.mark.parametrize(
    ("method", "norm_stats", "crossing"),
    [
        ("fedavg", "shared", {"backbone", "head", "statistics", "head_statistics"}),
        ("fedavg", "local", {"backbone", "head"}),
        ("fedper", "shared", {"backbone", "statistics"}),
        ("fedper", "local", {"backbone"}),
        ("fedbsd", "shared", {"backbone", "statistics"}),
        ("fedbsd", "local", {"backbone"}),
    ],
)
def test_which_groups_cross(method, norm_stats, crossing):
    config = load([f"method.name={method}", f"model.norm_stats={norm_stats}", *BOTH], OPTIONS)
    model = FlatModel(build_model(config.model, (1, 16, 16), 10, 0), torch.device("cpu"))
    assert model.buffers.keys() == {"backbone", "head", "statistics", "head_statistics"}
    chosen = shared_groups(METHODS[method](config.method, config.train), model, config.model.norm_stats)
    assert chosen.keys() == crossing
    assert all(buffer is model.buffers[group] for group, buffer in chosen.items())
    assert list(chosen) == [group for group in model.buffers if group in crossing]


def _rounds(world: World, *options: str) -> tuple[dict, dict, dict, dict]:
    """After two rounds of all clients: their weights, their statistics at their last upload, those that they then
    receive, and their own rows; the last three by client.
    """
    federation = build(world, *options)
    weights, uploaded = {}, {}
    upload = federation.upload

    def watch(turn, losses):
        weights[turn.client] = len(turn.labels)
        uploaded[turn.client] = statistics(federation)
        upload(turn, losses)

    federation.upload = watch
    for number in (1, 2):
        federation.round(number)
    rows = {client: set(state) for client, state in states(federation).items()}
    received = {}
    for client in federation.shards:
        federation.receive(client, 3)
        received[client] = statistics(federation)
    return weights, uploaded, received, rows


def statistics(federation) -> dict[str, np.ndarray]:
    return {group: buffer.numpy().copy() for group, buffer in federation.model.buffers.items() if "statistics" in group}


@pytest.mark.parametrize("size", [1, 3])
def test_shared_statistics_are_the_weighted_mean_for_everybody(size):
    weights, uploaded, received = {}, {}, {}
    for rank in run_ranks(size, _rounds, "method.name=fedavg", "model.norm_stats=shared", *BOTH):
        assert all(not rows for rows in rank[3].values())
        for mine, all_of in zip(rank, (weights, uploaded, received), strict=False):
            all_of |= mine
    assert len(weights) == 6
    assert len(set(weights.values())) > 1  # so that a plain mean would be another
    for group, numel in (("statistics", 2 * 4), ("head_statistics", 2 * 8)):
        values = np.stack([uploaded[client][group] for client in weights]).astype(np.float64)
        assert values.shape == (6, numel)
        assert len(np.unique(values, axis=0)) == 6  # clients have statistics of their own before the mean
        mean = np.average(values, axis=0, weights=list(weights.values()))
        for client in weights:
            np.testing.assert_array_equal(received[client][group], received[0][group])
        np.testing.assert_allclose(received[0][group], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["fedavg", "fedper"])
def test_local_statistics_stay_with_each_client(method):
    ((_, uploaded, received, rows),) = run_ranks(1, _rounds, f"method.name={method}", "model.norm_stats=local", *BOTH)
    assert len(uploaded) == 6
    kept = {"statistics", "head_statistics"} | ({"head"} if method == "fedper" else set())
    assert all(groups == kept for groups in rows.values())
    for group in ("statistics", "head_statistics"):
        for client in uploaded:
            np.testing.assert_array_equal(received[client][group], uploaded[client][group])
        assert len(np.unique([received[client][group] for client in received], axis=0)) == 6


def test_a_head_that_stays_keeps_its_statistics():
    ((_, uploaded, received, rows),) = run_ranks(1, _rounds, "method.name=fedbsd", *BOTH)
    assert all(groups == {"head", "head_statistics"} for groups in rows.values())
    for client in uploaded:
        np.testing.assert_array_equal(received[client]["head_statistics"], uploaded[client]["head_statistics"])
        np.testing.assert_array_equal(received[client]["statistics"], received[0]["statistics"])
        assert (received[client]["statistics"] != uploaded[client]["statistics"]).any()


def test_a_model_without_normalisation_has_nothing_to_keep():
    config = load([*SHORT, "model.norm_stats=local", "method.name=fedavg"], OPTIONS)
    model = FlatModel(build_model(config.model, (1, 16, 16), 10, 0), torch.device("cpu"))
    method = METHODS["fedavg"](config.method, config.train)
    assert shared_groups(method, model, "local").keys() == shared_groups(method, model, "shared").keys()


def _new_client(world: World) -> tuple[dict, dict]:
    """Features of the first normalisation of a new client, and its statistics after its test; untrained otherwise."""
    federation = build(
        world, "model.norm_stats=local", "data.num_new_clients=1", "data.num_clients=19", "data.partition=iid", *BOTH
    )
    client = federation.config.data.num_clients
    turn = federation.receive(client, 3)
    before = statistics(federation)
    features = federation.model.module.backbone.conv[0](turn.shard.normalized(turn.images))
    federation._testing._head_tuned(client, 3)
    after = statistics(federation)
    momenta = {layer.momentum for layer in federation.model.module.modules() if hasattr(layer, "running_mean")}
    assert momenta == {0.1}
    return {"mean": features.mean((0, 2, 3)).detach().numpy(), "var": features.var((0, 2, 3)).detach().numpy()}, {
        "before": before["statistics"],
        "after": after["statistics"],
    }


def test_a_new_client_without_statistics_takes_them_from_its_own_training_images():
    """It has fewer than are looked at at once, so that they are exactly its images'; at first they are 0 and 1."""
    ((features, found),) = run_ranks(1, _new_client)
    assert found["before"].tolist() == [0] * 4 + [1] * 4
    np.testing.assert_allclose(found["after"], [*features["mean"], *features["var"]], rtol=1e-4, atol=1e-5)
