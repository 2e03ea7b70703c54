"""Samples a second of the input path alone: ours, and torchvision's transforms under a DataLoader, in one process.

    python tests/benchmarks/input_path.py [REPEATS]

Both read 5,000 colour images of 32 x 32 in memory, cut them from a border of 4 pixels, mirror every second and
normalize. The DataLoader works as tutorials have it: an image at a time through Pillow, no worker processes, so
that both have one thread.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fedbsd_dist.batches import batch_sizes, batches
from fedbsd_dist.config import Augment
from fedbsd_dist.data.shards import Shard

N = 5000
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Images(Dataset):
    """An image at a time."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Callable) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def main() -> None:
    """Print a row a batch size and kind of change."""
    torch.set_num_threads(1)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (N, 32, 32, 3), np.uint8), rng.integers(0, 10, N)
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    shard = Shard(train_images=x, train_labels=y, test_images=x[:1], test_labels=y[:1], mean=mean, std=std)
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, medians of {repeats} passes over {N} images")
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    for title, ours, theirs in (
        ("normalize", Augment(), []),
        ("crop, flip", Augment(crop=4, flip=True), [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]),
        (
            "crop, flip, rotate",
            Augment(crop=4, flip=True, rotation=15.0),
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(15, transforms.InterpolationMode.BILINEAR),
            ],
        ),
    ):
        for size in (10, 64):
            sizes = batch_sizes(N, size, False)
            loader = DataLoader(
                Images(pixels, labels, transforms.Compose([*theirs, *normalize])), batch_size=size, shuffle=True
            )
            speeds: list[tuple[float, float]] = []
            for number in range(repeats + 1):
                mine = batches(shard, (x, y), sizes, 1, ours, 0, ("batches", number, 0))
                speeds.append((speed(mine), speed(loader)))
            mine_speed, loader_speed = (statistics.median(column) for column in zip(*speeds[1:], strict=True))
            ratio = statistics.median(a / b for a, b in speeds[1:])
            print(
                f"{title:18} batch {size:2}: {mine_speed:9,.0f} samples/s, DataLoader {loader_speed:7,.0f}, "
                f"ratio {ratio:.1f}"
            )


def speed(loader: Iterable[tuple[torch.Tensor, ...]]) -> float:
    """Samples a second of one pass."""
    start = time.perf_counter()
    seen = sum(len(batch[1]) for batch in loader)
    return seen / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
