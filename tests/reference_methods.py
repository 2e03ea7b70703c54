"""The other methods in one process, written from their papers' equations: what a distributed run must equal.

Models are mappings of names to tensors, local learning is a loop that computes a gradient and takes a step. It shares
no code with the package, and draws nothing at random: the initial model, the data, the cohorts and the order of the
samples come from outside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reference import Client
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Params = dict[str, Tensor]
"""Names begin with backbone. or head."""
States = dict[str, Params]
"""`` -> part of the model, and what a method has besides, by the name that it gives it."""
Steps = list[tuple[int, Tensor]]
"""Of every step: batch size and loss."""
Orders = Callable[[str], Sequence[Tensor]]
"""purpose -> for every epoch of the round, the order of the client's training rows."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    local_epochs: int


@dataclass(frozen=True, kw_only=True)
class Result:
    shared: States
    private: list[States]
    losses: list[list[Tensor]]
    tests: dict[str, list[tuple[int, float]]]


class FedAvg:
    """arXiv 1602.05629, and what the others have in common."""

    plain = False
    """The mean is 1/|S|, not weighted by samples."""

    def __init__(self, net: nn.Module, initial: Params, settings: Settings, options: Mapping[str, Any]) -> None:
        self.net, self.initial, self.s, self.o = net, initial, settings, options
        self.plain = options.get("mean", "plain" if self.plain else "samples") == "plain"

    # what there is at the start

    def shared(self) -> States:
        return {"": dict(self.initial)}

    def private(self) -> States:
        return {}

    # one client

    def model(self, received: States, private: States) -> Params:
        """That a client learns from."""
        return {**received.get("", {}), **private.get("", {})}

    def learn(self, received: States, private: States, client: Client, orders: Orders) -> tuple[States, States, list]:
        """(upload, new private state, steps of each loss)."""
        w, steps = self.sgd(self.model(received, private), orders("batches")[: self.s.local_epochs], self.ce(client))
        return *self.parts(w), steps

    def parts(self, w: Params) -> tuple[States, States]:
        """(what is uploaded, what is kept) of a trained model."""
        return {"": w}, {}

    def evaluated(self, received: States, private: States) -> Params:
        return self.model(received, private)

    def finetuned(self, received: States, private: States, client: Client, orders: Orders) -> Params | None:
        return None

    # the server

    def update(self, old: States, mean: States, part: float) -> States:
        """`part`: |S| / N."""
        return mean

    # tools

    def logits(self, w: Params, x: Tensor) -> Tensor:
        return functional_call(self.net, w, (x,))

    def features(self, w: Params, x: Tensor) -> Tensor:
        return functional_call(self.net.backbone, within(w, "backbone."), (x,))

    def head(self, w: Params, features: Tensor) -> Tensor:
        return functional_call(self.net.head, within(w, "head."), (features,))

    def ce(self, client: Client, names: str = "") -> Callable[[Params, Tensor], tuple[Params, list[Tensor]]]:
        """Gradient of cross-entropy in the parameters whose names begin so."""

        def gradient_of(w: Params, rows: Tensor) -> tuple[Params, list[Tensor]]:
            x, y = client.train_images[rows], client.train_labels[rows]
            return gradient(lambda v: [F.cross_entropy(self.logits({**w, **v}, x), y)], starting(w, names))

        return gradient_of

    def sgd(
        self, w: Params, orders: Sequence[Tensor], gradient_of: Callable[[Params, Tensor], tuple[Params, list[Tensor]]]
    ) -> tuple[Params, list[Steps]]:
        """SGD with momentum from zero; weight decay on weights. Steps of each loss."""
        w, velocity = dict(w), {}
        steps = []
        for order in orders:
            for rows in order.split(self.s.batch_size):
                g, losses = gradient_of(w, rows)
                self.step(w, g, velocity)
                steps.append((len(rows), losses))
        return w, [[(size, losses[i]) for size, losses in steps] for i in range(len(steps[0][1]) if steps else 0)]

    def step(self, w: Params, g: Params, velocity: Params) -> None:
        for name in g:
            decayed = g[name] + (self.s.weight_decay * w[name] if w[name].dim() > 1 else 0)
            velocity[name] = self.s.momentum * velocity.get(name, 0) + decayed
            w[name] = w[name] - self.s.lr * velocity[name]

    def tune_head(self, w: Params, client: Client, orders: Sequence[Tensor]) -> Params:
        with torch.no_grad():
            features = self.features(w, client.train_images)

        def gradient_of(w: Params, rows: Tensor) -> tuple[Params, list[Tensor]]:
            y = client.train_labels[rows]
            return gradient(lambda h: [F.cross_entropy(self.head(h, features[rows]), y)], starting(w, "head."))

        return self.sgd(w, orders, gradient_of)[0]

    def tune(self, w: Params, client: Client, orders: Orders) -> Params:
        """Options `finetune` and `finetune_epochs`."""
        chosen = orders("finetuning")[: self.o["finetune_epochs"]]
        if self.o["finetune"] == "head":
            return self.tune_head(w, client, chosen)
        return self.sgd(w, chosen, self.ce(client))[0]


def gradient(losses: Callable[[Params], list[Tensor]], at: Params) -> tuple[Params, list[Tensor]]:
    """Of the sum of the losses, at these parameters; and the losses."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in at.items()}
    found = losses(leaves)
    gradients = torch.autograd.grad(sum(found[1:], found[0]), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True)), [loss.detach() for loss in found]


def starting(w: Params, names: str) -> Params:
    return {name: value for name, value in w.items() if name.startswith(names)}


def within(w: Params, prefix: str) -> Params:
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


class FedAvgFT(FedAvg):
    def finetuned(self, received, private, client, orders):
        return self.tune(self.model(received, private), client, orders)


class Local(FedAvg):
    def shared(self):
        return {}

    def private(self):
        return {"": dict(self.initial)}

    def parts(self, w):
        return {}, {"": w}


class FedProx(FedAvg):
    """arXiv 1812.06127, equation 2."""

    def learn(self, received, private, client, orders):
        start, ce = received[""], self.ce(client)

        def gradient_of(w, rows):
            g, losses = ce(w, rows)
            return {name: g[name] + self.o["mu"] * (w[name] - start[name]) for name in g}, losses

        w, steps = self.sgd(start, orders("batches")[: self.s.local_epochs], gradient_of)
        return {"": w}, {}, steps


class Scaffold(FedAvg):
    """arXiv 1910.06378, algorithm 1, option II; with momentum, K is the sum of the gradients' weights in the move."""

    plain = True

    def shared(self):
        return {"": dict(self.initial), "control": {name: torch.zeros_like(v) for name, v in self.initial.items()}}

    def private(self):
        return {"own_control": {name: torch.zeros_like(value) for name, value in self.initial.items()}}

    def learn(self, received, private, client, orders):
        c, c_k, ce = received["control"], private["own_control"], self.ce(client)

        def gradient_of(w, rows):
            g, losses = ce(w, rows)
            return {name: g[name] - c_k[name] + c[name] for name in g}, losses

        w, steps = self.sgd(received[""], orders("batches")[: self.s.local_epochs], gradient_of)
        count = len(steps[0])
        # gradient j of K has moved w by 1 + m + ... + m^(K-j) steps
        moves = sum(sum(self.s.momentum**i for i in range(count - j)) for j in range(count))
        new = {name: c_k[name] - c[name] + (received[""][name] - w[name]) / (moves * self.s.lr) for name in w}
        return {"": w, "control": {name: new[name] - c_k[name] for name in w}}, {"own_control": new}, steps

    def update(self, old, mean, part):
        w, c = old[""], old["control"]
        return {
            "": {name: w[name] + self.o["server_lr"] * (mean[""][name] - w[name]) for name in w},
            "control": {name: c[name] + part * mean["control"][name] for name in c},
        }


class PerFedAvg(FedAvg):
    """arXiv 2002.07948, algorithm 1, first-order."""

    plain = True

    def learn(self, received, private, client, orders):
        w, ce, steps = dict(received[""]), self.ce(client), []
        for order, other in zip(orders("batches"), orders("outer batches"), strict=True):
            for rows, others in zip(order.split(self.s.batch_size), other.split(self.s.batch_size), strict=True):
                g, _ = ce(w, rows)
                ahead = {name: w[name] - self.o["alpha"] * g[name] for name in w}
                g, (loss,) = ce(ahead, others)
                w = {name: w[name] - self.o["beta"] * g[name] for name in w}
                steps.append((len(others), loss))
            if len(steps) == self.s.local_epochs * len(order.split(self.s.batch_size)):
                break
        return {"": w}, {}, [steps]

    def finetuned(self, received, private, client, orders):
        w = received[""]
        g, _ = self.ce(client)(w, orders("finetuning")[0].split(self.s.batch_size)[0])
        return {name: w[name] - self.o["alpha"] * g[name] for name in w}


class PFedMe(FedAvg):
    """arXiv 2006.08848, algorithm 1."""

    plain = True

    def private(self):
        return {"personal": dict(self.initial)}

    def learn(self, received, private, client, orders):
        w, theta, ce, o, steps = dict(received[""]), dict(received[""]), self.ce(client), self.o, []
        for order in orders("batches")[: self.s.local_epochs]:
            for rows in order.split(self.s.batch_size):
                for _ in range(o["steps"]):
                    g, (loss,) = ce(theta, rows)
                    theta = {
                        name: theta[name] - o["personal_lr"] * (g[name] + o["lam"] * (theta[name] - w[name]))
                        for name in w
                    }
                w = {name: w[name] - o["lr"] * o["lam"] * (w[name] - theta[name]) for name in w}
                steps.append((len(rows), loss))
        return {"": w}, {"personal": theta}, [steps]

    def update(self, old, mean, part):
        b = self.o["beta"]
        return {"": {name: (1 - b) * value + b * mean[""][name] for name, value in old[""].items()}}

    def evaluated(self, received, private):
        return private["personal"]


class APFL(FedAvg):
    """arXiv 2003.13461, algorithm 1 and equation 10."""

    plain = True

    def private(self):
        learned = {"alpha": {"": torch.tensor([self.o["alpha"]])}} if self.o["learn_alpha"] else {}
        return {"personal": dict(self.initial), **learned}

    def learn(self, received, private, client, orders):
        w, v, ce = dict(received[""]), dict(private["personal"]), self.ce(client)
        alpha = self.alpha(private)
        momenta_w, momenta_v, steps = {}, {}, []
        for order in orders("batches")[: self.s.local_epochs]:
            for rows in order.split(self.s.batch_size):
                g_w, (loss,) = ce(w, rows)
                g, (mixed,) = ce(self.mix(alpha, v, w), rows)
                slope = sum(((v[name] - w[name]) * g[name]).sum() for name in g)
                self.step(w, g_w, momenta_w)
                self.step(v, {name: alpha * g[name] for name in g}, momenta_v)
                if self.o["learn_alpha"]:
                    alpha = min(max(alpha - self.s.lr * float(slope), 0.0), 1.0)
                steps.append((len(rows), loss, mixed))
        learned = {"alpha": {"": torch.tensor([alpha])}} if self.o["learn_alpha"] else {}
        return {"": w}, {"personal": v, **learned}, [[(s[0], s[i]) for s in steps] for i in (1, 2)]

    def alpha(self, private) -> float:
        return float(private["alpha"][""]) if self.o["learn_alpha"] else self.o["alpha"]

    def mix(self, alpha, v, w):
        return {name: alpha * v[name] + (1 - alpha) * w[name] for name in w}

    def evaluated(self, received, private):
        return self.mix(self.alpha(private), private["personal"], received[""])


class Ditto(FedAvg):
    """arXiv 2012.04221, algorithm 1."""

    def private(self):
        return {"personal": dict(self.initial)}

    def learn(self, received, private, client, orders):
        start, ce = received[""], self.ce(client)

        def gradient_of(v, rows):
            g, losses = ce(v, rows)
            return {name: g[name] + self.o["lam"] * (v[name] - start[name]) for name in g}, losses

        w, common = self.sgd(start, orders("batches")[: self.s.local_epochs], ce)
        chosen = orders("personal batches")[: self.o["personal_epochs"]]
        v, personal = self.sgd(private["personal"], chosen, gradient_of)
        return {"": w}, {"personal": v}, [*common, *personal]

    def evaluated(self, received, private):
        return private["personal"]


class FedPer(FedAvg):
    """arXiv 1912.00818."""

    mine, ours = "head.", "backbone."

    def shared(self):
        return {"": starting(self.initial, self.ours)}

    def private(self):
        return {"": starting(self.initial, self.mine)}

    def parts(self, w):
        return {"": starting(w, self.ours)}, {"": starting(w, self.mine)}


class LGFedAvg(FedPer):
    """arXiv 2001.01523."""

    mine, ours = "backbone.", "head."


class FedRep(FedPer):
    """arXiv 2102.07078, algorithm 1."""

    plain = True

    def learn(self, received, private, client, orders):
        w = self.tune_head(self.model(received, private), client, orders("head tuning")[: self.o["head_epochs"]])
        w, steps = self.sgd(w, orders("batches")[: self.s.local_epochs], self.ce(client, "backbone."))
        return *self.parts(w), steps


class FedBABU(FedPer):
    """arXiv 2106.06042, algorithm 1: nobody's head moves, so nobody keeps one."""

    def private(self):
        return {}

    def model(self, received, private):
        return {**self.initial, **received[""]}

    def learn(self, received, private, client, orders):
        batches = orders("batches")[: self.s.local_epochs]
        w, steps = self.sgd(self.model(received, private), batches, self.ce(client, "backbone."))
        return {"": starting(w, "backbone.")}, {}, steps

    def evaluated(self, received, private):
        # after local learning as well: the head is the common one
        return self.model(received, private)

    def finetuned(self, received, private, client, orders):
        return self.tune(self.model(received, private), client, orders)


class Moon(FedAvg):
    """arXiv 2103.16257, equations 3 and 4, on the backbone's features."""

    def private(self):
        return {"previous": starting(self.initial, "backbone.")}

    def learn(self, received, private, client, orders):
        def cosine(a, b):
            return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

        def gradient_of(w, rows):
            x, y = client.train_images[rows], client.train_labels[rows]
            with torch.no_grad():
                ours, past = (self.features(frozen, x).flatten(1) for frozen in (received[""], private["previous"]))

            def losses(w):
                features = self.features(w, x)
                z = features.flatten(1)
                near, far = (torch.exp(cosine(z, other) / self.o["temperature"]) for other in (ours, past))
                contrast = -torch.log(near / (near + far)).mean()
                return [F.cross_entropy(self.head(w, features), y), self.o["mu"] * contrast]

            g, (classification, contrast) = gradient(losses, w)
            return g, [classification, contrast / self.o["mu"]]

        w, steps = self.sgd(received[""], orders("batches")[: self.s.local_epochs], gradient_of)
        return {"": w}, {"previous": starting(w, "backbone.")}, steps


class FedRoD(FedAvg):
    """arXiv 2107.00778, equations 5 and 7, with a linear personal head that begins at zero."""

    def private(self):
        return {"personal": {name: torch.zeros_like(value) for name, value in starting(self.initial, "head.").items()}}

    def learn(self, received, private, client, orders):
        start = {**received[""], **{f"own {name}": value for name, value in private["personal"].items()}}
        classes = len(list(private["personal"].values())[-1])
        counts = torch.tensor([float((client.train_labels == c).sum()) for c in range(classes)])

        def gradient_of(w, rows):
            x, y = client.train_images[rows], client.train_labels[rows]

            def losses(w):
                z = self.features(w, x)
                generic = self.head(w, z)
                own = self.head(
                    {name.removeprefix("own "): v for name, v in w.items() if name[:4] == "own "}, z.detach()
                )
                return [F.cross_entropy(generic + counts.log(), y), F.cross_entropy(generic.detach() + own, y)]

            return gradient(losses, w)

        w, steps = self.sgd(start, orders("batches")[: self.s.local_epochs], gradient_of)
        return {"": {name: w[name] for name in self.initial}}, {"personal": within(w, "own ")}, steps

    def evaluated(self, received, private):
        return {name: value + private["personal"].get(name, 0) for name, value in received[""].items()}


class PFedSD(FedAvg):
    """IEEE TPDS 34(2), 2023."""

    def private(self):
        return {"previous": dict(self.initial), "seen": {"": torch.zeros(1)}}

    def learn(self, received, private, client, orders):
        seen, tau = bool(private["seen"][""]), self.o["temperature"]

        def gradient_of(w, rows):
            x, y = client.train_images[rows], client.train_labels[rows]
            with torch.no_grad():
                taught = self.logits(private["previous"], x)

            def losses(w):
                logits = self.logits(w, x)
                log_p, log_q = (torch.log_softmax(side / tau, 1) for side in (taught, logits))
                distillation = tau**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean() if seen else torch.zeros(())
                return [F.cross_entropy(logits, y), self.o["lam"] * distillation]

            g, (classification, distillation) = gradient(losses, w)
            return g, [classification, distillation / self.o["lam"]]

        w, steps = self.sgd(received[""], orders("batches")[: self.s.local_epochs], gradient_of)
        return {"": w}, {"previous": w, "seen": {"": torch.ones(1)}}, steps


def fedbn(
    net: nn.Module,
    clients: Sequence[Client],
    cohorts: Sequence[Sequence[int]],
    orders: Callable[[str, int, int], Sequence[Tensor]],
    settings: Settings,
) -> tuple[Params, list[Params]]:
    """arXiv 2102.07623, algorithm 1: (all but batch norm, averaged; every client's batch norm), an epoch a round."""
    norms = {name for name, layer in net.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    start = {name: value.clone() for name, value in net.state_dict().items()}
    own = [{name: value for name, value in start.items() if name.rpartition(".")[0] in norms} for _ in clients]
    shared = {name: value for name, value in start.items() if name not in own[0]}
    for round, cohort in enumerate(cohorts, start=1):
        uploads = []
        for k in cohort:
            net.load_state_dict({**shared, **own[k]})
            net.train()
            weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
            others = [parameter for parameter in net.parameters() if parameter.dim() == 1]
            groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others}]
            optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
            for rows in orders("batches", round, k)[0].split(settings.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(net(clients[k].train_images[rows]), clients[k].train_labels[rows]).backward()
                optimizer.step()
            state = {name: value.clone() for name, value in net.state_dict().items()}
            own[k] = {name: state[name] for name in own[k]}
            uploads.append(state)
        shared = {name: average([upload[name] for upload in uploads], [1] * len(uploads)) for name in shared}
    return shared, own


METHODS = {
    "local": Local,
    "fedavg": FedAvg,
    "fedavg_ft": FedAvgFT,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "per_fedavg": PerFedAvg,
    "pfedme": PFedMe,
    "apfl": APFL,
    "ditto": Ditto,
    "lg_fedavg": LGFedAvg,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "moon": Moon,
    "fedrod": FedRoD,
    "pfedsd": PFedSD,
}


def federate(
    method: FedAvg,
    clients: Sequence[Client],
    cohorts: Sequence[Sequence[int]],
    orders: Callable[[str, int, int], Sequence[Tensor]],
    tuning_epochs: int,
) -> Result:
    """`cohorts`: the clients of every round; rounds count from 1. `orders`: of (purpose, round, client)."""
    shared, private = method.shared(), [method.private() for _ in clients]
    losses = []
    for round, cohort in enumerate(cohorts, start=1):
        uploads, weights, reports = [], [], []
        for k in cohort:
            upload, private[k], steps = method.learn(shared, private[k], clients[k], of(orders, round, k))
            uploads.append(upload)
            weights.append(1 if method.plain else len(clients[k].train_labels))
            reports.append(steps)
        mean = {
            state: {name: average([upload[state][name] for upload in uploads], weights) for name in shared[state]}
            for state in shared
        }
        shared = method.update(shared, mean, len(cohort) / len(clients))
        samples = [sum(size for size, _ in steps[0]) for steps in reports]
        losses.append(
            [
                average([average([loss for _, loss in of], [size for size, _ in of]) for of in each], samples)
                for each in zip(*reports, strict=True)
            ]
        )
    tests: dict[str, list[tuple[int, float]]] = {}
    extra = len(cohorts) + 1
    for k, client in enumerate(clients):
        here = of(orders, extra, k)
        received = method.evaluated(shared, private[k])
        upload, kept, _ = method.learn(shared, private[k], client, here)
        stages = {
            "received": received,
            "trained": method.evaluated(upload, kept),
            "head_tuned": method.tune_head(received, client, here("head tuning")[:tuning_epochs]),
            "finetuned": method.finetuned(shared, private[k], client, here),
        }
        for stage, w in stages.items():
            if w is not None:
                tests.setdefault(stage, []).append(test(method, w, client))
    return Result(shared=shared, private=private, losses=losses, tests=tests)


def of(orders: Callable[[str, int, int], Sequence[Tensor]], round: int, client: int) -> Orders:
    return lambda purpose: orders(purpose, round, client)


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean, summed in double precision."""
    total = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
    return (total / sum(weights)).float()


@torch.no_grad()
def test(method: FedAvg, w: Params, client: Client) -> tuple[int, float]:
    logits = method.logits(w, client.test_images)
    correct = int((logits.argmax(1) == client.test_labels).sum())
    return correct, float(F.cross_entropy(logits, client.test_labels))
