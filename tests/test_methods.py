"""What ties the methods together: identities between them, what crosses and what does not, equal bits on any ranks."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import federate, run_ranks, states
from test_federation import FEW, NORM, bits, build
from test_interface import alone
from test_resume import Stopped
from torch import Tensor, nn

from fedbsd_dist.commandline import load
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import METHODS, OPTIONS, make_method
from fedbsd_dist.methods.scaffold import effective_steps
from fedbsd_dist.models.flat import Extra
from fedbsd_dist.plan import make_plan
from fedbsd_dist.record.recorder import Recorder
from fedbsd_dist.wire.world import World, meet

ROUNDS, CLIENTS, COHORT = 3, 6, 3
SHORT = (
    "model.name=mlp",
    f"train.rounds={ROUNDS}",
    "train.local_epochs=1",
    "train.batch_size=128",
    "train.lr=0.05",
    f"data.num_clients={CLIENTS}",
    FEW,
    "train.participation=0.5",
    "evaluate.every=0",
    "evaluate.head_epochs=1",
    f"checkpoint.every={ROUNDS}",
    "wire.sum=exact",
)
BACKBONE, HEAD = 256 * 512 + 512 + 512 * 256 + 256 + 256 * 64 + 64, 64 * 4 + 4
WHOLE = BACKBONE + HEAD
ACCOUNTING = {
    # numbers that a client sends in a round by each paper's own words, and receives as many
    "local": 0,
    **dict.fromkeys(("fedavg", "fedavg_ft", "fedprox", "per_fedavg", "pfedme", "apfl", "ditto"), WHOLE),
    **dict.fromkeys(("moon", "fedrod", "pfedsd"), WHOLE),
    "scaffold": 2 * WHOLE,
    "lg_fedavg": HEAD,
    **dict.fromkeys(("fedbsd", "fedper", "fedrep", "fedbabu"), BACKBONE),
}
WITHOUT_NORM = [name for name in METHODS if name != "fedbn"]
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A finished run of one rank with these options; made once."""
    made: dict[tuple[str, ...], Path] = {}

    def get(*options: str) -> Path:
        if options not in made:
            made[options] = tmp_path_factory.mktemp("run")
            federate(made[options], 1, *SHORT, *options)
        return made[options]

    return get


def summary(path: Path) -> dict[str, Any]:
    return json.loads((path / "summary.json").read_text())


def shared(path: Path) -> dict[str, Tensor]:
    return torch.load(path / f"checkpoints/round-{ROUNDS:06d}/shared.pt", weights_only=True)


def private(path: Path) -> list[dict[str, Tensor]]:
    """Of the clients that ever learned."""
    return [torch.load(file, weights_only=True) for file in sorted(path.glob("checkpoints/*/client-*.pt"))]


def results(path: Path, stage: str) -> list[tuple[str, str, str]]:
    rows = csv.DictReader((path / "clients.csv").read_text().splitlines())
    return [(row["client"], row["accuracy"], row["loss"]) for row in rows if row["stage"] == stage]


def test_there_are_the_twelve_baselines_and_more():
    assert {"fedavg", "fedavg_ft", "fedprox", "scaffold", "per_fedavg", "pfedme", "apfl", "ditto", "lg_fedavg"} <= (
        METHODS.keys()
    )
    assert {"fedper", "fedrep", "fedbabu", "local", "fedbn", "moon", "fedrod", "pfedsd"} <= METHODS.keys()
    assert next(iter(METHODS)) == "fedbsd"
    assert all(options.model_fields["name"].default == name for name, options in OPTIONS.items())


# identities


@pytest.mark.parametrize(("method", "neutral"), [("fedprox", "mu=0.0"), ("moon", "mu=0.0"), ("pfedsd", "lam=0.0")])
def test_without_its_term_it_is_fedavg_bit_for_bit(run: Run, method, neutral):
    fedavg, other = run("method.name=fedavg"), run(f"method.name={method}", f"method.{neutral}")
    assert bits(shared(other)) == bits(shared(fedavg))
    assert results(other, "trained") == results(fedavg, "trained")
    if method == "fedprox":
        assert summary(other)["state_sha256"] == summary(fedavg)["state_sha256"]
    assert bits(shared(run(f"method.name={method}"))) != bits(shared(fedavg))


def test_dittos_common_model_is_fedavgs_and_its_personal_ones_are_evaluated(run: Run):
    fedavg, ditto = run("method.name=fedavg"), run("method.name=ditto")
    assert bits(shared(ditto)) == bits(shared(fedavg))
    assert results(ditto, "received") != results(fedavg, "received")


def test_apfl_that_mixes_nothing_in_evaluates_fedavgs_model(run: Run):
    fedavg, apfl = run("method.name=fedavg"), run("method.name=apfl", "method.alpha=0.0", "method.mean=samples")
    for stage in ("received", "trained", "head_tuned"):
        # FedAvg's clients are tested together, and some batches of one size or another differ in the last bits
        for (*mine, loss), (*theirs, other) in zip(results(apfl, stage), results(fedavg, stage), strict=True):
            assert mine == theirs
            assert float(loss) == pytest.approx(float(other), rel=1e-5)
    assert bits(shared(apfl)) == bits(shared(fedavg))
    assert results(run("method.name=apfl", "method.mean=samples"), "received") != results(fedavg, "received")


def test_apfl_mixes_by_alpha_and_1_minus_alpha(run: Run):
    """At alpha = 1 the evaluated model is the client's own, whatever the common one is, once it has learned one."""
    path = run("method.name=apfl", "method.alpha=1.0")
    files = {int(file.stem.rpartition("-")[2]): file for file in path.glob("checkpoints/*/client-*.pt")}
    plan = make_plan(load([*SHORT, "method.name=apfl", "method.alpha=1.0"], OPTIONS), meet())
    shared = torch.load(next(path.glob("checkpoints/*/shared.pt")), weights_only=True)
    common = {f"personal_{name}": values for name, values in shared.items()}
    assert 0 < len(files) < CLIENTS
    for client, *found in results(path, "received"):
        file = files.get(int(client))
        state = torch.load(file, weights_only=True) if file else common
        own = {"backbone": state["personal_backbone"], "head": state["personal_head"]}
        assert tuple(found) == _test(plan, int(client), own)


def _test(plan, client: int, state: dict[str, Tensor]) -> tuple[str, str]:
    """Accuracy and loss, as clients.csv has them, of a model on a client's test samples."""
    plan.model.put(state)
    shard = plan.load_shards(0)[client]
    with torch.no_grad():
        logits = plan.model.module.eval()(shard.normalized(shard.test_images))
    correct = int((logits.argmax(1) == shard.test_labels).sum())
    loss = float(nn.functional.cross_entropy(logits, shard.test_labels, reduction="sum").double())
    return str(correct / len(shard.test_labels)), str(loss / len(shard.test_labels))


def test_learned_alphas_differ_by_client_and_stay_between_0_and_1(run: Run):
    options = ("method.name=apfl", "method.learn_alpha=true", "train.participation=1.0")
    alphas = [float(state["alpha"]) for state in private(run(*options))]
    assert all(0 <= alpha <= 1 for alpha in alphas)
    assert len({*alphas, 0.75}) > CLIENTS / 2  # some have come to an end


def test_pfedmes_server_moves_and_beta_says_how_far(run: Run):
    start = make_plan(load([*SHORT], OPTIONS), meet()).model.clone()
    one = ("method.name=pfedme", "train.rounds=1", "checkpoint.every=1")
    whole, half = (
        {group: values - start[group] for group, values in first_shared(run(*one, *beta)).items()}
        for beta in ((), ("method.beta=0.5",))
    )
    for group in ("backbone", "head"):
        assert whole[group].abs().max() > 1e-4
        torch.testing.assert_close(half[group], whole[group] / 2, rtol=0, atol=1e-7)


def first_shared(path: Path) -> dict[str, Tensor]:
    """After the first round of a run with `checkpoint.every=1`."""
    return torch.load(path / "checkpoints/round-000001/shared.pt", weights_only=True)


def test_scaffolds_control_variates_sum_to_the_servers(run: Run):
    path = run("method.name=scaffold")
    control, own = shared(path), private(path)
    for part in ("backbone", "head"):
        mean = torch.stack([state[f"own_control_{part}"].double() for state in own]).sum(0) / CLIENTS
        assert mean.abs().max() > 1e-3
        torch.testing.assert_close(control[f"control_{part}"].double(), mean, rtol=0, atol=1e-6)
    assert 0 < len(own) < CLIENTS
    assert all(state["own_control_head"].any() for state in own)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_effective_steps_are_the_weight_of_equal_gradients(momentum):
    """SGD at lr 1 on a constant gradient of 1 moves so far."""
    velocity = moved = 0.0
    for steps in range(1, 8):
        velocity = momentum * velocity + 1
        moved += velocity
        assert effective_steps(steps, momentum) == pytest.approx(moved, rel=1e-12)


def test_scaffolds_new_control_variate_is_a_mean_of_local_gradients(run: Run):
    """The loss is linear in one direction far out: with momentum or without, c_k is no larger than the gradients."""
    sizes = {}
    for momentum in (0.0, 0.9):
        path = run("method.name=scaffold", f"train.momentum={momentum}", "train.lr=0.001")
        sizes[momentum] = max(float(state["own_control_head"].norm()) for state in private(path))
    assert sizes[0.9] < 1.5 * sizes[0.0]  # without the correction it would be nearly ten times as large


def test_fedbabus_head_is_common_and_unmoved_until_test_time(run: Run):
    path = run("method.name=fedbabu")
    assert private(path) == []  # nobody keeps a head
    assert results(path, "finetuned") != results(path, "received")
    assert run_ranks(1, _fedbabus_head) == [True]


def _fedbabus_head(world: World) -> bool:
    federation = build(world, "method.name=fedbabu")
    head = federation.model.buffers["head"].clone()
    federation.round(1)
    return torch.equal(federation.model.buffers["head"], head) and not states(federation)


def test_local_clients_do_not_see_each_other(run: Run):
    path = run("method.name=local", "train.participation=1.0")
    assert len({state["backbone"].numpy().tobytes() for state in private(path)}) == CLIENTS
    assert shared(path) == {}
    ((together, alone, before),) = run_ranks(1, _local)
    assert together == alone != before


def _local(world: World) -> tuple[dict, dict, dict]:
    """Client 5's state after a round of all, after learning with nobody before it, and before."""
    federation = build(world, "method.name=local")
    before = bits(states(federation)[5])
    turn = federation.receive(5, 1)
    federation.method.learn(turn)
    alone = bits({name: turn.model.buffers[name] for name in turn.private})
    federation.round(1)
    return bits(states(federation)[5]), alone, before


# bytes


@pytest.mark.parametrize("method", WITHOUT_NORM)
def test_what_crosses_is_what_the_paper_says(run: Run, method):
    """From the ledger of a real run; FedRep, FedPer and FedBABU never send a head byte, LG-FedAvg nothing else."""
    path = run(f"method.name={method}")
    entries = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
    aggregates = [entry["elements_by_group"] for entry in entries if entry["purpose"] == "aggregate"]
    assert len(aggregates) == ROUNDS
    for elements in aggregates:
        groups = elements.keys() - {"scalars"}
        assert sum(elements[group] for group in groups) == ACCOUNTING[method]
        parts = {group.removeprefix("control_") for group in groups}
        assert parts == (
            {"backbone", "head"}
            if ACCOUNTING[method] >= WHOLE
            else {BACKBONE: {"backbone"}, HEAD: {"head"}, 0: set()}[ACCOUNTING[method]]
        )
    sent = summary(path)["bytes"]
    assert sent["federated_up"] == sent["federated_down"] == 4 * ACCOUNTING[method] * COHORT * ROUNDS


def test_fedbn_sends_all_but_batch_norm(tmp_path):
    federate(tmp_path, 1, *SHORT, NORM, "method.name=fedbn")
    assert shared(tmp_path).keys() == {"backbone", "head"}
    assert all(state.keys() == {"norm", "statistics"} for state in private(tmp_path))
    assert private(tmp_path)[0]["norm"].shape == (2 * 4,)  # a weight and a bias of each of 4 channels


# any number of ranks, and going on


@pytest.mark.parametrize("method", METHODS)
def test_3_ranks_and_a_stop_on_1_leave_the_same_bits(tmp_path, method, monkeypatch):
    """With batch norm, dropout, images that differ each time, and a client that never trained."""
    options = (
        *(*SHORT, NORM, f"method.name={method}", "augment.flip=true", "data.num_new_clients=1", "model.head_layers=1"),
        *("checkpoint.every=1", "evaluate.every=2"),
    )
    federate(tmp_path / "whole", 3, *options)
    recorded = Recorder.round

    def stop(self, report, entries) -> None:
        if report.round == ROUNDS:
            raise Stopped
        recorded(self, report, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "round", stop)
        with pytest.raises(Stopped):
            alone(*options, f"run.dir={tmp_path / 'stopped'}")
    assert alone(*options, f"run.dir={tmp_path / 'stopped'}", "run.resume=auto") == 0
    whole, stopped = summary(tmp_path / "whole"), summary(tmp_path / "stopped")
    assert whatever_the_ranks(stopped) == whatever_the_ranks(whole)
    assert (tmp_path / "stopped/clients.csv").read_text() == (tmp_path / "whole/clients.csv").read_text()
    assert ("finetuned" in whole["accuracy"]) == METHODS[method].finetunes
    assert all(0 <= of["mean"] <= 1 for of in whole["accuracy"].values())


def whatever_the_ranks(facts: dict[str, Any]) -> dict[str, Any]:
    """A summary without what depends on their number."""
    federated = {kind: facts["bytes"][f"federated_{kind}"] for kind in ("up", "down")}
    return {**facts, "world_size": 0, "seconds": 0, "bytes": federated}


# a layer that the model comes with as not to be learned


def frozen_backbone(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """A `model.factory`."""
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], 64), nn.Tanh()).requires_grad_(False),
        nn.Linear(64, num_classes),
    )


@pytest.mark.parametrize(
    ("method", "together"),
    [(name, 1) for name in METHODS if name not in ("fedbn", "pfedme")]
    + [(name, 3) for name, method in METHODS.items() if method.stacks],
)
def test_a_frozen_backbone_stays_and_the_head_learns(method, together):
    options = (f"method.name={method}", f"train.together={together}", "model.factory=test_methods:frozen_backbone")
    federation = build(meet(), *SHORT, *options, "evaluate.every=1")
    states_of = (federation.shared, *states(federation).values())
    before = [{name: values.clone() for name, values in state.items()} for state in states_of]
    for number in range(1, ROUNDS + 1):
        report = federation.round(number)
    dist.destroy_process_group()
    moved = set()
    for start, state in zip(before, (federation.shared, *states(federation).values()), strict=False):
        for name, values in state.items():
            # a mean of equal numbers is one to the last bit or but for that
            if not torch.allclose(values, start[name], rtol=1e-6, atol=1e-9):
                moved.add(name)
    assert not {name for name in moved if name.endswith("backbone")}
    assert moved or method == "fedbabu"
    assert report.stages["trained"][:, 0].sum() > 0


# what cannot be


def refusal(*options: str) -> str:
    with pytest.raises(UserError) as refused:
        make_plan(load([*SHORT, *options], OPTIONS), meet())
    return str(refused.value)


class Wrong(METHODS["fedavg"]):  # type: ignore[misc, name-defined]
    """A method of the user's, which is right but for one thing."""

    def learn(self, turn):
        sums = super().learn(turn)
        return {"LearnsNothing": None, "LearnsTooMuch": torch.cat([sums, sums])}.get(type(self).__name__, sums)

    def update(self, shared, mean, weight, num_clients):
        given = {"UpdatesNone": None, "UpdatesLess": {}, "UpdatesOther": {name: mean[name][1:] for name in mean}}
        return given.get(type(self).__name__, dict(mean))

    def weight(self, num_train):
        return {"WeighsNothing": float("nan"), "WeighsLess": -1.0}.get(type(self).__name__, 1.0)

    def extras(self, groups):
        given = {"AddsNone": None, "AddsUnlike": {"mine": Extra(like="headd")}, "AddsAgain": {"head": Extra()}}
        return given.get(type(self).__name__, {})


WRONG = {
    "LearnsNothing": r"learn must return what turn\.sgd does, a float tensor \[2\].*It returned NoneType",
    "LearnsTooMuch": r"It returned a tensor \[4\]",
    "UpdatesNone": "update must return a mapping of what is shared, backbone, head. It is NoneType",
    "UpdatesLess": "It is one of nothing",
    "UpdatesOther": r"update must return backbone as a tensor \[\d+\], not a tensor",
    "WeighsNothing": "the weight of a client with .* is nan",
    "WeighsLess": r"is -1\.0; it must be a number from 0 up",
    "AddsNone": "extras must return a mapping",
    "AddsUnlike": "mine is like headd; this model has backbone, head",
    "AddsAgain": "head is a group of the model",
}
for _name in WRONG:
    globals()[_name] = type(_name, (Wrong,), {"__module__": __name__})


@pytest.mark.parametrize("name", WRONG)
def test_what_a_users_method_returns_is_looked_at_before_a_round(name):
    with pytest.raises(UserError, match=WRONG[name]) as refused:
        make_plan(load([*SHORT, f"method.factory=test_methods:{name}"], OPTIONS), meet())
    assert str(refused.value).startswith(f"method.factory=test_methods:{name}: ")


def test_fedbn_needs_batch_norm():
    assert "model.name=digits_cnn_bn" in refusal("method.name=fedbn")


def test_fedrod_needs_a_linear_head():
    assert "model.head_layers=1" in refusal("method.name=fedrod", "model.head_layers=2")
    make_plan(load([*SHORT, NORM, "method.name=fedrod"], OPTIONS), meet())  # dropout before it is no harm


class Shares(METHODS["fedper"]):
    shared = ("body",)


class Silent(METHODS["fedper"].__base__):  # type: ignore[misc, name-defined]
    Options = METHODS["fedper"].Options


@pytest.mark.parametrize(
    ("factory", "hint"),
    [
        ("nowhere:Method", "package.module"),
        ("test_methods:run", "Options"),
        ("test_methods:refusal", "Options"),
        ("test_methods:Shares", "shares or fixes body; there are backbone, head"),
        ("test_methods:Silent", "does not define learn, shared"),
        ("fedbsd_dist.config:MethodOptions", "Options"),
    ],
)
def test_a_method_of_ones_own_that_is_none(factory, hint):
    message = refusal(f"method.factory={factory}")
    assert hint in message
    assert f"method.factory={factory}" in message


def test_a_method_of_the_package_by_its_path_is_the_same():
    config = load(["method.factory=fedbsd_dist.methods.ditto:Ditto", "method.lam=0.5"], OPTIONS)
    assert (config.method.name, config.method.lam) == ("ditto", 0.5)
    assert isinstance(make_method(config.method, config.train), METHODS["ditto"])
