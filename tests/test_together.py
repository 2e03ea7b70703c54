"""Several clients in one step: equal to one at a time, whatever the method, the sizes, and how many learn together."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from test_federation import NORM, build
from test_interface import alone
from test_parity import SMOOTH
from torch import Tensor, nn
from torch.nn import functional as F

from fedbsd_dist.client import Turn
from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods import METHODS
from fedbsd_dist.methods.contract import Method, classify
from fedbsd_dist.together import groups
from fedbsd_dist.wire.world import World

TOLERANCE = 1e-5
ROUNDS = 2
COMMON = (
    "data.num_clients=7",
    "data.classes=[0,1,2,3]",  # fewer samples, less time
    "data.alpha=0.5",
    "data.size_alpha=1.0",
    "train.participation=0.7",
    f"train.rounds={ROUNDS}",
    *SMOOTH,
    "train.batch_size=48",
    "train.lr=0.02",
    "train.weight_decay=0.05",
    "wire.sum=exact",
)
AUGMENTED = ("augment.crop=2", "augment.flip=true", "augment.rotation=10.0")
CASES = {
    "fedbsd": ("train.local_epochs=2",),
    "fedbsd, augmented": AUGMENTED,
    "fedbsd features_kl, own student, head first": (
        "method.distillation=features_kl",
        "method.student_start=own",
        "method.schedule=head_then_backbone",
    ),
    "fedbsd features_mse, own student, head first, augmented": (
        "method.distillation=features_mse",
        "method.student_start=own",
        "method.schedule=head_then_backbone",
        *AUGMENTED,
    ),
    "fedbsd features_cosine": ("method.distillation=features_cosine", "model.head_layers=2"),
    "fedbsd teaching the head": ("method.distillation_teaches=backbone_and_head", "train.momentum=0.0"),
    "fedavg": ("method.name=fedavg", "train.local_epochs=2"),
    "fedavg, augmented": ("method.name=fedavg", "method.mean=plain", *AUGMENTED),
    "fedavg, batches larger than any client": ("method.name=fedavg", "train.batch_size=1000"),
    "fedavg, rectified": ("method.name=fedavg", "model.factory=", "train.batch_size=256"),
    "fedavg_ft": ("method.name=fedavg_ft", "method.finetune_epochs=1"),
    "local": ("method.name=local",),
    "fedper": ("method.name=fedper",),
    "fedrep": ("method.name=fedrep", "method.head_epochs=2"),
    "fedrep, augmented": ("method.name=fedrep", "method.head_epochs=2", *AUGMENTED),
    "fedbabu": ("method.name=fedbabu", "method.finetune_epochs=1"),
    "lg_fedavg": ("method.name=lg_fedavg", "model.head_layers=2"),
    "moon": ("method.name=moon", "method.mu=2.0"),
    "moon, augmented": ("method.name=moon", *AUGMENTED),
}
ON_THREE_RANKS = {"fedbsd, augmented", "fedavg", "fedrep"}

Values = dict[str, np.ndarray]


def rounds(world: World, *options: str) -> Values:
    """Everything that a rank holds or reports after some rounds and the evaluation at their end."""
    # what vmap has no rule for, it does client by client, and says so
    warnings.filterwarnings("error", message="There is a performance drop")
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    federation = build(world, *COMMON, *options)
    values: Values = {}
    for number in range(1, ROUNDS + 1):
        report = federation.round(number)
        assert not report.diverged
        values |= {f"{name} in round {number}": np.array(loss) for name, loss in report.losses.items()}
    # summed losses of hundreds of samples; what is right or wrong may tip over
    values |= {f"loss, {stage}": table[:, 2] / table[:, 1] for stage, table in report.stages.items()}
    values |= {name: values.numpy() for name, values in federation.shared.items()}
    for client, groups_ in federation.states().items():
        values |= {f"{name} of {client}": group.numpy() for name, group in groups_.items()}
    return values


def on(size: int, *options: str) -> Values:
    """Of all ranks."""
    merged: Values = {}
    for values in run_ranks(size, rounds, *options):
        merged |= values
    return merged


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    away = {name: float(np.abs(found[name] - values).max()) for name, values in expected.items()}
    assert max(away.values()) < TOLERANCE, away


def test_every_method_that_stacks_is_tried():
    tried = {next((o.partition("=")[2] for o in case if o.startswith("method.name")), "fedbsd") for case in CASES.values()}
    assert tried == {name for name, method in METHODS.items() if method.stacks}


@pytest.mark.parametrize("case", CASES)
def test_learning_together_equals_learning_one_at_a_time(case):
    options = CASES[case]
    expected = on(1, *options)
    assert_equal(on(1, *options, "train.together=3"), expected)
    if case in ON_THREE_RANKS:
        assert_equal(on(3, *options, "train.together=100"), expected)
