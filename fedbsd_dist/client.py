"""One client's turn at its rank's live model: its private tensors and its local training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedbsd_dist.batches import PREPARED, Teacher, ask, batch_sizes, batches
from fedbsd_dist.captured import captured
from fedbsd_dist.config import Augment, Train
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.errors import UserError
from fedbsd_dist.models.flat import PARAMETERS, FlatModel, frozen, snapshot
from fedbsd_dist.models.precision import as_in_learning
from fedbsd_dist.optimizer import SGD, Correct
from fedbsd_dist.phases import Phases
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
        private: Mapping[str, Tensor],
        phases: Phases | None = None,
    ) -> None:
        """`private`: what this client has of its own, group -> float32 [numel]."""
        self.client, self.round, self.seed = client, round, seed
        self.options, self.model, self.shard, self.private = options, model, shard, private
        self.augmentation, self.phases = augmentation, phases or Phases()
        self.images = shard.train_images
        """Training images as stored, uint8 [n, h, w, c]."""
        self.labels = shard.train_labels
        """Training labels, int64 [n]."""
        self.augments = augmentation != Augment()
        """Whether an image differs each time it is learned from."""
        self._sizes = batch_sizes(len(self.labels), options.batch_size, model.has_batch_norm)

    def sgd(
        self,
        loss: Loss,
        tensors: Sequence[Tensor] = (),
        *,
        parts: Sequence[str] = PARAMETERS,
        further: Sequence[Tensor] = (),
        epochs: int,
        purpose: str = "batches",
        teachers: Sequence[Tensor | Teacher] = (),
        correct: Correct | None = None,
    ) -> Tensor:
        """Descend `loss` on the parameters of `parts` of the model and on `further` ones.

        `loss` gets what `batches` gives. `correct` may change every step's gradients.
        Returns what `summed` does, of the losses that `loss` reports.
        """
        optimizer = SGD([*self.model.train_only(parts), *further], self.options)

        def step(*batch: Tensor) -> Tensor:
            total, reported = loss(*batch)
            optimizer.step(total, correct)
            return torch.stack([*reported]).detach()

        step = captured(step, self.images.device, self.options.cuda_graphs)
        batches = self.batches(tensors, epochs=epochs, purpose=purpose, teachers=teachers)
        return self.summed([step(*batch) for batch in batches])

    def batches(
        self,
        tensors: Sequence[Tensor] = (),
        *,
        epochs: int,
        purpose: str = "batches",
        teachers: Sequence[Tensor | Teacher] = (),
    ) -> Iterator[tuple[Tensor, ...]]:
        """For `epochs` passes over `tensors` [n, ...], or else images and labels, batches of shuffled rows, of which
        none is a single one where the model has batch norm; behind them what each of `teachers` says of these rows.

        Of images as stored, a batch is float32 [b, c, h, w], augmented and normalized. A teacher is a tensor
        [n, ...], or is asked for the very images in `tensors[0]`, many batches at a time; `listen` makes either.
        The shuffle is that of (seed, purpose, round, client), and so is dropout.
        """
        seed_dropout(named_seed(self.seed, purpose, "dropout", self.round, self.client), self.images.device)
        rows = [*(tensors or (self.images, self.labels)), *(said for said in teachers if isinstance(said, Tensor))]
        asked = [self._timed(teacher) for teacher in teachers if not isinstance(teacher, Tensor)]
        name = (purpose, self.round, self.client)
        return batches(self.shard, rows, self._sizes, epochs, self.augmentation, self.seed, name, asked)

    def _timed(self, teacher: Teacher) -> Teacher:
        def asked(images: Tensor) -> Tensor:
            with self.phases("distil"), as_in_learning():
                return self._ask(teacher, images)

        return asked

    def _ask(self, teacher: Teacher, images: Tensor) -> Tensor:
        return ask(teacher, images)

    def num_steps(self, epochs: int) -> int:
        """Batches of so many epochs."""
        return epochs * len(self._sizes)

    def summed(self, reports: Sequence[Tensor]) -> Tensor:
        """Of what whole epochs of steps report [num_losses] each: the sums of the losses, each times its batch's
        size, and the number of samples, float32 [num_losses + 1].
        """
        epochs = len(reports) // len(self._sizes)
        weights = torch.tensor(self._sizes * epochs, dtype=torch.float32, device=self.images.device)
        return torch.cat([weights @ torch.stack([*reports]), weights.sum()[None]])

    def listen(self, module: nn.Module) -> Tensor | Teacher:
        """What `module`, a part of the live model, says as it is now of every training image, in evaluation mode:
        said once [n, ...], or where images differ each time by a copy of the module, which can be asked.
        """
        if self.augments:
            return snapshot(module)
        with as_in_learning():
            return self._features(module)

    def _features(self, module: nn.Module) -> Tensor:
        with self.phases("distil"):
            return self.outputs(module, self.images)

    def frozen(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """What `module`, a part of the live model, says with its present values, always, without gradient for them."""
        return frozen(module)

    @torch.no_grad()
    def outputs(self, module: nn.Module, images: Tensor) -> Tensor:
        """Of the live model or its backbone [n, ...], for `images` as stored, uint8 [n, h, w, c], without
        augmentation, in evaluation mode: no dropout, no batch statistics.
        """
        module.eval()
        return ask(lambda part: module(self.shard.normalized(part)), images)

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
        for chunk in self.images.tensor_split(-(-len(self.images) // PREPARED)):
            self.model.module.backbone(self.shard.normalized(chunk))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def tune_head(
        self,
        epochs: int,
        purpose: str = "head tuning",
        *,
        augmented: bool = False,
        features: Tensor | Teacher | None = None,
    ) -> None:
        """Learn the head alone on the features of the backbone as it is: of the images as they are, or `augmented` as
        in training. Of images that do not change they are computed once, or given by who has them already: as what
        `listen` gives of the backbone, where `augmented`, else [n, ...].
        """
        module = self.model.module
        if features is None:
            features = self.listen(module.backbone) if augmented else self._features(module.backbone)

        def loss(*batch: Tensor) -> tuple[Tensor, list[Tensor]]:
            """Labels and features come last."""
            classification = F.cross_entropy(module.head(batch[-1]), batch[-2])
            return classification, [classification]

        if epochs:
            rows = () if augmented and self.augments else (self.labels,)
            self.sgd(loss, rows, parts=["head"], epochs=epochs, purpose=purpose, teachers=[features])

    def test(self, *, validation: bool = False) -> Tensor:
        """`score` of the live model on the client's test samples, or on its validation samples."""
        images, labels = self.shard.test_images, self.shard.test_labels
        if validation:
            images, labels = self.shard.val_images, self.shard.val_labels
        return score(self.outputs(self.model.module, images), labels)

    @torch.no_grad()
    def score_head(self, features: Tensor, labels: Tensor) -> Tensor:
        """`score` of the live head on features [n, ...] of its backbone."""
        return score(self.model.module.head.eval()(features), labels)


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Correct, number of samples, summed cross-entropy: float64 [3] on the device, which nobody waits for. A model that
    diverged, and says no number, is right of nothing.
    """
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    correct, loss = right.sum(), F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([correct.double(), torch.full_like(loss, len(labels), dtype=torch.float64), loss.double()])


def seed_dropout(seed: int, device: torch.device) -> None:
    """As torch.manual_seed does, without a fifth of a millisecond for the devices that there are not."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


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
