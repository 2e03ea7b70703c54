"""Fed-RoD (Chen and Chao, arXiv 2107.00778, section 4): a generic and a personal head on one backbone.

Local rule: backbone and generic head G by the balanced softmax loss (its equation 5: logits + log n_c, n_c the
client's training samples of class c); personal head P by cross-entropy of G(z) + P(z), without gradient into z or G
(its equation 7). Crosses: backbone and G. Stays: P. Evaluated: G + P, which for the linear heads that it needs here
is one head with added parameters. Mean weighted by samples. P starts at zero, that is, from G: a choice of ours, as
is the linear P (the paper's other variant makes P by a hypernetwork).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.models.flat import Extra, FlatModel


class Options(MethodOptions):
    """Fed-RoD with a linear personal head (arXiv 2107.00778)."""

    name: Literal["fedrod"] = "fedrod"
    """The algorithm."""


class FedRoD(Method[Options]):
    """FedAvg of a balanced model, and a personal head beside it."""

    Options = Options
    shared = ("backbone", "head")
    losses = ("classification", "personal")
    deploys_head_alone = True

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """P."""
        return {"personal_head": Extra(like="head", start=0.0)}

    def check(self, model: FlatModel) -> None:
        """G + P is one head only if it is linear."""
        layers = [layer for layer in model.module.head.modules() if not list(layer.children())]
        if not isinstance(layers[-1], nn.Linear) or any(list(layer.parameters()) for layer in layers[:-1]):
            raise UserError(
                "method.name=fedrod adds a generic and a personal head, which must be one nn.Linear each. Set "
                "model.head_layers=1, or model.head_from to the last linear layer."
            )

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of both losses at once; their gradients do not meet."""
        module, model = turn.model.module, turn.model
        counts = torch.bincount(turn.labels, minlength=int(list(module.head.parameters())[-1].shape[0]))
        prior = counts.float().log()
        names = [name for name, _ in module.head.named_parameters()]
        views = [view.requires_grad_() for view in model.views({"head": model.buffers["personal_head"]}, ["head"])]
        personal_head = dict(zip(names, views, strict=True))

        def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
            features = module.backbone(images)
            generic = module.head(features)
            balanced = F.cross_entropy(generic + prior, labels)
            own = functional_call(module.head, personal_head, (features.detach(),))
            personal = F.cross_entropy(generic.detach() + own, labels)
            return balanced + personal, [balanced, personal]

        return turn.sgd(loss, further=views, epochs=self.train.local_epochs)

    def deploy(self, turn: Turn) -> None:
        """G + P."""
        turn.model.buffers["head"] += turn.model.buffers["personal_head"]
