"""pFedSD (Jin et al., IEEE TPDS 34(2), 2023): every client's past personal model teaches it in the next round.

Local rule: SGD on CE + lam tau^2 KL(teacher || student) of logits softened by tau, from the received model, the
frozen teacher being the client's model after its last local learning; at its first there is none. Crosses: the whole
model. Stays: the teacher. Evaluated: the model after local learning (`trained`). Mean weighted by samples. We had no
text of the paper at hand with its defaults: lam = 1 and tau = 4 are ours.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method, copies
from fedbsd_dist.methods.distillation import kl
from fedbsd_dist.models.flat import Extra


class Options(MethodOptions):
    """pFedSD (IEEE TPDS 34(2), 2023)."""

    name: Literal["pfedsd"] = "pfedsd"
    """The algorithm."""
    lam: float = Field(1.0, ge=0, allow_inf_nan=False)
    """lambda, the weight of distillation; 0 is FedAvg."""
    temperature: float = Field(4.0, gt=0, allow_inf_nan=False)
    """tau, by which logits are divided; the divergence is multiplied by its square."""


class PFedSD(Method[Options]):
    """FedAvg with distillation from each client's own past."""

    Options = Options
    shared = ("backbone", "head")
    losses = ("classification", "distillation")

    def extras(self, groups: Sequence[str]) -> dict[str, Extra]:
        """The previous model, and whether there is one (1)."""
        return {**copies("previous", groups), "seen": Extra(start=0.0)}

    def learn(self, turn: Turn) -> Tensor:
        """E epochs; the teacher's logits come with every batch."""
        model, received = turn.model, turn.model.clone()
        weight = self.options.lam * float(model.buffers["seen"])
        model.put(model.extra("previous"))
        teacher = turn.listen(model.module)
        model.put(received)

        def loss(images: Tensor, labels: Tensor, taught: Tensor) -> tuple[Tensor, list[Tensor]]:
            logits = model.module(images)
            classification = F.cross_entropy(logits, labels)
            distillation = kl(logits, taught, self.options.temperature, squared=True)
            if not weight:
                distillation = distillation * 0
            return classification + weight * distillation, [classification, distillation]

        sums = turn.sgd(loss, epochs=self.train.local_epochs, teachers=[teacher])
        model.store("previous")
        model.buffers["seen"].fill_(1)
        return sums
