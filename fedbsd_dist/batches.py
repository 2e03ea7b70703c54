"""Batches of a client's training samples: an index each, gathered and prepared on the device, many at a time."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fedbsd_dist.augment import Changes, augment, draw
from fedbsd_dist.config import Augment
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.randomness import generator

PREPARED = 512
"""Samples prepared at once for training."""
LARGE_BATCH = {"cpu": 64, "cuda": 512}
"""Samples a forward pass where nothing is learned: evaluation, teacher and frozen features. On a CPU what layers hand
to each other then stays in its caches: with 512, the networks with convolutions were seen to take up to three times as
long."""

Teacher = Callable[[Tensor], Tensor]
"""Prepared images [m, c, h, w] -> what a method wants to know of these very images besides, [m, ...]."""


def batches(
    shard: Shard,
    tensors: Sequence[Tensor],
    sizes: Sequence[int],
    epochs: int,
    augmentation: Augment,
    seed: int,
    name: tuple[str, int, int],
    teachers: Sequence[Teacher] = (),
) -> Iterator[tuple[Tensor, ...]]:
    """For each epoch the rows of `tensors` [n, ...], shuffled, in batches of `sizes`, which add up to n.

    If `tensors[0]` is the shard's training images, they come augmented and normalized, float32 [b, c, h, w], and
    each of `teachers` adds what it says of these. All that is random is named by the seed and `name`: purpose, round,
    client.
    """
    at_once = max(1, PREPARED // sizes[0])
    for order, changes in passes(len(tensors[0]), epochs, augmentation, seed, name, tensors[0].device):
        start = 0
        for first in range(0, len(sizes), at_once):
            part = sizes[first : first + at_once]
            rows = order[start : start + sum(part)]
            chunk = [tensor[rows] for tensor in tensors]
            if tensors[0] is shard.train_images:
                chunk[0] = shard.normalized(augment(chunk[0], changes, start, augmentation))
            with torch.no_grad():
                chunk += [teacher(chunk[0]) for teacher in teachers]
            yield from zip(*(tensor.split(part) for tensor in chunk), strict=True)
            start += sum(part)


def passes(
    n: int, epochs: int, augmentation: Augment, seed: int, name: tuple[str, int, int], device: torch.device
) -> Iterator[tuple[Tensor, Changes]]:
    """For each epoch the order in which `n` samples are learned from, int64 [n], and how their images change."""
    purpose, *whose = name
    shuffles, alterations = generator(seed, *name), generator(seed, purpose, "augmentation", *whose)
    for _ in range(epochs):
        order = torch.from_numpy(shuffles.permutation(n)).to(device)
        yield order, draw(augmentation, n, alterations, device)


def large_batch(device: torch.device) -> int:
    """Samples, by kind of device."""
    return LARGE_BATCH[device.type]


def ask(teacher: Teacher, images: Tensor) -> Tensor:
    """What `teacher` says of `images` [m, ...], asked in large batches of nearly one size."""
    parts = images.tensor_split(-(-len(images) // large_batch(images.device)) or 1)
    return torch.cat([teacher(part) for part in parts])


def batch_sizes(n: int, size: int, merge_last: bool) -> list[int]:
    """Sizes of the batches of `n` samples, `size` each and the rest in the last one. `merge_last`: a single
    sample that would be the last batch joins the batch before it, if there is one.
    """
    sizes = [size] * (n // size) + [n % size] * (n % size > 0)
    if merge_last and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes
