"""A rank's shards: its own clients' samples as bytes, on its device or read at each turn, the same either way."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedbsd_dist.config import Data
from fedbsd_dist.data import cache
from fedbsd_dist.data.digits import load_digits
from fedbsd_dist.data.partition import Partition, make_partition
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.data.shards import Shards

CPU = torch.device("cpu")
PIXELS = 256


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Samples:
    """Mapped from a cache, so that reading rows is reading a file."""
    path = tmp_path_factory.mktemp("cache") / "digits"
    cache.ensure(path, cache.Origin(files=[Path(__file__)], read=lambda folder: load_digits(Data())))
    return cache.load(path)


@pytest.fixture(scope="module")
def partition(samples: Samples) -> Partition:
    return make_partition(samples, Data(num_clients=6, num_new_clients=2), 0)


@pytest.mark.parametrize("most_bytes", [0, 1_000_000, 1e12])
def test_a_shard_is_its_clients_samples(samples: Samples, partition: Partition, most_bytes: float) -> None:
    shards = Shards(samples, partition, [1, 4, 7], CPU, most_bytes=most_bytes)
    assert (list(shards), len(shards), 1 in shards, 2 in shards) == ([1, 4, 7], 3, True, False)
    for client, shard in shards.items():
        train, test = partition.train[client], partition.test[client]
        assert shard.train_images.dtype == shard.test_images.dtype == torch.uint8
        assert np.array_equal(shard.train_images, samples.x[train])
        assert np.array_equal(shard.test_images, samples.x[test])
        assert np.array_equal(shard.train_labels, samples.y[train])
        assert np.array_equal(shard.test_labels, samples.y[test])
        mean, std = samples.mean_and_std(np.concatenate(partition.train[:6]))
        assert (shard.mean.tolist(), shard.std.tolist()) == (
            torch.tensor(mean).tolist(),
            torch.tensor(std).tolist(),
        )


def test_as_many_clients_as_fit_are_held_and_the_others_read_anew(samples: Samples, partition: Partition) -> None:
    sizes = [PIXELS * (a + b) for a, b in zip(partition.train_sizes, partition.test_sizes, strict=True)]
    shards = Shards(samples, partition, [0, 1, 2], CPU, most_bytes=sizes[0] + sizes[1])
    held = [shards[client] is shards[client] for client in shards]
    assert held == [True, True, False]
    assert torch.equal(shards[2].train_images, shards[2].train_images)


def test_to_know_its_clients_a_rank_reads_no_samples(samples: Samples, partition: Partition, monkeypatch) -> None:
    monkeypatch.setattr(Shards, "_load", lambda self, client: pytest.fail(f"read client {client}"))
    shards = Shards(samples, partition, [0, 2], CPU, most_bytes=0)
    assert [client in shards for client in range(3)] == [True, False, True]


def test_normalized_is_by_channel_in_channels_last_order(samples: Samples, partition: Partition) -> None:
    shard = Shards(samples, partition, [0], CPU, most_bytes=0)[0]
    images = torch.randint(256, (5, 6, 7, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.7]), torch.tensor([0.2, 0.3, 0.4])
    object.__setattr__(shard, "mean", mean)
    object.__setattr__(shard, "std", std)
    normalized = shard.normalized(images)
    assert torch.equal(normalized, ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2))
    assert normalized.is_contiguous(memory_format=torch.channels_last)
