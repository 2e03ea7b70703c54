"""A round of ours on two ranks, and a round in the way of the field's common library, on the same cores or GPU.

    FASHION_MNIST=DIR CIFAR10=DIR python tests/benchmarks/common_library.py [--quick]

The library's way is one process with a thread for each core (PyTorch's default), which holds a deep copy of the model
for each client. A client reads its samples from its file whenever it needs them, makes a list of
single samples of them and has a DataLoader over that. After each round all clients are evaluated with the new mean, in
batches of 10, on their test samples, with scikit-learn's AUC, and on their training samples. Tensors are in PyTorch's
own memory format.

Where PyTorch sees a GPU, both are on it: ours on one rank, all of the cohort in one step, and the library's models.

Both sides have the same clients, samples, first model, cohorts, options and number of SGD steps, and take turns round
by round. Evaluation of ours, too, is of all clients in every round. sides.py says what the variables are.
"""

import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import torch
import torch.distributed as dist
from ranks import run_ranks
from rows import Row, cannot, main, measured
from sides import PRECISIONS, SETTINGS, Missing, Ours, Seconds, class_sgd, contiguous
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fedbsd_dist.config import Train
from fedbsd_dist.data.shards import Shard, Shards
from fedbsd_dist.evaluation import CORRECT, COUNT, summarize
from fedbsd_dist.wire.world import World

SECONDS = 1000, 400
"""It takes, whole and quick."""

AT_LEAST = {"20 Fashion-MNIST clients": 3.0, "100 CIFAR-10 clients": 6.0}
"""Setting -> the ratio of rounds that is asked for on a CPU."""
AT_LEAST_GPU = 10.0

POINTS = 2.0
"""Percentage points by which accuracies may differ."""


class LibraryClient:
    """One client with a model and files of its own."""

    def __init__(self, model: nn.Module, shard: Shard, place: Path, options: Train) -> None:
        self.model, self.options, self.place = copy.deepcopy(model), options, place
        self.device = next(model.parameters()).device
        self.num_train = len(shard.train_labels)
        place.mkdir()
        for part, images, labels in (
            ("train", shard.train_images, shard.train_labels),
            ("test", shard.test_images, shard.test_labels),
        ):
            torch.save((contiguous(shard, images), labels), place / part)

    def loader(self, part: str, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
        """Over single samples, as just read."""
        images, labels = torch.load(self.place / part)
        samples = list(zip(images, labels, strict=True))
        return DataLoader(samples, self.options.batch_size, shuffle=shuffle)  # type: ignore[arg-type]

    def receive(self, model: nn.Module) -> None:
        """The server's parameters."""
        for mine, new in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.data = new.data.clone()

    def train(self) -> None:
        """Local epochs."""
        self.model.train()
        optimizer = class_sgd(self.model, self.options)
        for _ in range(self.options.local_epochs):
            for images, labels in self.loader("train", shuffle=True):
                images, labels = images.to(self.device), labels.to(self.device)
                loss = F.cross_entropy(self.model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def test(self) -> tuple[int, int, float]:
        """Correct, samples, and AUC over all (sample, class) pairs."""
        from sklearn.metrics import roc_auc_score
        from sklearn.preprocessing import label_binarize

        self.model.eval()
        correct, scores, truth = 0, [], []
        for images, labels in self.loader("test"):
            logits = self.model(images.to(self.device))
            correct += (logits.argmax(1) == labels.to(self.device)).sum().item()
            scores.append(logits.softmax(1).cpu().numpy())
            truth.append(label_binarize(labels.numpy(), classes=range(logits.shape[1])))
        area = roc_auc_score(np.concatenate(truth), np.concatenate(scores), average="micro")
        return correct, sum(map(len, truth)), float(area)

    @torch.no_grad()
    def training_loss(self) -> float:
        """Mean over the training samples."""
        self.model.eval()
        total = 0.0
        for images, labels in self.loader("train"):
            logits = self.model(images.to(self.device))
            total += F.cross_entropy(logits, labels.to(self.device)).item() * len(labels)
        return total / self.num_train


class Library:
    """The server and its clients, in one process."""

    def __init__(self, model: nn.Module, shards: Mapping[int, Shard], folder: Path, options: Train) -> None:
        self.model = model
        self.clients = [
            LibraryClient(model, shards[number], folder / str(number), options) for number in sorted(shards)
        ]

    def round(self, cohort: list[int]) -> tuple[Seconds, np.ndarray]:
        """And [clients, 2]: correct, samples."""
        start, cpu = time.perf_counter(), time.process_time()
        uploads = []
        for client in map(self.clients.__getitem__, cohort):
            client.receive(self.model)
            client.train()
            uploads.append((client.num_train, client.model))
        total = sum(weight for weight, _ in uploads)
        for parameter in self.model.parameters():
            parameter.data.zero_()
        for weight, model in uploads:
            for mean, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
                mean.data += parameter.data * (weight / total)
        learned = time.perf_counter()
        tests = []
        for client in self.clients:
            client.receive(self.model)
            tests.append(client.test()[:2])
            client.training_loss()
        end = time.perf_counter()
        return Seconds(end - start, end - learned, time.process_time() - cpu), np.array(tests, float)


Round = tuple[Seconds, Seconds, dict[str, tuple[float, float]]]
"""Ours, the library's, and by kind of mean the accuracies of both."""


def measure(world: World, rounds: int, folder: str, options: list[str]) -> list[Round]:
    """Empty but on the server."""
    ours = Ours(world, [*options, "evaluate.every=1"], f"{folder}/run")
    federation, library = ours.federation, None
    if world.is_server:
        place = Path(folder, "library")
        place.mkdir()
        samples, partition = ours.plan.samples, ours.plan.partition
        everybody = range(federation.config.data.num_clients)
        shards = Shards(samples, partition, everybody, torch.device("cpu"), most_bytes=0)
        library = Library(ours.network().to(ours.plan.placement.device), shards, place, federation.config.train)
    found: list[Round] = []
    for number in range(1, rounds + 2):
        mine, report = ours.round(number)
        if library:
            torch.set_num_threads(len(os.sched_getaffinity(0)))
            theirs, table = library.round(federation.cohort(number))
            torch.set_num_threads(federation.config.run.threads)
            means = summarize(report.stages["received"][:, [CORRECT, COUNT]]), summarize(table)
            accuracies = {kind: (means[0][kind], means[1][kind]) for kind in ("weighted_mean", "mean")}
            found.append((mine, theirs, accuracies))
        dist.barrier()
    return found[1:]  # the first round warms up


def rows(quick: bool) -> Iterator[Row]:
    """Of each setting: ratios of whole rounds and of their parts, and accuracies."""
    ranks, together = (1, ["train.together=1000"]) if torch.cuda.is_available() else (2, [])
    for (setting, options_of), (how, precision) in product(SETTINGS.items(), PRECISIONS.items()):
        if not find_spec("sklearn"):
            yield cannot(2, setting, "scikit-learn is not installed. Install it: pip install scikit-learn")
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                options = [*options_of(Path(folder)), *together, f"train.precision={precision}"]
                found = run_ranks(ranks, measure, 1 if quick else 5, folder, options)[0]
        except Missing as missing:
            yield cannot(2, setting, str(missing))
            continue
        yield from _ratios(setting + how, AT_LEAST_GPU if torch.cuda.is_available() else AT_LEAST[setting], found)


def _ratios(setting: str, least: float, rounds: list[Round]) -> Iterator[Row]:
    def ratios(part: Callable[[Seconds], float]) -> list[float]:
        return [part(theirs) / part(ours) for ours, theirs, _ in rounds]

    what = f"{setting}: the library"
    yield measured(2, f"{what}, round over ours", ratios(lambda of: of.whole), bound=least, at_most=False)
    yield measured(2, f"{what}, evaluation over ours", ratios(lambda of: of.evaluation))
    yield measured(2, f"{what}, the rest of the round over ours", ratios(lambda of: of.rest))
    yield measured(2, f"{what}, processor time over ours", ratios(lambda of: of.cpu))
    yield measured(
        2, f"{what}, share of evaluation", [100 * theirs.evaluation / theirs.whole for _, theirs, _ in rounds], "%"
    )
    yield measured(2, f"{what}, round", [theirs.whole for _, theirs, _ in rounds], "s")
    yield measured(2, f"{setting}: our round then", [ours.whole for ours, _, _ in rounds], "s")
    for kind, samples in (("weighted_mean", "all test samples"), ("mean", "mean over clients")):
        mine, theirs = rounds[-1][2][kind]
        yield measured(2, f"{setting}: accuracy of ours in the end, {samples}", [100 * mine], "%")
        yield measured(2, f"{what}'s less ours, {samples}", [100 * (theirs - mine)], "points", bound=POINTS)


if __name__ == "__main__":
    main(rows)
