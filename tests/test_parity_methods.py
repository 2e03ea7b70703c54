"""Every method's distributed run on three ranks equals its plain reference: states, losses, accuracies.

Partial participation, uneven clients, one that joins late and one that never does; as in test_parity, on a smooth
network, for rounding is amplified by kinks.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import reference_methods
import torch
from ranks import federate
from test_parity import (
    CLIENTS,
    COHORT,
    COMMON,
    FAR,
    ROUNDS,
    SMOOTH,
    TOLERANCE,
    make_inputs,
    permutations,
    product_model,
    smooth,
)
from torch import Tensor, nn

from fedbsd_dist.commandline import load
from fedbsd_dist.config import RunConfig
from fedbsd_dist.methods import METHODS, OPTIONS
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model

CASES = {
    "local": ("method.name=local",),
    "fedavg": ("method.name=fedavg",),
    "fedavg_ft": ("method.name=fedavg_ft", "method.finetune_epochs=2"),
    "fedavg_ft all": ("method.name=fedavg_ft", "method.finetune=all", "method.finetune_epochs=1"),
    "fedprox": ("method.name=fedprox", "method.mu=0.5"),
    "scaffold": ("method.name=scaffold", "train.momentum=0.0"),
    "scaffold, momentum": ("method.name=scaffold", "train.momentum=0.5", "method.server_lr=0.7"),
    "per_fedavg": ("method.name=per_fedavg", "method.alpha=0.02", "method.beta=0.05"),
    "pfedme": ("method.name=pfedme", "method.personal_lr=0.03", "method.lr=0.02", "method.beta=0.6", "method.steps=3"),
    "apfl": ("method.name=apfl",),
    "apfl, learned": ("method.name=apfl", "method.learn_alpha=true", "method.alpha=0.4", "method.mean=samples"),
    "ditto": ("method.name=ditto", "method.personal_epochs=2", "method.lam=0.5"),
    "lg_fedavg": ("method.name=lg_fedavg",),
    "fedper": ("method.name=fedper", "train.local_epochs=2"),
    "fedrep": ("method.name=fedrep", "method.head_epochs=2"),
    "fedbabu": ("method.name=fedbabu", "method.finetune_epochs=2"),
    "fedbabu head": ("method.name=fedbabu", "method.finetune=head", "method.finetune_epochs=2"),
    "moon": ("method.name=moon", "method.mu=2.0"),
    "fedrod": ("method.name=fedrod",),
    "pfedsd": ("method.name=pfedsd", "method.lam=0.5", "method.temperature=2.0"),
}
PREFIXES = ("own_control", "control", "personal", "previous")


@dataclass(frozen=True, kw_only=True)
class Case:
    config: RunConfig
    run: Path
    model: torch.nn.Module
    """The reference's network."""
    cohorts: list[list[int]]
    initial: dict[str, Tensor]
    expected: reference_methods.Result


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request, tmp_path_factory) -> Case:
    overrides = (*COMMON, *SMOOTH, *request.param)
    run = tmp_path_factory.mktemp("parity") / "run"
    federate(run, 3, *overrides)
    config = load(overrides, OPTIONS)
    inputs = make_inputs(config)
    sizes = [len(client.train_labels) for client in inputs["clients"]]
    settings = config.train.model_dump(exclude={"rounds", "participation"})
    method = reference_methods.METHODS[config.method.name](
        inputs["model"], inputs["initial"], reference_methods.Settings(**settings), config.method.model_dump()
    )
    expected = reference_methods.federate(
        method,
        inputs["clients"],
        inputs["cohorts"],
        lambda purpose, round, client: permutations(config, purpose, round, client, sizes[client]),
        config.evaluate.head_epochs,
    )
    return Case(
        config=config,
        run=run,
        model=inputs["model"],
        cohorts=inputs["cohorts"],
        initial=inputs["initial"],
        expected=expected,
    )


def saved(case: Case, name: str) -> dict[str, dict[str, Tensor]]:
    """The states in a file of the last checkpoint, under the reference's names; flat buffers are taken apart."""
    states: dict[str, dict[str, Tensor]] = {}
    for group, buffer in torch.load(case.run / f"checkpoints/round-{ROUNDS:06d}" / name, weights_only=True).items():
        prefix = next((prefix for prefix in PREFIXES if group.startswith(f"{prefix}_")), "")
        part = group.removeprefix(f"{prefix}_") if prefix else group
        if part not in ("backbone", "head"):
            states[group] = {"": buffer}
            continue
        model = FlatModel(product_model(case.config), torch.device("cpu"))
        model.buffers[part].copy_(buffer)
        named = zip(case.model.state_dict(), model.module.state_dict().items(), strict=True)
        found = {theirs: tensor for theirs, (ours, tensor) in named if ours.startswith(part)}
        states.setdefault(prefix, {}).update(found)
    return states


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest absolute difference of two states of states."""
    assert one.keys() == other.keys()
    assert all(one[state].keys() == other[state].keys() for state in one)
    pairs = [(one[state][name], other[state][name]) for state in one for name in one[state]]
    return float(torch.cat([(a - b).flatten().abs() for a, b in pairs])[None].max()) if pairs else 0.0


def test_every_method_has_a_case():
    # fedbsd's are in test_parity, fedbn's below
    assert {option.removeprefix("method.name=") for option, *_ in CASES.values()} == METHODS.keys() - {
        "fedbsd",
        "fedbn",
    }
    assert reference_methods.METHODS.keys() == METHODS.keys() - {"fedbsd", "fedbn"}


def test_shared_state(case: Case):
    assert distance(saved(case, "shared.pt"), case.expected.shared) < TOLERANCE


def test_private_states(case: Case):
    files = sorted(path.name for path in case.run.glob("checkpoints/*/client-*.pt"))
    expected = {f"client-{client:06d}.pt": state for client, state in enumerate(case.expected.private) if state}
    assert files == list(expected)
    assert all(distance(saved(case, name), state) < TOLERANCE for name, state in expected.items())


def test_losses(case: Case):
    lines = [json.loads(line) for line in (case.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["cohort"] for line in lines] == [COHORT] * ROUNDS
    assert len(lines[0]["loss"]) == len(case.expected.losses[0])
    for line, expected in zip(lines, case.expected.losses, strict=True):
        assert list(line["loss"].values()) == pytest.approx(list(map(float, expected)), rel=TOLERANCE, abs=TOLERANCE)


def test_accuracies_and_losses_on_the_test_sets(case: Case):
    rows = list(csv.DictReader((case.run / "clients.csv").read_text().splitlines()))
    expected = [(stage, client, *of) for stage, tests in case.expected.tests.items() for client, of in enumerate(tests)]
    assert [(row["stage"], int(row["client"])) for row in rows] == [(stage, client) for stage, client, *_ in expected]
    for row, (_, _, correct, loss) in zip(rows, expected, strict=True):
        assert float(row["accuracy"]) * int(row["num_test"]) == pytest.approx(correct, rel=0, abs=1e-9)
        assert float(row["loss"]) == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE)


def test_the_problem_is_not_trivial(case: Case):
    first, *later = case.cohorts
    assert set().union(*later) - set(first), "a client joins late"
    assert set(first).intersection(*later), "a client comes again, and meets what it kept"
    assert set(range(CLIENTS)) - set(first).union(*later), "a client never joins"
    for states in (case.expected.shared, *case.expected.private[first[0] : first[0] + 1]):
        for name, state in states.items():
            if name == "" or name in ("personal", "previous"):
                start = {key: case.initial[key] for key in state}
                assert distance({"": state}, {"": start}) > FAR
    accuracies = [[correct for correct, _ in tests] for tests in case.expected.tests.values()]
    assert len({tuple(each) for each in accuracies}) == len(accuracies)


def smooth_bn(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """A `model.factory` with batch norm: the smooth one, normalised after its first convolution and at its features."""
    conv1, conv2, fc, classifier = smooth(shape, num_classes)
    return nn.Sequential(
        nn.Sequential(conv1[0], nn.BatchNorm2d(8), *conv1[1:]),
        conv2,
        nn.Sequential(fc[0], nn.BatchNorm1d(32), fc[1]),
        classifier,
    )


def test_fedbn(tmp_path):
    """Its layers and statistics of batch norm, a client's own, and the mean of all others."""
    overrides = (*COMMON, *SMOOTH, "method.name=fedbn", f"model.factory={__name__}:smooth_bn")
    federate(tmp_path, 3, *overrides)
    config = load(overrides, OPTIONS)
    inputs = make_inputs(load((*COMMON, *SMOOTH), OPTIONS))
    sizes = [len(client.train_labels) for client in inputs["clients"]]
    assert all(size % config.train.batch_size != 1 for size in sizes)  # such a last batch would join the one before
    settings = config.train.model_dump(exclude={"rounds", "participation"})
    split = build_model(config.model, (1, 16, 16), 10, config.seed)
    shared, own = reference_methods.fedbn(
        split,
        inputs["clients"],
        inputs["cohorts"],
        lambda purpose, round, client: permutations(config, purpose, round, client, sizes[client]),
        reference_methods.Settings(**settings),
    )
    folder = tmp_path / f"checkpoints/round-{ROUNDS:06d}"
    for file, expected in {"shared.pt": shared, **{f"client-{k:06d}.pt": state for k, state in enumerate(own)}}.items():
        model = FlatModel(build_model(config.model, (1, 16, 16), 10, config.seed), torch.device("cpu"), norm_apart=True)
        buffers = torch.load(folder / file, weights_only=True)
        model.put(buffers)
        names = {name for group, name, *_ in model.layout if group in buffers}
        assert names == {name for name in expected if not name.endswith("num_batches_tracked")}
        state = model.module.state_dict()
        assert distance({"": {name: state[name] for name in names}}, {"": {name: expected[name] for name in names}}) < (
            TOLERANCE
        )
    assert distance({"": own[0]}, {"": own[1]}) > FAR
