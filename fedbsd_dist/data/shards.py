"""A client's samples, once on its rank's device as bytes; a batch is an index."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedbsd_dist.data.sources import Samples


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The training and test samples of one client."""

    train_images: Tensor
    """uint8 [n, height, width, channels]"""
    train_labels: Tensor
    """int64 [n]"""
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor
    """float32 [channels], of images / 255"""
    std: Tensor

    def normalized(self, images: Tensor) -> Tensor:
        """float32 [n, channels, height, width] in channels_last order: (images / 255 - mean) / std."""
        scaled = images.float().div_(255).sub_(self.mean).div_(self.std)
        return scaled.permute(0, 3, 1, 2)


def load_shard(samples: Samples, train: np.ndarray, test: np.ndarray, device: torch.device) -> Shard:
    """`train` and `test` are sample indices."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Shard(
        train_images=tensor(samples.x[train]),
        train_labels=tensor(samples.y[train]),
        test_images=tensor(samples.x[test]),
        test_labels=tensor(samples.y[test]),
        mean=torch.tensor(samples.mean, device=device),
        std=torch.tensor(samples.std, device=device),
    )
