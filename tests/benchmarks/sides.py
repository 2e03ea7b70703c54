"""What the comparisons with other ways have in common: the settings with their data, and our side of a round.

The data is what two variables of the environment name:

    FASHION_MNIST   folder with the four idx files, packed (.gz) or not; Debian's package `dataset-fashion-mnist` has
                    them in usr/share/datasets/fashion-mnist (`dpkg-deb -x` unpacks it without installing)
    CIFAR10         folder or archive of images, [train|test/]CLASS/IMAGE
"""

import gzip
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedbsd_dist.commandline import load
from fedbsd_dist.config import Train
from fedbsd_dist.data.shards import Shard
from fedbsd_dist.federation import Federation, Report
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.models.split import build_model
from fedbsd_dist.plan import make_plan, prepare_data
from fedbsd_dist.record.recorder import open_record
from fedbsd_dist.wire.ledger import Ledger
from fedbsd_dist.wire.world import World

ranks.TIMEOUT = 3600

MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

COMMON = (
    "method.name=fedavg",
    "server.trains=true",
    "data.test_fraction=0.25",
    "train.rounds=100000",
    "train.local_epochs=1",
    "train.batch_size=10",
)
"""The published test samples are pooled with the others, of which each client has a quarter for testing."""


class Missing(Exception):
    """What a benchmark has not; the text ends with what to do."""


def fashion_mnist(folder: Path) -> list[str]:
    """20 clients, Dirichlet(0.1), the 4-layer CNN of 582,026 parameters, everybody in every round."""
    source = _given("FASHION_MNIST", "a folder with its four idx files")
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, md5 in MD5.items():
        path = next((path for path in (source / name, source / f"{name}.gz") if path.is_file()), None)
        if path is None:
            raise Missing(f"{source} has no {name}. Set FASHION_MNIST to the folder that has it.")
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if hashlib.md5(content).hexdigest() != md5:
            raise Missing(f"{path} is not the published file (md5). Fetch it again.")
        (raw / name).write_bytes(content)
    return [
        *COMMON,
        "data.source=fashion_mnist",
        f"data.root={folder}",
        f"data.cache={folder / 'cache'}",
        "data.num_clients=20",
        "train.participation=1.0",
    ]


def cifar10(folder: Path) -> list[str]:
    """100 clients of 2 classes each, the same network, a tenth of the clients in a round."""
    return [
        *COMMON,
        "data.source=folder",
        f"data.root={_given('CIFAR10', 'a folder or archive of its images, [train|test/]CLASS/IMAGE')}",
        "data.partition=pathological",
        "data.num_clients=100",
        "train.participation=0.1",
    ]


SETTINGS: dict[str, Callable[[Path], list[str]]] = {
    "20 Fashion-MNIST clients": fashion_mnist,
    "100 CIFAR-10 clients": cifar10,
}
"""Name -> the options of a setting, with a folder for what they need; raises Missing."""

PRECISIONS = {"": "float32", ", ours in bfloat16": "bfloat16"}
"""What it adds to a setting's name -> train.precision of our side. The others compute in float32 always."""


def _given(variable: str, what: str) -> Path:
    path = os.environ.get(variable, "")
    if not path or not Path(path).exists():
        raise Missing(f"its data is not here. Set the environment variable {variable} to {what}.")
    return Path(path).resolve()


@dataclass(frozen=True)
class Seconds:
    """Of a round."""

    whole: float
    evaluation: float
    cpu: float
    """Processor time of all that take part."""

    @property
    def rest(self) -> float:
        """All but evaluation: local learning, exchange, mean, record."""
        return self.whole - self.evaluation


class Ours:
    """This rank's part in our side."""

    def __init__(self, world: World, options: list[str], run_dir: str) -> None:
        """Every rank calls it."""
        config = load(options, OPTIONS)
        prepare_data(config, world)
        self.plan = plan = make_plan(config, world)
        world.join(plan.placement)
        self._ledger = Ledger()
        channel, shards = plan.open_channel(world, self._ledger), plan.load_shards(world.rank)
        self.federation = Federation(
            config, plan.method, plan.model, channel, shards, plan.partition.train_sizes[: plan.partition.num_clients]
        )
        Path(run_dir).mkdir(exist_ok=True)
        self._recorder = open_record(plan, Path(run_dir), 0, world)
        self._recorder.say = lambda text: None  # type: ignore[method-assign]
        channel.start()

    def round(self, number: int) -> tuple[Seconds, Report]:
        """Every rank calls it; the seconds until the last one is done."""
        dist.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        report = self.federation.round(number)
        self._recorder.round(report, self._ledger.drain())
        dist.barrier()
        end, used = time.perf_counter(), time.process_time() - cpu
        return Seconds(end - start, report.evaluation_seconds, of_all(used)), report

    def network(self) -> nn.Module:
        """Another model with the first parameters of ours, in PyTorch's own memory format, and its layers in the order
        in which they are usually written: rectified, then pooled.
        """
        height, width, channels = self.plan.samples.x.shape[1:]
        config = self.plan.config
        model = build_model(config.model, (channels, height, width), len(self.plan.samples.classes), config.seed)
        for layer in model.backbone.children():
            if isinstance(layer, nn.Sequential) and isinstance(layer[1], nn.MaxPool2d):
                layer[1], layer[2] = layer[2], layer[1]
        return model


def of_all(seconds: float) -> float:
    """The sum over ranks; every rank calls it."""
    total = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item()


def contiguous(shard: Shard, images: Tensor) -> Tensor:
    """Normalized float32 [n, channels, height, width], in PyTorch's own memory format."""
    return shard.normalized(images).contiguous()


def class_sgd(module: nn.Module, train: Train) -> torch.optim.Optimizer:
    """PyTorch's optimizer with the run's options."""
    weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in module.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": train.weight_decay}, {"params": biases}]
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum)
