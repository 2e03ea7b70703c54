"""One client's turn at its rank's live model: its private tensors and its local training loop."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedbsd_dist.batches import LARGE_BATCH, Teacher, batch_sizes, batches
from fedbsd_dist.config import Augment, Train
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.errors import UserError
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.optimizer import SGD
from fedbsd_dist.randomness import named_seed

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
        teacher: Teacher | None = None,
    ) -> Tensor:
        """Descend `loss` on `groups` for `epochs` passes over `tensors` [n, ...], in batches of shuffled rows,
        of which none is a single one where the model has batch norm.

        Of images as stored, `loss` gets batches float32 [b, c, h, w], augmented and normalized. `teacher`, if any,
        is asked for a further tensor [b, ...] of the very images in `tensors[0]`, many batches at a time.
        Returns, over all steps, the sums of the reported losses, each times its batch's size, and the
        number of samples: float32 [num_losses + 1]. The shuffle is that of (seed, purpose, round, client).
        """
        optimizer = SGD(self.model.train_only(groups), self.options)
        torch.manual_seed(named_seed(self.seed, purpose, "dropout", self.round, self.client))
        sizes = batch_sizes(len(self.labels), self.options.batch_size, self.model.has_batch_norm)
        name = (purpose, self.round, self.client)
        reports: list[Tensor] = []
        for batch in batches(self.shard, tensors, sizes, epochs, self.augmentation, self.seed, name, teacher):
            total, reported = loss(*batch)
            optimizer.step(total)
            reports.append(torch.stack([*reported]).detach())
        weights = torch.tensor(sizes * epochs, dtype=torch.float32, device=self.images.device)
        return torch.cat([weights @ torch.stack(reports), weights.sum()[None]])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The live backbone's output [n, d] for `images` as stored, uint8 [n, h, w, c], without augmentation, in
        evaluation mode: no dropout, no batch statistics.
        """
        self.model.module.eval()
        return torch.cat(
            [self.model.module.backbone(self.shard.normalized(chunk)) for chunk in images.split(LARGE_BATCH)]
        )

    @torch.no_grad()
    def estimate_statistics(self) -> None:
        """Set the backbone's running statistics to those of the client's own training images, as they are: for a
        client that has none of its own yet, where they are not received.
        """
        layers = [layer for layer in self.model.module.backbone.modules() if isinstance(layer, _BatchNorm)]
        momenta = [layer.momentum for layer in layers]
        self.model.module.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
            layer.momentum = None  # the mean over all chunks, each counting the same, for they are of one size
        for chunk in self.images.tensor_split(-(-len(self.images) // LARGE_BATCH)):
            self.model.module.backbone(self.shard.normalized(chunk))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

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


def check_batch_norm(model: FlatModel, batch_size: int, train_sizes: Sequence[int]) -> None:
    """Raises UserError where a model with batch norm would train on one sample, whose variance is none."""
    if not model.has_batch_norm:
        return
    remedy = "or a model without batch norm, such as model.name=resnet18_gn."
    if batch_size == 1:
        raise UserError(f"train.batch_size=1: batch norm cannot train on one sample. Use train.batch_size=2, {remedy}")
    if min(train_sizes) == 1:
        raise UserError(
            f"client {train_sizes.index(1)} has 1 training sample, on which batch norm cannot train. "
            f"Use data.min_samples=2, {remedy}"
        )
