"""A round of ours on two ranks, and one of two plain processes: the best of the distributed kind.

    FASHION_MNIST=DIR CIFAR10=DIR python tests/benchmarks/plain_ranks.py [--quick]

A plain process goes through its clients of the cohort with one model that all of them use in turn, over normalized
tensors in memory in PyTorch's own memory format, with torch.optim.SGD, and the means of all processes come of one flat
all-reduce. In every second round all clients are evaluated with the new mean on their test samples, in batches of 256,
and so are the cohort's own models when they have learned: both stages that ours reports. It has the very clients of our
rank; both sides take turns round by round, and do the same number of SGD steps on the same samples.
sides.py says what the variables are.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
import torch.distributed as dist
from ranks import run_ranks
from rows import Row, cannot, main, measured
from sides import PRECISIONS, SETTINGS, Missing, Ours, class_sgd, contiguous, of_all
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedbsd_dist.config import Train
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.wire.world import World

SECONDS = 800, 300
"""It takes, whole and quick."""

AT_LEAST = {False: 1.25, True: 1.5}
"""Whether all clients are evaluated -> the ratio of rounds that is asked for."""

TEST_BATCH = 256


class Plain:
    """One of the processes, and its clients."""

    def __init__(self, module: nn.Module, shards: dict[int, Shard], options: Train) -> None:
        self.module, self.options = module, options
        self.train = {c: (contiguous(s, s.train_images), s.train_labels) for c, s in shards.items()}
        self.test = {c: (contiguous(s, s.test_images), s.test_labels) for c, s in shards.items()}
        self.mean = parameters_to_vector(module.parameters()).detach().clone()
        """float32 [parameters], as received"""

    def round(self, cohort: list[int], evaluate: bool) -> Tensor:
        """[2, 2]: of the cohort's own models, and of the mean for all clients: correct, test samples."""
        total, counts = torch.zeros(len(self.mean) + 1), torch.zeros(2, 2)
        for client in filter(self.train.__contains__, cohort):
            vector_to_parameters(self.mean.clone(), self.module.parameters())
            self.learn(*self.train[client])
            weight = len(self.train[client][1])
            total[:-1] += weight * parameters_to_vector(self.module.parameters()).detach()
            total[-1] += weight
            if evaluate:
                counts[0] += self.tested(client)
        dist.all_reduce(total)
        self.mean = total[:-1] / total[-1]
        if evaluate:
            vector_to_parameters(self.mean.clone(), self.module.parameters())
            for client in self.test:
                counts[1] += self.tested(client)
            dist.all_reduce(counts)
        return counts

    @torch.no_grad()
    def tested(self, client: int) -> Tensor:
        """[2] correct, test samples."""
        self.module.eval()
        images, labels = self.test[client]
        batches = zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)
        correct = sum((self.module(x).argmax(1) == y).sum() for x, y in batches)
        return torch.tensor([correct, len(labels)])

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """Of one client."""
        self.module.train()
        optimizer = class_sgd(self.module, self.options)
        for _ in range(self.options.local_epochs):
            for index in torch.randperm(len(labels)).split(self.options.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(self.module(images[index]), labels[index])
                loss.backward()
                optimizer.step()


def measure(world: World, rounds: int, folder: str, options: list[str]) -> list[tuple[bool, float, float]]:
    """(all clients evaluated, the plain processes' time over ours, their processor time over ours), round by round."""
    ours = Ours(world, [*options, "evaluate.every=2"], f"{folder}/run")
    plain = Plain(ours.network(), dict(ours.federation.shards), ours.federation.config.train)
    ratios = []
    for number in range(1, 2 * rounds + 3):
        evaluated = number % 2 == 0
        mine, report = ours.round(number)
        start, cpu = time.perf_counter(), time.process_time()
        plain.round(report.cohort, evaluated)
        dist.barrier()
        whole, used = time.perf_counter() - start, of_all(time.process_time() - cpu)
        ratios.append((evaluated, whole / mine.whole, used / mine.cpu))
    return ratios[2:]  # the first round of each kind warms up


def rows(quick: bool) -> Iterator[Row]:
    """Of each setting, without and with evaluation."""
    for (setting, options_of), (how, precision) in product(SETTINGS.items(), PRECISIONS.items()):
        name = setting + how
        try:
            with tempfile.TemporaryDirectory() as folder:
                options = [*options_of(Path(folder)), f"train.precision={precision}"]
                found = run_ranks(2, measure, 2 if quick else 5, folder, options)[0]
        except Missing as missing:
            yield cannot(2, f"{name}: plain processes", str(missing))
            continue
        for evaluated, how in ((False, "without evaluation"), (True, "all clients evaluated")):
            of_kind = [(whole, cpu) for all_tested, whole, cpu in found if all_tested == evaluated]
            wholes, cpus = zip(*of_kind, strict=True)
            what = f"{name}: 2 plain processes, {how}"
            yield measured(2, f"{what}, round over ours", wholes, bound=AT_LEAST[evaluated], at_most=False)
            yield measured(2, f"{what}, processor time over ours", cpus)


if __name__ == "__main__":
    main(rows)
