"""MOON (Li et al., arXiv 2103.16257, algorithm 1): a contrast between representations keeps clients together.

Local rule: SGD on CE + mu l_con, with l_con = -log(e^(sim(z, z_g)/tau) / (e^(sim(z, z_g)/tau) + e^(sim(z, z_p)/tau)))
(its equation 3), sim the cosine, z of the learning backbone, z_g of the one received, z_p of the client's own after its
last local learning, at first the common start. Crosses: the whole model. Stays: the previous backbone. Evaluated: as
FedAvg. Mean weighted by samples. mu = 1 (the paper tunes it among .1, 1, 5, 10), tau = .5. The paper puts a projection
of two layers between backbone and head; here z are the features of the network as it is.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Loss, Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, copies
from fedbsd_dist.models.flat import STATISTICS, Extra


class Options(MethodOptions):
    """MOON (arXiv 2103.16257)."""

    name: Literal["moon"] = "moon"
    """The algorithm."""
    mu: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the contrast; 0 is FedAvg."""
    temperature: float = Field(0.5, gt=0, allow_inf_nan=False)
    """tau, by which similarities are divided."""


class Moon(Method[Options]):
    """FedAvg with a model-contrastive loss."""

    Options = Options
    shared = ("backbone", "head")
    stacks = True
    losses = ("classification", "contrastive")

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """The previous backbone, its running statistics with it."""
        return copies("previous", [group for group in groups if group in ("backbone", STATISTICS["backbone"])])

    def learn(self, turn: Turn) -> Tensor:
        """E epochs; what the two frozen backbones say comes with every batch."""
        model, received = turn.model, turn.model.clone()
        ours = turn.listen(model.module.backbone)
        model.put(model.extra("previous"))
        previous = turn.listen(model.module.backbone)
        model.put(received)
        sums = turn.sgd(self.loss_of(turn), epochs=self.train.local_epochs, teachers=[ours, previous])
        model.store("previous")
        return sums

    def loss_of(self, turn: Turn) -> Loss:
        """The loss of one batch, on the live model."""
        module, options = turn.model.module, self.options

        def loss(images: Tensor, labels: Tensor, ours: Tensor, previous: Tensor) -> tuple[Tensor, list[Tensor]]:
            features = module.backbone(images)
            classification = F.cross_entropy(module.head(features), labels)
            z = features.flatten(1)
            similar = torch.stack([F.cosine_similarity(z, other.flatten(1)) for other in (ours, previous)], 1)
            # softmax with the received backbone as the right answer
            contrast = -F.log_softmax(similar / options.temperature, 1)[:, 0].mean()
            return classification + options.mu * contrast, [classification, contrast]

        return loss
