"""Batches of an epoch: every sample once, and none alone where batch norm would have to learn from it."""

import pytest
import torch
from test_fedbsd import make_shard
from test_interface import SHORT
from torch import Tensor, nn
from torch.nn import functional as F

from fedbsd_dist.batches import PREPARED, batch_sizes, batches
from fedbsd_dist.client import Turn, check_batch_norm
from fedbsd_dist.commandline import load
from fedbsd_dist.config import Augment, Model, Train
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
    model, shard = flat(factory), make_shard(0, size=13)
    turn = Turn(
        client=0,
        round=1,
        seed=0,
        options=Train(batch_size=4, local_epochs=2),
        augmentation=Augment(),
        model=model,
        shard=shard,
        private={},
    )
    seen: list[Tensor] = []

    def loss(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen.append(rows)
        classification = F.cross_entropy(model.module(images), labels)
        return classification, [torch.ones(())]

    tensors = (turn.images, turn.labels, torch.arange(13))
    sums = turn.sgd(loss, tensors, epochs=2)
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


AUGMENTED = Augment(crop=2, flip=True, rotation=20.0)


def passes(size: int, augmentation: Augment, name=("batches", 1, 0), epochs: int = 2, n: int = 1100, teachers=()):
    """(images, rows, ...) of all batches of a client of n samples, joined."""
    shard = make_shard(3, size=n)
    sizes = batch_sizes(n, size, False)
    seen = list(batches(shard, (shard.train_images, torch.arange(n)), sizes, epochs, augmentation, 7, name, teachers))
    assert [len(batch[0]) for batch in seen] == sizes * epochs
    return [torch.cat(column) for column in zip(*seen, strict=True)]


@pytest.mark.parametrize("augmentation", [Augment(), AUGMENTED])
def test_what_a_sample_becomes_does_not_depend_on_how_many_are_prepared_at_once(augmentation):
    """Batches of 10 are prepared 51 at a time, of 400 one at a time, of 2,000 are all there is."""
    ours = [passes(size, augmentation) for size in (10, 400, 2000)]
    assert PREPARED // 10 == 51
    for other in ours[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(ours[0], other, strict=True))


def test_unchanged_images_are_the_normalized_rows_of_the_shuffle():
    images, rows = passes(10, Augment())
    shard = make_shard(3, size=1100)
    expected = (shard.train_images[rows].float() / 255 - 0.5) / 0.3
    assert torch.equal(images, expected.permute(0, 3, 1, 2))
    assert rows[:1100].sort().values.tolist() == list(range(1100))
    assert not torch.equal(rows[:1100], rows[1100:])


def test_changes_are_named_by_seed_purpose_round_and_client_and_differ_by_epoch():
    first, rows = passes(10, AUGMENTED)
    again, _ = passes(10, AUGMENTED)
    assert torch.equal(first, again)
    of_sample = [first[:1100][rows[:1100].argsort()], first[1100:][rows[1100:].argsort()]]
    for name in (("batches", 2, 0), ("batches", 1, 1), ("head tuning", 1, 0)):
        other, its_rows = passes(10, AUGMENTED, name)
        of_sample.append(other[:1100][its_rows[:1100].argsort()])
    for i, one in enumerate(of_sample):
        for other in of_sample[:i]:
            # two draws of 25 places, 2 sides and an angle: hardly any image comes out twice
            assert (one == other).flatten(1).all(1).sum() < 10


def test_the_shuffle_is_the_same_with_and_without_changes():
    assert torch.equal(passes(10, Augment())[1], passes(10, AUGMENTED)[1])


def test_a_teacher_sees_the_very_images_of_the_batch():
    asked = []

    def teacher(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        asked.append(len(images))
        return images.flatten(1).sum(1)

    images, _, told = passes(10, AUGMENTED, teachers=[teacher])
    torch.testing.assert_close(told, images.flatten(1).sum(1))
    assert asked == [510, 510, 80] * 2


def test_labels_alone_meet_no_augmentation():
    """Features in place of images, as a head is tuned: nothing is prepared."""
    shard = make_shard(3, size=50)
    features = torch.randn(50, 4)
    (seen, rows), *_ = batches(shard, (features, torch.arange(50)), [50], 1, AUGMENTED, 7, ("x", 1, 0))
    assert torch.equal(seen, features[rows])
