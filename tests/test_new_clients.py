"""Held-out clients: never drawn, nothing learned from them, and tested at the end with a head of their own."""

import csv
import json
from pathlib import Path

import pytest
import torch
from ranks import federate
from test_interface import SHORT
from torch.nn import functional as F

from fedbsd_dist.commandline import load
from fedbsd_dist.data import sources
from fedbsd_dist.data.partition import make_partition
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model
from fedbsd_dist.randomness import generator

NEW = (*SHORT, "data.num_new_clients=3", "train.participation=1.0", "wire.sum=exact", "checkpoint.every=1")
HEAD_EPOCHS = 2


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "clients.csv").read_text().splitlines()))


@pytest.mark.parametrize("method", ["fedbsd", "fedavg"])
def test_new_clients_tune_a_head_on_the_last_shared_state_and_change_nothing(method: str, tmp_path: Path) -> None:
    options = (*NEW, f"method.name={method}", f"evaluate.head_epochs={HEAD_EPOCHS}")
    for size in (1, 3):
        federate(tmp_path / f"{size}", size, *options)
    facts = [json.loads((tmp_path / f"{size}/summary.json").read_text()) for size in (1, 3)]
    assert facts[0]["state_sha256"] == facts[1]["state_sha256"]
    assert facts[0]["accuracy"] == facts[1]["accuracy"]
    assert facts[0]["num_clients"] == 4

    tested = rows(tmp_path / "1")
    assert {(row["stage"], int(row["client"]) >= 4) for row in tested} == {
        ("received", False),
        ("trained", False),
        ("head_tuned", False),
        ("new_client", True),
    }
    correct = expected_correct(load(options, OPTIONS), tmp_path / "1/checkpoints/round-000002/shared.pt")
    new = [row for row in tested if row["stage"] == "new_client"]
    assert [int(row["client"]) for row in new] == [4, 5, 6]
    assert [round(float(row["accuracy"]) * int(row["num_test"])) for row in new] == correct


def expected_correct(config, path: Path) -> list[int]:
    """Of each new client: the last shared state, and a head that learned by a plain loop from where all heads began."""
    samples = sources.load(config.data)
    partition = make_partition(samples, config.data, config.seed)
    x = torch.from_numpy(samples.x[partition.learned_from]).float() / 255
    images = ((torch.from_numpy(samples.x).float() / 255 - x.mean()) / x.std(correction=0)).permute(0, 3, 1, 2)
    labels, correct = torch.from_numpy(samples.y), []
    for client in (4, 5, 6):
        flat = FlatModel(build_model(config.model, (1, 16, 16), 10, config.seed), torch.device("cpu"))
        for group, buffer in torch.load(path, weights_only=True).items():
            flat.buffers[group].copy_(buffer)
        model, train = flat.module, partition.train[client]
        weight, bias = model.head[0].weight, model.head[0].bias
        groups = [{"params": [weight], "weight_decay": config.train.weight_decay}, {"params": [bias]}]
        optimizer = torch.optim.SGD(groups, lr=config.train.lr, momentum=config.train.momentum, weight_decay=0)
        order = generator(config.seed, "head tuning", config.train.rounds + 1, client)
        for _ in range(HEAD_EPOCHS):
            for batch in torch.from_numpy(train[order.permutation(len(train))]).split(config.train.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        test = torch.from_numpy(partition.test[client])
        with torch.no_grad():
            correct.append(int((model(images[test]).argmax(1) == labels[test]).sum()))
    return correct


def test_a_run_without_them_knows_no_such_stage(tmp_path: Path) -> None:
    federate(tmp_path / "run", 1, *SHORT)
    assert "new_client" not in json.loads((tmp_path / "run/summary.json").read_text())["accuracy"]
