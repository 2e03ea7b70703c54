"""pFedMe (Dinh et al., arXiv 2006.08848, algorithm 1): Moreau envelopes; personal models near a common one.

Local rule, for every batch: theta by K steps on f(theta) + lam/2 ||theta - w||^2, then w <- w - lr lam (w - theta).
Crosses: w, the whole model. Stays: theta. Evaluated: theta. Server: w <- (1 - beta) w + beta mean(w_k), plain.
Defaults: lam 15, K 5, lr .005, personal_lr .09, beta 1. As in the authors' code theta begins at the received w and
runs on from batch to batch, and no momentum or weight decay acts; `train.lr` is not used. A public library has a
server that never moves: here it does. In the paper all clients learn in each round, and the server averages a sample
of them: here, as with every method, the round's cohort alone learns.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, copies, toward_mean
from fedbsd_dist.models.flat import Extra, State
from fedbsd_dist.optimizer import SGD, plain, toward


class Options(MethodOptions):
    """pFedMe (arXiv 2006.08848). `train.lr`, momentum and weight decay do not act in it."""

    name: Literal["pfedme"] = "pfedme"
    """The algorithm."""
    mean: Literal["samples", "plain"] = "plain"
    """Weight of a client in the mean of what crosses: its training samples, or 1 (the paper)."""
    lam: float = Field(15.0, gt=0, allow_inf_nan=False)
    """lambda, which holds theta near w."""
    steps: int = Field(5, ge=1)
    """K, the steps of theta on one batch."""
    lr: float = Field(0.005, gt=0, allow_inf_nan=False)
    """eta, of w; lr times lambda is the part of the way to theta that w goes at a batch."""
    personal_lr: float = Field(0.09, gt=0, allow_inf_nan=False)
    """Of theta."""
    beta: float = Field(1.0, gt=0, allow_inf_nan=False)
    """The server's part of the way to the mean."""


class PFedMe(Method[Options]):
    """Personal models by proximal steps, and their common centre."""

    Options = Options
    shared = ("backbone", "head")

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """Theta."""
        return copies("personal", groups)

    def welcome(self, turn: Turn) -> None:
        """Theta begins at w."""
        turn.model.store("personal")

    def learn(self, turn: Turn) -> Tensor:
        """E epochs of batches; the live model is theta until it is put away."""
        options, model = self.options, turn.model
        common = {part: model.buffers[part].clone() for part in model.parameter_groups}
        near = toward(model.views(common), options.lam)
        theta = SGD(model.train_only(), plain(self.train, options.personal_lr))
        reports = []
        for images, labels in turn.batches(epochs=self.train.local_epochs):
            for _ in range(options.steps):
                loss = F.cross_entropy(model.module(images), labels)
                theta.step(loss, near)
            for part, values in common.items():
                values.lerp_(model.buffers[part], options.lr * options.lam)
            reports.append(loss.detach()[None])
        model.store("personal")
        model.put(common)
        return turn.summed(reports)

    def update(
        self, shared: Mapping[str, Tensor], mean: Mapping[str, Tensor], weight: float, num_clients: int
    ) -> State:
        """Of w and the mean of the local w."""
        return toward_mean(shared, mean, self.options.beta)

    def deploy(self, turn: Turn) -> None:
        """Theta, as it was after the client's last local learning."""
        turn.model.put(turn.model.extra("personal"))
