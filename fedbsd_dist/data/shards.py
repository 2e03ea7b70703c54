"""The samples of a rank's clients as bytes: on its device while there is room, else read at each client's turn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedbsd_dist.data.partition import Partition
from fedbsd_dist.data.samples import Ints, Samples


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The training, test and validation samples of one client."""

    train_images: Tensor
    """uint8 [n, height, width, channels]"""
    train_labels: Tensor
    """int64 [n]"""
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor
    """float32 [channels], of images / 255"""
    std: Tensor
    val_images: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """Like the others; none where no validation samples are held out."""
    val_labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def normalized(self, images: Tensor) -> Tensor:
        """float32 [n, channels, height, width] in channels_last order: (images / 255 - mean) / std."""
        n, height, width, channels = images.shape
        # a whole row of pixels at a time: channels alone are too short a dimension to be fast
        mean, std = self.mean.repeat(width), self.std.repeat(width)
        rows = images.reshape(n, height, width * channels).float().div_(255).sub_(mean).div_(std)
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


class Shards(Mapping[int, Shard]):
    """Client -> its shard."""

    def __init__(
        self,
        samples: Samples,
        partition: Partition,
        clients: Sequence[int],
        device: torch.device,
        *,
        most_bytes: float,
    ) -> None:
        """The first of `clients` are loaded now, as many as fit into `most_bytes` of images."""
        self._samples, self._partition, self._device = samples, partition, device
        mean, std = samples.mean_and_std(partition.learned_from)
        self._mean, self._std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self._resident: dict[int, Shard | None] = dict.fromkeys(clients)
        room, sizes = most_bytes, partition.sizes
        for client in clients:
            room -= sizes[client] * samples.x[0].size
            if room >= 0:
                self._resident[client] = self._load(client)

    def __getitem__(self, client: int) -> Shard:
        return self._resident[client] or self._load(client)

    def __contains__(self, client: object) -> bool:
        """Without reading its samples, as a Mapping would by itself."""
        return client in self._resident

    def __iter__(self) -> Iterator[int]:
        return iter(self._resident)

    def __len__(self) -> int:
        return len(self._resident)

    def _load(self, client: int) -> Shard:
        train, test, val = self._partition.train[client], self._partition.test[client], self._partition.val_of(client)
        return Shard(
            train_images=self._tensor(self._samples.x, train),
            train_labels=self._tensor(self._samples.y, train),
            test_images=self._tensor(self._samples.x, test),
            test_labels=self._tensor(self._samples.y, test),
            val_images=self._tensor(self._samples.x, val),
            val_labels=self._tensor(self._samples.y, val),
            mean=self._mean,
            std=self._std,
        )

    def _tensor(self, array: np.ndarray, rows: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array[rows])).to(self._device)
