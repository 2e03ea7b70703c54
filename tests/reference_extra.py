"""The methods with further state beside the model, each from its paper, in the form of `reference`."""

import copy
from collections.abc import Sequence

import torch
from reference import (
    Client,
    Learned,
    Method,
    Orders,
    Steps,
    batches,
    cosine,
    descend,
    kl,
    published,
    sgd,
)
from reference_models import State, frozen, load, squared_distance, state_of
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy


def prefixed(prefix: str, state: State) -> State:
    """`state` as that of a second model."""
    return {prefix + name: tensor for name, tensor in state.items()}


def unprefixed(prefix: str, state: State) -> State:
    """The second model in `state`."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


class Scaffold(Method):
    """arXiv 1910.06378, algorithm 1, option II. Shared is w and c (control_), private is c_k (own_control_)."""

    defaults = published(mean="plain", server_lr=1.0)

    def start(self, initial: State) -> tuple[State, State]:
        zero = {name: torch.zeros_like(initial[name]) for name, _ in self.model.named_parameters()}
        return {**initial, **prefixed("control_", zero)}, prefixed("own_control_", zero)

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        self.receive(shared, private)
        received = state_of(self.model)
        c, c_k = unprefixed("control_", shared), unprefixed("own_control_", private)

        def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            classification = cross_entropy(self.model(client.train_images[rows]), client.train_labels[rows])
            # its gradient is c - c_k
            correction = sum(((c[name] - c_k[name]) * w).sum() for name, w in self.model.named_parameters())
            return classification + correction, (classification,)

        steps = descend(self.model.parameters(), self.epochs(orders), loss, self.settings)
        learned = state_of(self.model)
        # the gradient of step j moves w by lr times 1 + m + m^2 + ..., as many terms as steps are left
        m, num_steps = self.settings.momentum, len(steps[0])
        total = sum(m**power for left in range(1, num_steps + 1) for power in range(left))
        new = {n: c_k[n] - c[n] + (received[n] - learned[n]) / (self.settings.lr * total) for n in c}
        change = {name: new[name] - c_k[name] for name in c}
        upload = {**learned, **prefixed("control_", change)}
        return Learned(upload=upload, private=prefixed("own_control_", new), steps=steps)

    def update(self, shared: State, average: State, participation: float) -> State:
        """The mean of w is of models, that of c of changes."""
        step = self.options["server_lr"]
        return {
            name: old + participation * average[name]
            if name.startswith("control_")
            else average[name]
            if "running_" in name
            else old + step * (average[name] - old)
            for name, old in shared.items()
        }


class PFedMe(Method):
    """arXiv 2006.08848, algorithm 1. Private is theta (personal_), which is evaluated."""

    defaults = published(mean="plain", lam=15.0, steps=5, lr=0.005, personal_lr=0.09, beta=1.0)

    def start(self, initial: State) -> tuple[State, State]:
        return initial, prefixed("personal_", initial)

    def welcome(self, shared: State, private: State, client: Client) -> State:
        return prefixed("personal_", shared)

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        self.receive(shared, private)
        w, lam = state_of(self.model), self.options["lam"]
        theta = dict(self.model.named_parameters())
        steps = []
        for rows in batches(self.epochs(orders), self.settings):
            for _ in range(self.options["steps"]):
                loss = cross_entropy(self.model(client.train_images[rows]), client.train_labels[rows])
                gradient = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
                with torch.no_grad():
                    for name in theta:
                        theta[name] -= self.options["personal_lr"] * (gradient[name] + lam * (theta[name] - w[name]))
            with torch.no_grad():
                for name in theta:
                    w[name] -= self.options["lr"] * lam * (w[name] - theta[name])
            steps.append((len(rows), loss.detach()))
        learned = state_of(self.model)
        # of running statistics there are those of theta alone
        upload = {name: w[name] if name in theta else tensor for name, tensor in learned.items()}
        return Learned(upload=upload, private=prefixed("personal_", learned), steps=[steps])

    def update(self, shared: State, average: State, participation: float) -> State:
        beta = self.options["beta"]
        return {
            name: average[name] if "running_" in name else (1 - beta) * old + beta * average[name]
            for name, old in shared.items()
        }

    def deploy(self, shared: State, private: State) -> State:
        return unprefixed("personal_", private)


class APFL(Method):
    """arXiv 2003.13461, algorithm 1. Private is v (personal_) and, where it is learned, alpha [1]."""

    defaults = published(mean="plain", alpha=0.75, learn_alpha=False)
    losses = ("classification", "personal")

    def start(self, initial: State) -> tuple[State, State]:
        learned = {"alpha": torch.tensor([self.options["alpha"]])} if self.options["learn_alpha"] else {}
        return initial, {**prefixed("personal_", initial), **learned}

    def alpha(self, private: State) -> Tensor:
        return private.get("alpha", torch.tensor([self.options["alpha"]])).clone()

    def welcome(self, shared: State, private: State, client: Client) -> State:
        return {**private, **prefixed("personal_", shared)}

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        self.receive(shared, private)
        personal = copy.deepcopy(self.model)
        load(personal, unprefixed("personal_", private))
        alpha = self.alpha(private).requires_grad_()
        # of w and v together: each has a momentum of its own anyway
        optimizer = sgd([*self.model.parameters(), *personal.parameters()], self.settings)
        steps: list[Steps] = [[], []]
        for rows in batches(self.epochs(orders), self.settings):
            images, labels = client.train_images[rows], client.train_labels[rows]
            classification = cross_entropy(self.model(images), labels)
            w, v = dict(self.model.named_parameters()), dict(personal.named_parameters())
            mixed = {name: alpha * v[name] + (1 - alpha) * w[name].detach() for name in v}
            of_mixed = cross_entropy(functional_call(self.model, mixed, images), labels)
            optimizer.zero_grad()
            alpha.grad = None
            # to w from the first, and to v and alpha from the second by the chain rule:
            # alpha grad f(v_bar) and <v - w, grad f(v_bar)>
            (classification + of_mixed).backward()
            optimizer.step()
            if self.options["learn_alpha"]:
                with torch.no_grad():
                    alpha.copy_((alpha - self.settings.lr * alpha.grad).clamp(0, 1))
            for of_one, loss in zip(steps, (classification, of_mixed), strict=True):
                of_one.append((len(rows), loss.detach()))
        learned = {"alpha": alpha.detach()} if self.options["learn_alpha"] else {}
        kept = {**prefixed("personal_", state_of(personal)), **learned}
        return Learned(upload=state_of(self.model), private=kept, steps=steps)

    def deploy(self, shared: State, private: State) -> State:
        alpha, v = self.alpha(private), unprefixed("personal_", private)
        return {name: alpha * v[name] + (1 - alpha) * w for name, w in shared.items()}


class Ditto(Method):
    """arXiv 2012.04221, algorithm 1. Private is v (personal_), which is evaluated."""

    defaults = published(mean="samples", lam=1.0, personal_epochs=1)
    losses = ("classification", "personal")

    def start(self, initial: State) -> tuple[State, State]:
        return initial, prefixed("personal_", initial)

    def welcome(self, shared: State, private: State, client: Client) -> State:
        return prefixed("personal_", shared)

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        load(self.model, unprefixed("personal_", private))

        def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            personal = cross_entropy(self.model(client.train_images[rows]), client.train_labels[rows])
            return personal + self.options["lam"] / 2 * squared_distance(self.model, shared), (personal,)

        epochs = orders["personal batches"][: self.options["personal_epochs"]]
        of_personal = descend(self.model.parameters(), epochs, loss, self.settings)
        v = state_of(self.model)
        load(self.model, shared)
        of_global = self.train(client, orders)
        steps = [*of_global, *of_personal]
        return Learned(upload=state_of(self.model), private=prefixed("personal_", v), steps=steps)

    def deploy(self, shared: State, private: State) -> State:
        return unprefixed("personal_", private)


class Moon(Method):
    """arXiv 2103.16257, algorithm 1. Private is the backbone of the last local learning (previous_)."""

    defaults = published(mean="samples", mu=1.0, temperature=0.5)
    losses = ("classification", "contrastive")

    def start(self, initial: State) -> tuple[State, State]:
        return initial, self.previous(initial)

    def previous(self, state: State) -> State:
        return prefixed("previous_", {name: state[name] for name in state if name.startswith("backbone.")})

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        load(self.model, {**shared, **unprefixed("previous_", private)})
        previous = frozen(self.model.backbone)
        load(self.model, shared)
        received = frozen(self.model.backbone)

        def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            images = client.train_images[rows]
            features = self.model.backbone(images)
            classification = cross_entropy(self.model.head(features), client.train_labels[rows])
            to_received, to_previous = (
                torch.exp(cosine(features.flatten(1), other(images).flatten(1)) / self.options["temperature"])
                for other in (received, previous)
            )
            contrastive = -torch.log(to_received / (to_received + to_previous)).mean()
            return classification + self.options["mu"] * contrastive, (classification, contrastive)

        steps = descend(self.model.parameters(), self.epochs(orders), loss, self.settings)
        learned = state_of(self.model)
        return Learned(upload=learned, private=self.previous(learned), steps=steps)


class FedRoD(Method):
    """arXiv 2107.00778, algorithm 1, with a linear personal head (personal_head.), which starts at zero."""

    losses = ("classification", "personal")

    def start(self, initial: State) -> tuple[State, State]:
        head = {name: torch.zeros_like(tensor) for name, tensor in initial.items() if name.startswith("head.")}
        return initial, prefixed("personal_", head)

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        self.receive(shared, private)
        personal_head = copy.deepcopy(self.model.head)
        load(personal_head, unprefixed("personal_head.", private))
        classes = num_classes(self.model)
        prior = torch.log(torch.bincount(client.train_labels, minlength=classes).to(client.train_images.dtype))

        def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            labels = client.train_labels[rows]
            features = self.model.backbone(client.train_images[rows])
            generic = self.model.head(features)
            balanced = cross_entropy(generic + prior, labels)
            personal = cross_entropy(generic.detach() + personal_head(features.detach()), labels)
            return balanced + personal, (balanced, personal)

        parameters = [*self.model.parameters(), *personal_head.parameters()]
        steps = descend(parameters, self.epochs(orders), loss, self.settings)
        kept = prefixed("personal_head.", state_of(personal_head))
        return Learned(upload=state_of(self.model), private=kept, steps=steps)

    def deploy(self, shared: State, private: State) -> State:
        """Two linear heads added are one."""
        added = unprefixed("personal_", private)
        return {name: tensor + added[name] if name in added else tensor for name, tensor in shared.items()}


def num_classes(model: nn.Sequential) -> int:
    return int(model.head[-1].out_features)


class PFedSD(Method):
    """pFedSD (Jin et al., TPDS 2023). Private is the model of the last local learning (previous_) and whether there
    is one (seen, [1]).
    """

    defaults = published(mean="samples", lam=1.0, temperature=4.0)
    losses = ("classification", "distillation")

    def start(self, initial: State) -> tuple[State, State]:
        return initial, {**prefixed("previous_", initial), "seen": torch.zeros(1)}

    def learn(self, shared: State, private: State, client: Client, orders: Orders) -> Learned:
        load(self.model, unprefixed("previous_", private))
        teacher = frozen(self.model)
        load(self.model, shared)
        tau = self.options["temperature"]

        def loss(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            images = client.train_images[rows]
            logits = self.model(images)
            classification = cross_entropy(logits, client.train_labels[rows])
            if not private["seen"]:
                return classification, (classification, torch.zeros_like(classification))
            distillation = tau**2 * kl(logits, teacher(images), tau)
            return classification + self.options["lam"] * distillation, (classification, distillation)

        steps = descend(self.model.parameters(), self.epochs(orders), loss, self.settings)
        learned = state_of(self.model)
        kept = {**prefixed("previous_", learned), "seen": torch.ones(1)}
        return Learned(upload=learned, private=kept, steps=steps)
