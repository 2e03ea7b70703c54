"""APFL (Deng et al., arXiv 2003.13461, algorithm 1): every client mixes the common model with one of its own.

Local rule, on the same batch: w by SGD as in FedAvg, and v by the gradient in v at the mixture
vbar = alpha v + (1 - alpha) w, which is alpha grad f(vbar). Crosses: w, the whole model. Stays: v, and alpha where
it is learned (its equation 10: alpha <- alpha - lr <v - w, grad f(vbar)>, kept in 0..1, at every step). Evaluated:
vbar. Plain mean. alpha = .75. One public implementation mixes by alpha twice; the paper's, and ours, by alpha and
1 - alpha.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, copies
from fedbsd_dist.models.flat import Extra
from fedbsd_dist.optimizer import SGD


class Options(MethodOptions):
    """APFL (arXiv 2003.13461)."""

    name: Literal["apfl"] = "apfl"
    """The algorithm."""
    mean: Literal["samples", "plain"] = "plain"
    """Weight of a client in the mean of what crosses: its training samples, or 1 (the paper)."""
    alpha: float = Field(0.75, ge=0, le=1)
    """Share of the client's own model in the mixture, or where it starts."""
    learn_alpha: bool = False
    """Every client learns its alpha."""


class APFL(Method[Options]):
    """FedAvg, and beside it personal models that are mixed with it."""

    Options = Options
    shared = ("backbone", "head")
    losses = ("classification", "personal")

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """v and alpha."""
        learned = {"alpha": Extra(start=self.options.alpha)} if self.options.learn_alpha else {}
        return {**copies("personal", groups), **learned}

    def welcome(self, turn: Turn) -> None:
        """v begins at w."""
        turn.model.store("personal")

    def learn(self, turn: Turn) -> Tensor:
        """E epochs; the live model is w between the steps."""
        model = turn.model
        v = model.extra("personal")
        optimizer, personal = SGD(model.train_only(), self.train), SGD(model.views(v), self.train)
        reports = []
        for images, labels in turn.batches(epochs=self.train.local_epochs):
            loss = F.cross_entropy(model.module(images), labels)
            gradients = optimizer.gradients(loss)
            w = model.clone()
            self.deploy(turn)
            mixed = F.cross_entropy(model.module(images), labels)
            at_mixture = optimizer.gradients(mixed)
            # the running statistics that the mixture has moved are v's
            for group in model.statistics:
                v[group].copy_(model.buffers[group])
            model.put(w)
            in_v = torch._foreach_mul(at_mixture, self._alpha(turn))
            if self.options.learn_alpha:
                ahead = torch._foreach_sub(model.views(v), model.views(w))
                slope = torch.stack([(one * other).sum() for one, other in zip(ahead, at_mixture, strict=True)]).sum()
                model.buffers["alpha"].sub_(self.train.lr * slope).clamp_(0, 1)
            optimizer.apply(gradients)
            personal.apply(in_v)
            reports.append(torch.stack([loss, mixed]).detach())
        return turn.summed(reports)

    def _alpha(self, turn: Turn) -> Tensor | float:
        return turn.model.buffers["alpha"][0].clone() if self.options.learn_alpha else self.options.alpha

    def deploy(self, turn: Turn) -> None:
        """The mixture of v with w, which is the live model; running statistics are v's."""
        model, v, alpha = turn.model, turn.model.extra("personal"), self._alpha(turn)
        for group in model.parameter_groups:
            model.buffers[group].lerp_(v[group], alpha)
        model.put({group: v[group] for group in model.statistics})
