"""The methods whose state is the model alone, each from its paper, in the form of `reference`; and all
by their names.
"""

from collections.abc import Sequence

import torch
from reference import (
    Client,
    FedAvg,
    FedBSD,
    FedPer,
    Method,
    Orders,
    Steps,
    batches,
    descend,
    joint,
    published,
    tune_head,
)
from reference_extra import APFL, Ditto, FedRoD, Moon, PFedMe, PFedSD, Scaffold
from reference_models import State, load, squared_distance, state_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Local(Method):
    """Nothing crosses."""

    def shares(self, name: str) -> bool:
        return False


class FineTuned(Method):
    """Whole model or head alone, `finetune_epochs` at test time."""

    finetunes = True

    def finetune(self, client: Client, orders: Orders) -> None:
        epochs = orders["finetuning"][: self.options["finetune_epochs"]]
        learn = {"head": tune_head, "all": joint}[self.options["finetune"]]
        learn(self.model, client, epochs, self.settings)


class FedAvgFT(FineTuned):
    defaults = published(mean="samples", finetune="head", finetune_epochs=10)


class FedProx(Method):
    """arXiv 1812.06127, algorithm 2."""

    defaults = published(mean="samples", mu=0.01)

    def train(self, client: Client, orders: Orders) -> Sequence[Steps]:
        received = state_of(self.model)

        def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            classification = cross_entropy(self.model(client.train_images[rows]), client.train_labels[rows])
            proximal = squared_distance(self.model, received)
            return classification + self.options["mu"] / 2 * proximal, (classification,)

        return descend(self.model.parameters(), self.epochs(orders), loss, self.settings)


class PerFedAvg(Method):
    """arXiv 2002.07948, algorithm 1, first order (FO)."""

    defaults = published(mean="plain", alpha=0.005, beta=0.001)
    finetunes = True

    def train(self, client: Client, orders: Orders) -> Sequence[Steps]:
        inner = batches(self.epochs(orders), self.settings)
        outer = batches(orders["outer batches"][: self.settings.local_epochs], self.settings)
        steps = []
        for first, second in zip(inner, outer, strict=True):
            w = state_of(self.model)
            self.step(client, first, self.options["alpha"])
            at_adapted, gradient = self.gradient(client, second)
            load(self.model, w)
            self.descend(gradient, self.options["beta"])
            steps.append((len(second), at_adapted))
        return [steps]

    def finetune(self, client: Client, orders: Orders) -> None:
        self.step(client, next(batches(orders["finetuning"], self.settings)), self.options["alpha"])

    def step(self, client: Client, rows: Tensor, rate: float) -> None:
        _, gradient = self.gradient(client, rows)
        self.descend(gradient, rate)

    def gradient(self, client: Client, rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Cross-entropy, and its gradient at the model as it is."""
        loss = cross_entropy(self.model(client.train_images[rows]), client.train_labels[rows])
        return loss.detach(), torch.autograd.grad(loss, list(self.model.parameters()))

    @torch.no_grad()
    def descend(self, gradient: Sequence[Tensor], rate: float) -> None:
        for parameter, direction in zip(self.model.parameters(), gradient, strict=True):
            parameter -= rate * direction


class LGFedAvg(Method):
    """arXiv 2001.01523: the head crosses."""

    def shares(self, name: str) -> bool:
        return name.startswith("head.")


class FedRep(FedPer):
    """arXiv 2102.07078, algorithm 1: the head, then the backbone."""

    defaults = published(mean="plain", head_epochs=10)

    def train(self, client: Client, orders: Orders) -> Sequence[Steps]:
        tune_head(self.model, client, orders["head tuning"][: self.options["head_epochs"]], self.settings)
        return learn_backbone(self, client, orders)


class FedBABU(FineTuned, FedPer):
    """arXiv 2106.06042: the head stays as it begins, until it is fine-tuned."""

    defaults = published(mean="samples", finetune="all", finetune_epochs=5)

    def train(self, client: Client, orders: Orders) -> Sequence[Steps]:
        return learn_backbone(self, client, orders)


def learn_backbone(method: Method, client: Client, orders: Orders) -> Sequence[Steps]:
    """With the head fixed."""

    def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        classification = cross_entropy(method.model(client.train_images[rows]), client.train_labels[rows])
        return classification, (classification,)

    return descend(method.model.backbone.parameters(), method.epochs(orders), loss, method.settings)


class FedBN(Method):
    """arXiv 2102.07623: batch norm stays, its statistics as well."""

    defaults = published(mean="plain")

    def shares(self, name: str) -> bool:
        return not isinstance(self.model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm1d | nn.BatchNorm2d)

    def welcome(self, shared: State, private: State, client: Client) -> State:
        """The statistics of the backbone are those of its images, all at once."""
        self.receive(shared, private)
        for layer in self.model.backbone.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.momentum = 1.0
        with torch.no_grad():
            self.model.backbone(client.train_images)
        for layer in self.model.backbone.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.momentum = 0.1
        return self.divided(state_of(self.model))[1]


METHODS: dict[str, type[Method]] = {
    "fedbsd": FedBSD,
    "fedavg": FedAvg,
    "fedper": FedPer,
    "local": Local,
    "fedavg_ft": FedAvgFT,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "per_fedavg": PerFedAvg,
    "pfedme": PFedMe,
    "apfl": APFL,
    "ditto": Ditto,
    "lg_fedavg": LGFedAvg,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "moon": Moon,
    "fedrod": FedRoD,
    "pfedsd": PFedSD,
    "fedbn": FedBN,
}
