"""What a GPU does differently, where there is one: steps replayed, clients in one step, NCCL, staging, traces."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import federate, run_ranks
from test_interface import alone
from test_resume import OPTIONS, resume, stop_in_round
from test_together import CASES, assert_equal, rounds
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.captured import Captured
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import METHODS
from fedbsd_dist.methods.fedavg import FedAvg

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; PyTorch sees none")

GPU = "run.device=cuda"
SHORT = (GPU, "train.rounds=3", "train.local_epochs=1", "evaluate.every=2", "evaluate.head_epochs=1")
AS_WRITTEN = "train.cuda_graphs=false"


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_clients_in_one_step_equal_one_at_a_time(case):
    found, expected = (
        run_ranks(1, rounds, GPU, *CASES[case], *options)[0] for options in (("train.together=3",), (AS_WRITTEN,))
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("case", ["fedbsd", "fedavg", "fedrep, augmented"])
def test_a_gpu_learns_what_the_cpu_learns(case):
    """But for rounding: cuDNN convolves by algorithms that round otherwise, and 1e-5 is too much to ask. A thousandth
    of what two seeds are apart is far below any mistake.
    """
    found, expected, other = (
        run_ranks(1, rounds, *CASES[case], *options)[0] for options in ((GPU,), ("run.device=cpu",), ("seed=1",))
    )
    for name, values in expected.items():
        if "loss" not in name:
            assert np.abs(found[name] - values).max() < 1e-3 * np.abs(other[name] - values).max(), name


@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_give_the_same_bits_as_steps_as_written(method, tmp_path):
    batch_norm = ["model.name=resnet18"] if method == "fedbn" else []
    digests = []
    for name, options in (("replayed", ()), ("written", (AS_WRITTEN,))):
        federate(tmp_path / name, 1, *SHORT, f"method.name={method}", "train.lr=0.005", *batch_norm, *options)
        digests.append(summary(tmp_path / name)["state_sha256"])
    assert digests[0] == digests[1]


def test_what_is_replayed_is_the_step():
    """Of batches of two shapes, in turn."""
    weight = torch.ones(3, device="cuda")

    def step(batch: Tensor) -> Tensor:
        weight.add_(batch.sum(0))
        return weight.sum()

    expected, captured = torch.ones(3), Captured(step, weight.device)
    for number in range(8):
        batch = torch.full((2 + number % 2, 3), float(number))
        expected += batch.sum(0)
        assert captured(batch.cuda()).item() == expected.sum()
    assert len(captured._graphs) == 2


def test_a_step_that_waits_for_the_gpu_is_named_and_what_to_do():
    captured = Captured(lambda batch: torch.ones_like(batch) * batch.sum().item(), torch.device("cuda"))
    batch = torch.ones(2, device="cuda")
    assert captured(batch).tolist() == [2, 2]
    with pytest.raises(UserError, match=r"train\.cuda_graphs=false"):
        captured(batch)
    # and the device goes on
    assert F.relu(batch).sum().item() == 2


class Waits(FedAvg):
    """Its steps ask the GPU for a number."""

    def learn(self, turn):
        """As FedAvg."""

        def loss(images, labels):
            found = F.cross_entropy(turn.model.module(images), labels)
            return found * float(found.item() > 0), [found]

        return turn.sgd(loss, epochs=1)


def test_a_method_whose_step_waits_is_refused_before_anything_is_written(tmp_path, capsys):
    assert alone(f"run.dir={tmp_path / 'run'}", *SHORT, "method.factory=test_gpu:Waits") == 2
    assert "train.cuda_graphs=false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "topk"])
def test_ranks_that_share_a_gpu_give_the_bits_of_one(codec, tmp_path):
    """By an exact sum, which crosses in host memory; one rank alone has NCCL."""
    for ranks in (1, 3):
        options = (f"wire.codec={codec}", "wire.topk=0.1", "server.trains=true")
        federate(tmp_path / str(ranks), ranks, *SHORT, "wire.sum=exact", *options)
    one, three = (summary(tmp_path / ranks) for ranks in "13")
    assert [one["backend"], three["backend"]] == ["nccl", "gloo"]
    assert one["state_sha256"] == three["state_sha256"]
    assert one["device"] == "cuda"


@pytest.mark.parametrize("codec", ["bf16", "int8", "topk"])
def test_codes_cross_between_ranks_that_share_a_gpu(codec, tmp_path):
    federate(tmp_path, 2, *SHORT, f"wire.codec={codec}", "wire.topk=0.1", "server.trains=true")
    found = summary(tmp_path)
    assert found["bytes"]["federated_up"] < 0.6 * found["bytes"]["federated_down"]
    assert found["accuracy"]["trained"]["mean"] > 0.3


def test_a_run_that_goes_on_comes_to_the_same_bits(tmp_path):
    assert alone(*OPTIONS, GPU, f"run.dir={tmp_path / 'whole'}") == 0
    stop_in_round(3, tmp_path / "parts", GPU)
    assert resume(tmp_path / "parts", GPU) == 0
    assert summary(tmp_path / "parts")["state_sha256"] == summary(tmp_path / "whole")["state_sha256"]


@pytest.mark.parametrize("store", ["host", "mmap"])
def test_where_private_state_lies_changes_nothing(store, tmp_path):
    for place in ("device", store):
        federate(tmp_path / place, 1, *SHORT, "method.name=ditto", f"client.store={place}")
    assert summary(tmp_path / store)["state_sha256"] == summary(tmp_path / "device")["state_sha256"]


def test_a_trace_has_the_kernels_and_phases_add_up(tmp_path):
    federate(tmp_path, 1, *SHORT, "profile.trace=true", "profile.rounds=[2]")
    (trace,) = tmp_path.glob("traces/*.json.gz")
    kinds = {event.get("cat") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"kernel", "user_annotation"} <= kinds
    seconds = summary(tmp_path)["seconds"]
    assert 0 < seconds["training"] < seconds["total"]


def test_learning_in_bfloat16_learns(tmp_path):
    federate(tmp_path, 1, *SHORT, "train.rounds=8", "train.precision=bfloat16", "train.together=4")
    assert summary(tmp_path)["accuracy"]["trained"]["mean"] > 0.8
