"""FedBSD, federated backbone self-distillation (arXiv 2409.15636; MM Asia 2023).

Crosses: the backbone. Stays: the head. Evaluated: the received backbone under the client's own head,
and the same after local learning. A client descends

    L = CE(O_s, y) + lambda * L_BSD(P_g, P_b)

where the frozen global backbone, just received, gives P_g on the client's own data, and the local
backbone P_b. The plain mean of the participants' backbones, 1/n, is the next global backbone.

That much is the paper's. The form of L_BSD, lambda, the temperature, the start of the student and
the schedule are reconstructions, hence options.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions, Train
from fedbsd_dist.methods.contract import Method, copies
from fedbsd_dist.methods.distillation import kl
from fedbsd_dist.models.flat import PARAMETERS, Extra
from fedbsd_dist.models.split import SplitModel


class Options(MethodOptions):
    """FedBSD (arXiv 2409.15636). All but the defaults of `mean` and `private_head` are reconstructions."""

    name: Literal["fedbsd"] = "fedbsd"
    """The algorithm."""
    mean: Literal["samples", "plain"] = "plain"
    """Weight of a client in the mean of what crosses: its training samples, or 1 (the paper)."""
    distillation: Literal["logits_kl", "features_kl", "features_mse", "features_cosine"] = "logits_kl"
    """L_BSD: KL between softened logits, both through the client's own head, the teacher's side without
    gradient; or KL, mean squared error, or 1 - cosine between backbone features."""
    distillation_teaches: Literal["backbone", "backbone_and_head"] = "backbone"
    """What a gradient of `logits_kl` reaches. The head learns from labels alone by default: with its gradient
    through the student's side only, the teacher's logits run ahead with the head, and training was seen to diverge."""
    distillation_weight: float = Field(0.3, ge=0, allow_inf_nan=False)
    """lambda; 0 is FedPer with a plain mean. 0.3 is for `logits_kl`; 3 was as good for features."""
    temperature: float = Field(4.0, gt=0, allow_inf_nan=False)
    """tau, by which logits or features are divided before the softmax of a KL."""
    temperature_squared: bool = True
    """Multiply a KL by tau squared, so that its gradient does not shrink with tau."""
    private_head: bool = True
    """The head stays with its client (the paper). false, an ablation: it crosses as the backbone does."""
    student_start: Literal["received", "own"] = "received"
    """The student starts from the received backbone; `own`: from the client's previous one. An ablation
    only: the global backbone was seen to decay with it."""
    schedule: Literal["joint", "head_then_backbone"] = "joint"
    """Backbone and head together, or `head_epochs` of the head and then the backbone, the other fixed."""
    head_epochs: int = Field(1, ge=1)
    """Epochs of the head in schedule `head_then_backbone`; `train.local_epochs` are the backbone's."""

    @field_validator("distillation_teaches")
    @classmethod
    def _through_the_head(cls, teaches: str, info: ValidationInfo) -> str:
        if teaches == "backbone_and_head" and info.data.get("distillation") != "logits_kl":
            raise ValueError("no head is part of a distillation of features: set method.distillation=logits_kl as well")
        return teaches


class FedBSD(Method[Options]):
    """Self-distillation from the global backbone into each client's."""

    Options = Options
    shared: tuple[str, ...] = ("backbone",)
    stacks = True
    losses = ("classification", "distillation")

    def __init__(self, options: Any, train: Train) -> None:
        """Without a private head, nothing stays."""
        super().__init__(options, train)
        if not self.options.private_head:
            self.shared = PARAMETERS

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """The client's own backbone, where the student starts from it."""
        return copies("own", ["backbone"]) if self.options.student_start == "own" else {}

    def learn(self, turn: Turn) -> Tensor:
        """The teacher is the backbone just received: the features of images that do not change are computed once."""
        model = turn.model
        teacher = turn.listen(model.module.backbone)
        own = model.extra("own")
        model.put(own)
        # the present values of the head, at every step, but no gradient
        head = turn.frozen(model.module.head)
        head_first = self.options.schedule == "head_then_backbone"
        if head_first:
            turn.tune_head(self.options.head_epochs, augmented=True, features=None if own else teacher)
        sums = turn.sgd(
            lambda *batch: self.loss(model.module, head, *batch),
            parts=["backbone"] if head_first else PARAMETERS,
            epochs=self.train.local_epochs,
            teachers=[teacher],
        )
        model.store("own")
        return sums

    def loss(
        self,
        model: SplitModel,
        frozen_head: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        teacher: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """L of one batch, with its two terms to report. `teacher`: features [n, d], without gradient."""
        student = model.backbone(images)
        logits = model.head(student)
        classification = F.cross_entropy(logits, labels)
        if self.options.distillation == "logits_kl":
            taught = logits if self.options.distillation_teaches == "backbone_and_head" else frozen_head(student)
            distillation = self._kl(taught, frozen_head(teacher))
        else:
            distillation = self.between_features(student.flatten(1), teacher.flatten(1))
        return classification + self.options.distillation_weight * distillation, [
            classification,
            distillation,
        ]

    def between_features(self, student: Tensor, teacher: Tensor) -> Tensor:
        """L_BSD of features [n, d], mean over the batch."""
        match self.options.distillation:
            case "features_mse":
                return F.mse_loss(student, teacher)
            case "features_cosine":
                return 1 - F.cosine_similarity(student, teacher).mean()
            case _:
                return self._kl(student, teacher)

    def _kl(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kl(student, teacher, self.options.temperature, squared=self.options.temperature_squared)
