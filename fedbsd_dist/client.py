"""One client's turn at its rank's live model: its private tensors and its local training loop."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.augment import augment, draw
from fedbsd_dist.config import Augment, Train
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.optimizer import SGD
from fedbsd_dist.randomness import generator, named_seed

LARGE_BATCH = 512
"""Samples a forward pass where nothing is learned: evaluation, teacher and frozen features. As many are prepared
at once for the batches of a training pass."""

Loss = Callable[..., tuple[Tensor, Sequence[Tensor]]]
"""Batches of the training tensors -> (loss to descend, the losses to report), all scalars."""


class Turn:
    """The client has just received: the live model is the shared state and its own private state."""

    def __init__(
        self,
        *,
        client: int,
        round: int,
        seed: int,
        options: Train,
        augmentation: Augment,
        model: FlatModel,
        shard: Shard,
        private: dict[str, Tensor],
    ) -> None:
        """`private`: this client's row of each private group, float32 [numel]."""
        self.client, self.round, self.seed = client, round, seed
        self.options, self.model, self.shard, self.private = options, model, shard, private
        self.augmentation = augmentation
        self.images = shard.train_images
        """Training images as stored, uint8 [n, h, w, c]."""
        self.labels = shard.train_labels
        """Training labels, int64 [n]."""
        self.augments = augmentation != Augment()
        """Whether an image differs each time it is learned from."""

    def sgd(
        self,
        loss: Loss,
        tensors: Sequence[Tensor],
        *,
        groups: Sequence[str],
        epochs: int,
        purpose: str = "batches",
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Descend `loss` on `groups` for `epochs` passes over `tensors` [n, ...], in batches of shuffled rows.

        Of images as stored, `loss` gets batches float32 [b, c, h, w], augmented and normalized. `teacher`, if any,
        is asked for a further tensor [b, ...] of the very images in `tensors[0]`, many batches at a time.
        Returns, over all steps, the sums of the reported losses, each times its batch's size, and the
        number of samples: float32 [num_losses + 1]. The shuffle is that of (seed, purpose, round, client).
        """
        optimizer = SGD(self.model.train_only(groups), self.options)
        torch.manual_seed(named_seed(self.seed, purpose, "dropout", self.round, self.client))
        reports: list[Tensor] = []
        sizes: list[int] = []
        for batch in self._batches(tensors, epochs, purpose, teacher):
            total, reported = loss(*batch)
            optimizer.step(total)
            reports.append(torch.stack([*reported]).detach())
            sizes.append(len(batch[0]))
        weights = torch.tensor(sizes, dtype=torch.float32, device=self.images.device)
        return torch.cat([weights @ torch.stack(reports), weights.sum()[None]])

    def _batches(
        self, tensors: Sequence[Tensor], epochs: int, purpose: str, teacher: Callable[[Tensor], Tensor] | None
    ) -> Iterator[tuple[Tensor, ...]]:
        """A batch is an index: rows are gathered and prepared on the device, many batches at a time."""
        n, device = len(self.labels), self.images.device
        shuffles = generator(self.seed, purpose, self.round, self.client)
        alterations = generator(self.seed, purpose, "augmentation", self.round, self.client)
        sizes = batch_sizes(n, self.options.batch_size)
        at_once = max(1, LARGE_BATCH // self.options.batch_size)
        for _ in range(epochs):
            order = torch.from_numpy(shuffles.permutation(n)).to(device)
            changes = draw(self.augmentation, n, alterations, device) if self.augments else None
            start = 0
            for first in range(0, len(sizes), at_once):
                part = sizes[first : first + at_once]
                rows = order[start : start + sum(part)]
                chunk = [tensor[rows] for tensor in tensors]
                if tensors[0] is self.images:
                    if changes:
                        chunk[0] = augment(chunk[0], changes, start, self.augmentation)
                    chunk[0] = self.shard.normalized(chunk[0])
                if teacher:
                    with torch.no_grad():
                        chunk.append(teacher(chunk[0]))
                yield from zip(*(tensor.split(part) for tensor in chunk), strict=True)
                start += sum(part)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The live backbone's output [n, d] for `images` as stored, uint8 [n, h, w, c], without augmentation, in
        evaluation mode: no dropout, no batch statistics.
        """
        self.model.module.eval()
        return torch.cat(
            [self.model.module.backbone(self.shard.normalized(chunk)) for chunk in images.split(LARGE_BATCH)]
        )

    def tune_head(self, epochs: int) -> None:
        """Learn the head alone on the features of the backbone as it is, which are computed once, of the images as
        they are.
        """
        head = self.model.module.head

        def loss(features: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
            classification = F.cross_entropy(head(features), labels)
            return classification, [classification]

        if epochs:
            tensors = (self.features(self.images), self.labels)
            self.sgd(loss, tensors, groups=["head"], epochs=epochs, purpose="head tuning")

    @torch.no_grad()
    def test(self) -> tuple[int, int, float]:
        """(correct, number of test samples, summed cross-entropy) of the live model on the client's test set."""
        features = self.features(self.shard.test_images)
        logits = self.model.module.head(features)
        labels = self.shard.test_labels
        numbers = torch.stack(
            [
                (logits.argmax(1) == labels).sum().double(),
                F.cross_entropy(logits, labels, reduction="sum").double(),
            ]
        )
        correct, loss = numbers.tolist()
        return int(correct), len(labels), loss


def batch_sizes(n: int, size: int) -> list[int]:
    """Of the batches of a pass over n samples; the last may be smaller."""
    return [size] * (n // size) + ([n % size] if n % size else [])
