"""Per-FedAvg (Fallah et al., arXiv 2002.07948, algorithm 1): a common start that one gradient step makes personal.

Local rule, first-order MAML: w' = w - alpha grad f(w; B), then w <- w - beta grad f(w'; B'), on two batches drawn
apart, without momentum or weight decay. Crosses: the whole model. Stays: nothing. Evaluated: the received model
after one inner step on a training batch (`finetuned`). Plain mean. alpha = .005 and beta = .001 are those of the
authors' MNIST code; the paper's Hessian term is left out, as in its variant FO, section 5. `train.lr` is not used.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.optimizer import SGD, plain


class Options(MethodOptions):
    """Per-FedAvg, first-order (arXiv 2002.07948). `train.lr`, momentum and weight decay do not act in it."""

    name: Literal["per_fedavg"] = "per_fedavg"
    """The algorithm."""
    mean: Literal["samples", "plain"] = "plain"
    """Weight of a client in the mean of what crosses: its training samples, or 1 (the paper)."""
    alpha: float = Field(0.005, gt=0, allow_inf_nan=False)
    """Learning rate of the inner step, which is also the test-time step's."""
    beta: float = Field(0.001, gt=0, allow_inf_nan=False)
    """Learning rate of the outer step."""


class PerFedAvg(Method[Options]):
    """Mean of models that are good one step later."""

    Options = Options
    shared = ("backbone", "head")
    finetunes = True

    def learn(self, turn: Turn) -> Tensor:
        """As many outer steps as E epochs have batches."""
        model, epochs = turn.model, self.train.local_epochs
        parameters = model.train_only()
        inner, outer = (SGD(parameters, plain(self.train, lr)) for lr in (self.options.alpha, self.options.beta))
        reports = []
        for (images, labels), (other_images, other_labels) in zip(
            turn.batches(epochs=epochs), turn.batches(epochs=epochs, purpose="outer batches"), strict=True
        ):
            start = {part: model.buffers[part].clone() for part in model.parameter_groups}
            inner.step(F.cross_entropy(model.module(images), labels))
            loss = F.cross_entropy(model.module(other_images), other_labels)
            gradients = outer.gradients(loss)
            model.put(start)
            outer.apply(gradients)
            reports.append(loss.detach()[None])
        return turn.summed(reports)

    def finetune(self, turn: Turn) -> None:
        """One inner step on one batch (the paper's section 2)."""
        inner = SGD(turn.model.train_only(), plain(self.train, self.options.alpha))
        images, labels = next(turn.batches(epochs=1, purpose="finetuning"))
        inner.step(F.cross_entropy(turn.model.module(images), labels))
