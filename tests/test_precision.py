"""Local learning in bfloat16: what is computed in it and what is not."""

import json
from pathlib import Path

import pytest
import torch
from ranks import federate, run_ranks, states
from test_federation import FEW, build
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.models.flat import snapshot
from fedbsd_dist.wire.world import World

SHORT = [
    FEW,
    "train.rounds=3",
    "train.local_epochs=1",
    "evaluate.every=0",
    "evaluate.head_epochs=1",
    "checkpoint.every=0",
]
LOW = "train.precision=bfloat16"


def by_hand(module: torch.nn.Module, batches: list[tuple[Tensor, ...]], lr: float) -> list[Tensor]:
    """Plain SGD, autocast anew for the convolutions of every step."""
    module.train().requires_grad_()
    for part in module.modules():  # the copy's, of what is tested here
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    optimizer = torch.optim.SGD(module.parameters(), lr, fused=True)
    for images, labels in batches:
        with torch.autocast("cpu", torch.bfloat16):
            features = module.backbone.conv2(module.backbone.conv1(images))
        optimizer.zero_grad()
        F.cross_entropy(module.head(module.backbone.fc1(features.float())), labels).backward()
        optimizer.step()
    return [parameter.detach() for parameter in module.parameters()]


def _learn(world: World, precision: str) -> list[tuple[float, float]]:
    """Of each parameter: how far from learning by hand, and how far learning by hand went."""
    federation = build(
        world, "method.name=fedavg", "train.momentum=0.0", "train.weight_decay=0.0", f"train.precision={precision}"
    )
    turn = federation.receive(1, 1)
    expected, start = snapshot(turn.model.module), snapshot(turn.model.module)
    learned = by_hand(expected, list(turn.batches(epochs=1)), federation.config.train.lr)
    ((turn, _),) = federation._learned([1], 1, "{}")
    pairs = zip(turn.model.module.parameters(), learned, start.parameters(), strict=True)
    return [
        (float((ours - theirs).detach().abs().max()), float((theirs - was).abs().max())) for ours, theirs, was in pairs
    ]


def test_every_step_is_computed_in_bfloat16_with_the_weights_of_the_step():
    low, full = (run_ranks(1, _learn, precision)[0] for precision in ("bfloat16", "float32"))
    assert all(apart == 0 < far for apart, far in low), low
    assert max(apart / far for apart, far in full) > 1e-3


def _dtypes(world: World) -> tuple[set, set, bool]:
    federation = build(world, "method.name=fedbsd", LOW)
    dtypes = set()
    turn = federation.receive(1, 1)
    turn.model.module.head.register_forward_hook(lambda _module, _inputs, outputs: dtypes.add(outputs.dtype))
    federation.round(1)
    kept = {values.dtype for state in states(federation).values() for values in state.values()}
    kept |= {values.dtype for values in federation.shared.values()}
    return dtypes, kept, torch.is_autocast_enabled("cpu")


def test_losses_and_state_are_float32():
    dtypes, kept, left_on = run_ranks(1, _dtypes)[0]
    assert dtypes == kept == {torch.float32}
    assert not left_on


def _listening(world: World, flip: bool) -> tuple[dict[str, set[bool]], bool]:
    """What a convolution of the backbone was computed in, by who asked; and whether the teacher of a step says what
    its student says before the first one, but for the rounding of other batches.
    """
    federation = build(world, "method.name=fedbsd", LOW, f"augment.flip={str(flip).lower()}", "train.batch_size=64")
    turn = federation.receive(1, 1)
    backbone = turn.model.module.backbone
    low: set[bool] = set()
    backbone.conv1.register_forward_pre_hook(lambda *_: low.add(torch.is_autocast_enabled("cpu")))
    found = {}
    for name, asking in {
        "teacher": lambda: [*turn.batches(epochs=1, teachers=[turn.listen(backbone)])],
        "head": lambda: turn.tune_head(1, augmented=True),
        "head at test time": lambda: turn.tune_head(1),
        "test": turn.test,
    }.items():
        low.clear()
        asking()
        found[name] = {*low}
    images, _, teacher = next(turn.batches(epochs=1, teachers=[turn.listen(backbone)]))
    return found, bool((teacher - backbone.train()(images)).abs().max() < 1e-6)


@pytest.mark.parametrize("flip", [True, False])
def test_what_is_learned_from_is_computed_as_learning_is_and_tests_are_not(flip):
    found, same = run_ranks(1, _listening, flip)[0]
    assert found == {"teacher": {True}, "head": {True}, "head at test time": {False}, "test": {False}}
    assert same


def test_accuracy_is_near_that_of_float32_and_any_ranks_give_the_same_bits(tmp_path: Path):
    summaries = []
    for name, ranks, options in (("one", 1, [LOW]), ("three", 3, [LOW]), ("float32", 1, [])):
        federate(tmp_path / name, ranks, *SHORT, "wire.sum=exact", "method.name=fedper", *options)
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    one, three, full = summaries
    assert one["state_sha256"] == three["state_sha256"] != full["state_sha256"]
    assert abs(one["accuracy"]["trained"]["mean"] - full["accuracy"]["trained"]["mean"]) < 0.05


def test_several_clients_in_one_step(tmp_path: Path):
    summaries = []
    for number in (1, 4):
        federate(tmp_path / str(number), 1, *SHORT, LOW, "method.name=fedbsd", f"train.together={number}")
        summaries.append(json.loads((tmp_path / str(number) / "summary.json").read_text()))
    one, four = (summary["accuracy"]["trained"]["mean"] for summary in summaries)
    assert abs(one - four) < 0.05
