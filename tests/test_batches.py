"""Batches of an epoch: every sample once, and none alone where batch norm would have to learn from it."""

import pytest
import torch
from test_fedbsd import make_shard
from test_interface import SHORT
from torch import Tensor, nn
from torch.nn import functional as F

from fedbsd_dist.client import Turn, batch_sizes, check_batch_norm
from fedbsd_dist.commandline import load
from fedbsd_dist.config import Model, Train
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model
from fedbsd_dist.plan import make_plan
from fedbsd_dist.wire.world import meet


def with_norm(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes))


def with_group_norm(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.GroupNorm(2, 4), nn.Linear(4, num_classes))


def flat(factory: str) -> FlatModel:
    return FlatModel(build_model(Model(factory=f"{__name__}:{factory}"), (1, 16, 16), 10, 0), torch.device("cpu"))


@pytest.mark.parametrize(
    ("n", "size", "plain", "merged"),
    [
        (20, 10, [10, 10], [10, 10]),
        (21, 10, [10, 10, 1], [10, 11]),
        (22, 10, [10, 10, 2], [10, 10, 2]),
        (11, 10, [10, 1], [11]),
        (9, 10, [9], [9]),
        (1, 10, [1], [1]),
        (3, 2, [2, 1], [3]),
        (3, 1, [1, 1, 1], [1, 2]),
    ],
)
def test_a_single_last_sample_joins_the_batch_before(n, size, plain, merged):
    assert batch_sizes(n, size, False) == plain
    assert batch_sizes(n, size, True) == merged


@pytest.mark.parametrize("merge_last", [False, True])
def test_batches_hold_every_sample_once(merge_last):
    for n in range(1, 40):
        for size in range(1, 12):
            sizes = batch_sizes(n, size, merge_last)
            assert sum(sizes) == n
            assert all(count == size for count in sizes[:-2])
            assert max(sizes) <= size + merge_last


@pytest.mark.parametrize(
    ("factory", "expected"), [("with_norm", [4, 4, 5, 4, 4, 5]), ("with_group_norm", [4, 4, 4, 1, 4, 4, 4, 1])]
)
def test_learning_meets_those_batches_in_every_epoch(factory, expected):
    model, shard = flat(factory), make_shard(0)
    options = Train(batch_size=4, local_epochs=2)
    turn = Turn(client=0, round=1, seed=0, options=options, model=model, shard=shard, private={})
    seen: list[Tensor] = []

    def loss(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen.append(rows)
        classification = F.cross_entropy(model.module(images), labels)
        return classification, [torch.ones(())]

    tensors = (turn.images[:13], turn.labels[:13], torch.arange(13))
    sums = turn.sgd(loss, tensors, groups=("backbone", "head"), epochs=2)
    assert [len(rows) for rows in seen] == expected
    assert torch.cat(seen).sort().values.tolist() == sorted([*range(13)] * 2)
    assert sums.tolist() == [26.0, 26.0]


@pytest.mark.parametrize(
    ("batch_size", "train_sizes", "message"),
    [
        (1, (9, 9), r"train\.batch_size=1: batch norm .* Use train\.batch_size=2"),
        (8, (9, 1, 1), r"client 1 has 1 training sample.* Use data\.min_samples=2"),
        (8, (9, 2), None),
    ],
)
def test_batch_norm_on_one_sample_is_refused(batch_size, train_sizes, message):
    check_batch_norm(flat("with_group_norm"), batch_size, train_sizes)
    if message:
        with pytest.raises(UserError, match=message):
            check_batch_norm(flat("with_norm"), batch_size, train_sizes)
    else:
        check_batch_norm(flat("with_norm"), batch_size, train_sizes)


def test_the_plan_refuses_it_before_anything_is_trained():
    options = [*SHORT, f"model.factory={__name__}:with_norm", "train.batch_size=1"]
    with pytest.raises(UserError, match="cannot train on one sample"):
        make_plan(load(options, OPTIONS), meet())
    make_plan(load([*SHORT, "train.batch_size=1"], OPTIONS), meet())
