"""The reference itself: what must be so of a method by its definition, on a few random images, in double precision."""

import functools

import pytest
import torch
from reference import Client, Learned, Method, Settings, Tests, Trained, batches, evaluate, federate, orders_of
from reference_extra import prefixed, unprefixed
from reference_methods import METHODS
from reference_models import State, load, make_model, state_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

COHORTS = [[0, 1], [1, 2], [0, 2]]
SIZES = (14, 10, 18, 11)
"""Training samples by client; the last is in no cohort."""
EPOCHS = 3
PURPOSES = ("batches", "outer batches", "personal batches", "head tuning", "finetuning")
EXACT, FAR = 1e-12, 1e-4


def make_client(samples: int, first: int) -> Client:
    """Of two of three classes."""
    draw = torch.Generator().manual_seed(first)
    centres = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    labels = (torch.arange(samples + 8) % 2 + first) % 3
    images = centres[labels] + torch.randn(len(labels), 1, 16, 16, generator=draw, dtype=torch.float64)
    return Client(train_images=images[8:], train_labels=labels[8:], test_images=images[:8], test_labels=labels[:8])


CLIENTS = [make_client(samples, number) for number, samples in enumerate(SIZES)]
ORDERS = {
    (purpose, round, number): [
        torch.randperm(
            samples, generator=torch.Generator().manual_seed(1000 * which + 100 * round + 10 * number + epoch)
        )
        for epoch in range(EPOCHS)
    ]
    for which, purpose in enumerate(PURPOSES)
    for round in range(1, len(COHORTS) + 2)
    for number, samples in enumerate(SIZES)
}


def make(
    name: str, *, network: str = "smooth", momentum: float = 0.9, weight_decay: float = 0.001, **options
) -> Method:
    torch.manual_seed(0)
    model = make_model(network, 1, (1, 16, 16), 3).double()
    settings = Settings(
        lr=0.05,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=4,
        local_epochs=2,
        tuning_epochs=1,
        options={"mean": "samples", **options},
    )
    return METHODS[name](model, settings)


@functools.cache
def run(name: str, **options) -> Trained:
    method = make(name, **options)
    return federate(method, state_of(method.model), CLIENTS, COHORTS, ORDERS)


def evaluated(name: str, **options) -> Tests:
    return evaluate(make(name, **options), run(name, **options), CLIENTS, ORDERS)


def distance(one: State, other: State) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def learn(method: Method, shared: State, private: State, number: int = 0) -> Learned:
    return method.learn(shared, private, CLIENTS[number], orders_of(number, 1, ORDERS))


def start(method: Method) -> tuple[State, State]:
    return method.start(state_of(method.model))


def gradient(model: nn.Module, client: Client, rows: Tensor) -> State:
    loss = cross_entropy(model(client.train_images[rows]), client.train_labels[rows])
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


LEARNING = {
    "per_fedavg": {"alpha": 0.05, "beta": 0.1},
    "pfedme": {"lr": 0.1},
    "fedrep": {"head_epochs": 2},
    "fedbn": {"network": "smooth_bn", "momentum": 0.0},
}
"""Options with which something happens within three rounds."""


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_keeps_what_it_must(name):
    options = LEARNING.get(name, {})
    result, method = run(name, **options), make(name, **options)
    shared, private = start(method)
    assert result.shared.keys() == shared.keys()
    assert all(of_one.keys() == private.keys() for of_one in result.private)
    assert all(torch.equal(result.private[-1][key], private[key]) for key in private), "a client that never learned"
    first, *_, last = result.losses
    assert len(first) == len(method.losses)
    assert last[0] < first[0]
    losses = {stage: sum(loss for _, loss in tests) for stage, tests in evaluated(name, **options).items()}
    assert len(set(losses.values())) == len(losses) == (4 if method.finetunes else 3)


@pytest.mark.parametrize(
    ("name", "neutral", "same_as"),
    [
        ("fedprox", {"mu": 0.0}, "fedavg"),
        ("moon", {"mu": 0.0}, "fedavg"),
        ("pfedsd", {"lam": 0.0}, "fedavg"),
        ("apfl", {"alpha": 0.0}, "fedavg"),
        ("apfl", {"learn_alpha": True}, "fedavg"),
        ("ditto", {}, "fedavg"),
        ("fedavg_ft", {}, "fedavg"),
        ("fedbn", {}, "fedavg"),
        ("fedbsd", {"distillation_weight": 0.0}, "fedper"),
        ("fedrep", {"head_epochs": 0}, "fedbabu"),
    ],
)
def test_shared_state_of_a_neutral_method(name, neutral, same_as):
    assert distance(run(name, **neutral).shared, run(same_as).shared) < EXACT


@pytest.mark.parametrize(
    ("name", "options"), [("fedprox", {"mu": 0.1}), ("moon", {}), ("pfedsd", {}), ("scaffold", {}), ("fedrod", {})]
)
def test_another_rule_is_another_model(name, options):
    shared, fedavg = run(name, **options).shared, run("fedavg").shared
    assert distance({key: shared[key] for key in fedavg}, fedavg) > FAR


def test_apfl_without_weight_on_its_own_model_deploys_fedavgs():
    assert evaluated("apfl", alpha=0.0) == evaluated("fedavg")


def test_apfl_with_all_weight_on_its_own_model_is_local_learning():
    apfl, local = run("apfl", alpha=1.0), run("local")
    for one, other in zip(apfl.private, local.private, strict=True):
        assert distance(unprefixed("personal_", one), other) < EXACT
    # but for who never learned, and has the common model as its own
    joined = sorted(apfl.joined)
    assert joined == sorted(local.joined)
    one, other = (evaluated(name, **alpha)["received"] for name, alpha in (("apfl", {"alpha": 1.0}), ("local", {})))
    for client in joined:
        assert one[client] == pytest.approx(other[client])


def test_apfl_alpha_goes_down_the_slope_of_the_mixture():
    """Of one step, by a difference quotient."""
    method = make("apfl", alpha=0.4, learn_alpha=True)
    shared, _ = start(method)
    own = {
        name: tensor + 0.3 * torch.cos(torch.arange(tensor.numel()) + 0.0).view_as(tensor)
        for name, tensor in shared.items()
    }
    client, rows = CLIENTS[0], torch.arange(4)

    @torch.no_grad()
    def loss(alpha: float) -> float:
        load(method.model, {name: alpha * own[name] + (1 - alpha) * shared[name] for name in own})
        return float(cross_entropy(method.model(client.train_images[rows]), client.train_labels[rows]))

    slope = (loss(0.4 + 1e-5) - loss(0.4 - 1e-5)) / 2e-5
    private = {**prefixed("personal_", own), "alpha": torch.tensor([0.4], dtype=torch.float64)}
    learned = method.learn(shared, private, client, {"batches": [rows]})
    assert abs(slope) > 0.1
    assert float(learned.private["alpha"]) == pytest.approx(0.4 - 0.05 * slope, rel=1e-8)


def test_ditto_without_the_pull_is_local_learning_in_another_order():
    method, local = make("ditto", lam=0.0, personal_epochs=2), make("local")
    shared, private = start(method)
    own = learn(method, shared, private).private
    orders = {"batches": ORDERS["personal batches", 1, 0]}
    assert distance(own, prefixed("personal_", local.learn({}, shared, CLIENTS[0], orders).private)) < EXACT


def test_ditto_pulled_hard_stays_near_what_it_received():
    shared, private = start(make("ditto"))
    far = {name: tensor + 1 for name, tensor in private.items()}
    pulled = learn(make("ditto", lam=10.0, momentum=0.0, personal_epochs=3), shared, far).private
    free = learn(make("ditto", lam=0.0, momentum=0.0, personal_epochs=3), shared, far).private
    assert distance(pulled, private) < 0.2 < 0.8 < distance(free, private)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_control_variates_add_up(momentum):
    """c is the mean over all clients of c_k, the absent ones' included."""
    result = run("scaffold", mean="plain", momentum=momentum)
    c = unprefixed("control_", result.shared)
    mean = {name: sum(own[f"own_control_{name}"] for own in result.private) / len(CLIENTS) for name in c}
    assert distance(c, mean) < EXACT
    assert max(float(tensor.abs().max()) for tensor in c.values()) > 0.01


def test_scaffold_control_variate_is_the_mean_gradient_of_the_steps_without_momentum():
    method = make("scaffold", momentum=0.0, weight_decay=0.0)
    shared, private = start(method)
    shared |= {name: tensor + 0.01 for name, tensor in shared.items() if name.startswith("control_")}
    private = {name: tensor - 0.02 for name, tensor in private.items()}
    new = unprefixed("own_control_", learn(method, shared, private).private)
    load(method.model, {name: shared[name] for name in new})
    gradients = []
    for rows in batches(ORDERS["batches", 1, 0][:2], method.settings):
        gradients.append(gradient(method.model, CLIENTS[0], rows))
        with torch.no_grad():
            for name, parameter in method.model.named_parameters():
                parameter -= 0.05 * (gradients[-1][name] + 0.02 + 0.01)
    mean = {name: sum(step[name] for step in gradients) / len(gradients) for name in new}
    assert distance(new, mean) < EXACT


def test_scaffold_control_variate_with_momentum_is_a_weighted_mean_of_gradients():
    """Of a loss that is flat it is therefore 0, however often the old one has been added up."""
    method = make("scaffold", weight_decay=0.0)
    shared, private = start(method)
    method.model.forward = lambda images: torch.zeros(len(images), 3, dtype=torch.float64)
    learned = learn(method, shared, {name: tensor + 0.3 for name, tensor in private.items()})
    assert distance(learned.private, private) < EXACT


def test_scaffold_server_step():
    full, half = (learn_once(make("scaffold", mean="plain", server_lr=step)) for step in (1.0, 0.5))
    shared, _ = start(make("scaffold"))
    for name, tensor in shared.items():
        expected = half[name] if name.startswith("control_") else tensor + 2 * (half[name] - tensor)
        assert torch.allclose(full[name], expected, rtol=0, atol=EXACT)


def learn_once(method: Method) -> State:
    """Shared state after a round."""
    return federate(method, state_of(method.model), CLIENTS, COHORTS[:1], ORDERS).shared


def test_per_fedavg_without_inner_step_is_plain_sgd_on_the_outer_batches():
    method, fedavg = make("per_fedavg", alpha=0.0, beta=0.05), make("fedavg", momentum=0.0, weight_decay=0.0)
    shared, _ = start(method)
    expected = fedavg.learn(shared, {}, CLIENTS[0], {"batches": ORDERS["outer batches", 1, 0]})
    assert distance(learn(method, shared, {}).upload, expected.upload) < EXACT


def test_per_fedavg_fine_tunes_by_one_inner_step():
    method = make("per_fedavg", alpha=0.3)
    shared, _ = start(method)
    slope = gradient(method.model, CLIENTS[0], ORDERS["finetuning", 1, 0][0][:4])
    method.finetune(CLIENTS[0], orders_of(0, 1, ORDERS))
    assert distance(state_of(method.model), {name: shared[name] - 0.3 * slope[name] for name in slope}) < EXACT


def test_pfedme_with_one_inner_step_at_the_first_batch():
    """theta = w - personal_lr grad f(w), and w goes towards it."""
    method = make("pfedme", steps=1, lam=2.0, lr=0.1, personal_lr=0.3)
    shared, private = start(method)
    rows = ORDERS["batches", 1, 0][0][:4]
    slope = gradient(method.model, CLIENTS[0], rows)
    learned = method.learn(shared, private, CLIENTS[0], {"batches": [rows]})
    theta = {name: shared[name] - 0.3 * slope[name] for name in slope}
    assert distance(unprefixed("personal_", learned.private), theta) < EXACT
    expected = {name: shared[name] - 0.1 * 2.0 * (shared[name] - theta[name]) for name in theta}
    assert distance(learned.upload, expected) < EXACT


def test_pfedme_many_inner_steps_find_the_proximal_point():
    """grad f(theta) + lam (theta - w) = 0 for the w that the batch began with."""
    method = make("pfedme", steps=400, lam=15.0, lr=1e-9, personal_lr=0.02)
    shared, private = start(method)
    rows = torch.arange(4)
    theta = unprefixed("personal_", method.learn(shared, private, CLIENTS[0], {"batches": [rows]}).private)
    load(method.model, theta)
    slope = gradient(method.model, CLIENTS[0], rows)
    assert distance({name: 15.0 * (shared[name] - theta[name]) for name in slope}, slope) < 1e-9


def test_pfedme_server_mixes_the_old_state_in():
    full, half = (learn_once(make("pfedme", beta=beta)) for beta in (1.0, 0.5))
    shared, _ = start(make("pfedme"))
    assert distance(half, {name: (shared[name] + full[name]) / 2 for name in shared}) < EXACT


def test_fedbabu_never_moves_the_head():
    result, (_, private) = run("fedbabu"), start(make("fedbabu"))
    assert all(distance(own, private) == 0 for own in result.private)


def test_what_crosses_is_divided_by_name():
    crossing = {
        name: {key.partition(".")[0] for key in run(name).shared} for name in ("lg_fedavg", "fedrep", "fedbabu")
    }
    assert crossing == {"lg_fedavg": {"head"}, "fedrep": {"backbone"}, "fedbabu": {"backbone"}}
    shared, private = start(make("fedbn", network="smooth_bn"))
    norms = ("backbone.5", "backbone.9")
    parts = ("weight", "bias", "running_mean", "running_var")
    assert list(private) == [f"{norm}.{part}" for norm in norms for part in parts]
    assert not shared.keys() & private.keys()


def test_moon_contrast_begins_at_log_2():
    """The present, the received and the previous features are one and the same."""
    method = make("moon")
    (_, first), *_ = learn(method, *start(method)).steps[1]
    assert float(first) == pytest.approx(0.6931471805599453)


def test_fedrod_personal_head_begins_as_a_second_loss_that_the_generic_model_does_not_feel():
    """The generic model alone learns the balanced loss: of equally many samples of all classes it is FedAvg's."""
    client = make_client(12, 0)
    client = Client(**{**vars(client), "train_labels": torch.arange(12) % 3})
    method, fedavg = make("fedrod"), make("fedavg")
    shared, private = start(method)
    orders = {"batches": [torch.arange(12).flip(0)] * 2}
    learned = method.learn(shared, private, client, orders)
    assert distance(learned.upload, fedavg.learn(shared, {}, client, orders).upload) < EXACT
    own = unprefixed("personal_", learned.private)
    assert max(float(tensor.abs().max()) for tensor in own.values()) > FAR
    deployed = method.deploy(learned.upload, learned.private)
    assert distance(deployed, {**learned.upload, **{name: learned.upload[name] + own[name] for name in own}}) == 0


def test_fedrod_balanced_loss_by_hand():
    method, client = make("fedrod"), CLIENTS[0]  # classes 0 and 1
    shared, private = start(method)
    rows = torch.arange(4)
    logits = method.model(client.train_images[rows])
    counts = [(client.train_labels == label).sum() for label in range(3)]
    weighted = torch.stack([counts[label] * logits[:, label].exp() for label in range(3)], 1)
    of_label = weighted[rows, client.train_labels[rows]] / weighted.sum(1)
    (_, balanced), *_ = method.learn(shared, private, client, {"batches": [rows]}).steps[0]
    assert counts[2] == 0
    assert float(balanced) == pytest.approx(float(-of_label.detach().log().mean()))


def test_pfedsd_distils_from_the_second_time_on():
    method = make("pfedsd")
    shared, private = start(method)
    first = learn(method, shared, private)
    assert not any(loss for _, loss in first.steps[1])
    again = learn(method, shared, first.private)
    assert again.steps[1][0][1] > FAR
    at_rest = learn(method, first.upload, first.private)
    assert float(at_rest.steps[1][0][1]) == pytest.approx(0, abs=EXACT)


def test_losses_of_unlike_numbers_of_steps_are_averaged_by_client_first():
    method = make("ditto", personal_epochs=3)
    shared, private = start(method)
    turns = [learn(method, shared, private, number) for number in COHORTS[0]]
    result = federate(method, shared, CLIENTS, COHORTS[:1], ORDERS)
    for loss, column in zip(result.losses[0], zip(*(turn.steps for turn in turns), strict=True), strict=True):
        means = [sum(size * term for size, term in steps) / sum(size for size, _ in steps) for steps in column]
        assert float(loss) == pytest.approx(float((14 * means[0] + 10 * means[1]) / 24))
