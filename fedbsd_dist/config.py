"""Every option of a run, a class a section.

A field's docstring is its help text (`--help` prints them all), with its unit and source.
"""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, field_validator

from fedbsd_dist import dialect


class Section(BaseModel):
    """A group of options. Values are checked strictly: no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


Folder = Annotated[str, AfterValidator(os.path.expanduser)]
"""The user's own, ~, may begin it."""


class Run(Section):
    """Where the run lives and what it runs on."""

    dir: Folder = "auto"
    """Run directory; `auto`: runs/METHOD-SOURCE-sSEED-DATE-TIME."""
    overwrite: bool = False
    """Delete the run that `run.dir` already holds, finished or not, and start again."""
    resume: Literal["never", "auto"] = "never"
    """`auto`: go on from the newest checkpoint in `run.dir` that verifies, or start if there is none."""
    rehost: bool = False
    """Resume on another number of ranks: clients' private state then moves to other ranks through `run.dir`. With
    `wire.sum=exact` the numbers are the same."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPUs where there are any, else the CPU."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads a rank. For the same value and with `wire.sum=exact`, any number of ranks gives the same bits."""


class Server(Section):
    """Rank 0."""

    trains: bool = False
    """Rank 0 hosts clients too. A run of one process always does."""


class Client(Section):
    """What clients have of their own."""

    store: Literal["device", "host", "mmap"] = "device"
    """Where private state lies between a client's turns: on the rank's device, in the host's memory, or in a mapped
    file in `run.dir`, for more clients than memory has room for. A client that never learned takes no room."""


class Data(Section):
    """Which samples there are, and which client owns which."""

    source: Literal[
        "digits",
        "mnist",
        "fashion_mnist",
        "emnist",
        "cifar10",
        "cifar100",
        "svhn",
        "usps",
        "femnist",
        "domains",
        "folder",
        "npz",
        "python",
    ] = "digits"
    """`digits`: UCI optdigits and a subset of MNIST at 16x16, inside the package. `mnist` to `usps`: torchvision's,
    under `data.root`. `femnist`: LEAF's JSON files, one writer a client. `domains`: a folder, a pair of lists
    (DomainNet's) or an array file for each domain. `folder`: ROOT/[train|test/]CLASS/IMAGE. `npz`: an array file.
    `python`: what `data.factory` returns."""
    root: str = ""
    """Folder or file of the source; `folder` and `domains` also take a .tar or .zip archive."""
    download: bool = False
    """Fetch what torchvision can fetch, if it is not under `data.root`."""
    factory: str = ""
    """`package.module:function` returning arrays of your own, named as in an array file of `npz`."""
    classes: list[str] = []
    """Names of the classes to keep, in this order; none: all."""
    image_size: int = Field(0, ge=0, le=4096)
    """Resize all images to so many pixels a side; 0: as they are, and they must be of one size."""
    channels: Literal[0, 1, 3] = 0
    """Convert images to grey (1) or colour (3); 0: as they are, and they must be alike."""
    cache: str = "auto"
    """Folder of the decoded samples, which ranks map into memory; `auto`: $XDG_CACHE_HOME or ~/.cache."""
    device_memory: float = Field(4.0, ge=0, allow_inf_nan=False)
    """GB of samples that a rank holds on its device; those beyond are read from the cache at each client's turn."""
    partition: Literal["dirichlet", "iid", "pathological", "domain", "label_domain", "natural"] = "dirichlet"
    """`dirichlet`: label skew; `pathological`: a few classes a client (FedRep's); `iid`: no skew. `domain`: a
    client's samples are of one domain; `label_domain`: the same, with label skew. `natural`: the source's own
    clients, such as FEMNIST's writers."""
    alpha: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Concentration of the Dirichlet label skew: the smaller, the fewer classes a client holds."""
    classes_per_client: int = Field(2, ge=1, le=10**6)
    """Of `pathological`."""
    size_alpha: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Concentration of a Dirichlet skew of the clients' sizes: the smaller, the more uneven; 0: none."""
    num_clients: int = Field(20, ge=0, le=10**7)
    """Number of clients that train; 0 with `natural`: all there are."""
    num_new_clients: int = Field(0, ge=0, le=10**7)
    """Further clients that never train: the last in order, tested at the end at stage `new_client`."""
    min_samples: int = Field(10, ge=1, le=10**9)
    """Training samples that every client has at least."""
    test_fraction: float = Field(0.0, ge=0, le=0.9)
    """Fraction of each client's samples that become its test set, the source's own test samples pooled with
    the others; 0: the source's own test samples, dealt like the training samples."""
    val_fraction: float = Field(0.0, ge=0, le=0.9)
    """Fraction of the training samples of each client that trains, held out for validation, class by class and at
    least one; nothing is learned from them, image normalization included; 0: none."""
    manifest: str = ""
    """A partition.json of an earlier run, to have the same clients again; it replaces the partition's options."""

    @field_validator("classes", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: object) -> object:
        return [str(name) if type(name) is int else name for name in value] if isinstance(value, list) else value


class Augment(Section):
    """Random changes of training images, drawn anew in every epoch, made on the device for many at once."""

    crop: int = Field(0, ge=0, le=256)
    """Pixels of black border from which an image of the old size is cut out at random (CIFAR: 4)."""
    flip: bool = False
    """Mirror left and right, every second image."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Largest angle in degrees to either side."""


class Model(Section):
    """The network that every client trains, and where its head begins."""

    name: str = "cnn"
    """`cnn`: 4 layers, for 16x16 to 28x28; `fedrep_cnn`, `fedrep_cnn_cifar100`, `mlp`: FedRep's for CIFAR-10,
    CIFAR-100 and FEMNIST; `digits_cnn_bn`, `alexnet_bn`: FedBN's for digits and for 256x256; `resnet18`,
    `resnet18_gn`: with batch or group norm, for any size; or any classification model of torchvision's by its
    name there (`mobilenet_v2`, `densenet121`, ...), untrained, for images of 3 channels."""
    factory: str = ""
    """`package.module:function` making a model of your own, instead of `model.name`: (channels, height, width)
    and the number of classes -> any nn.Module from images to logits."""
    head_layers: int = Field(1, ge=1)
    """The head is the last n layers of an nn.Sequential; the layers before it are the backbone."""
    head_from: str = ""
    """Or it begins at the layer of this name; of a model that is no nn.Sequential it is the submodule of this dotted
    name, which must be what the model ends with. Of such a model it is the last nn.Linear if not named."""
    norm_stats: Literal["shared", "local"] = "shared"
    """Running statistics of normalisation layers: `shared`: they cross wherever the method lets the parameters
    of their backbone or head cross; `local`: they stay with each client, and one that never trained has none yet (a
    new client takes them from its own training images)."""

    @field_validator("head_from", mode="before")
    @classmethod
    def _number_is_name(cls, value: object) -> object:
        """Layers of an nn.Sequential are called 0, 1, ... unless they are named."""
        return str(value) if type(value) is int else value


class MethodOptions(Section):
    """The algorithm; which options there are depends on `method.name`."""

    name: str
    """The algorithm."""
    factory: str = ""
    """`package.module:Class`, a method of your own, in place of those that `name` knows."""
    mean: Literal["samples", "plain"] = "samples"
    """Weight of a client in the mean of what crosses: its training samples, or 1."""


class Train(Section):
    """The rounds, and a client's local learning in each."""

    rounds: int = Field(40, ge=1)
    """Communication rounds."""
    local_epochs: int = Field(2, ge=1)
    """Passes of a client over its own samples in a round."""
    batch_size: int = Field(10, ge=1, le=10**9)
    """Samples a step; an epoch's last batch may be smaller, or with batch norm larger by one."""
    lr: float = Field(0.02, gt=0, allow_inf_nan=False)
    """SGD's learning rate."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """SGD's momentum, from zero at the start of every local training (FedRep's protocol: 0.5)."""
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    """L2 penalty on weights (tensors of two or more dimensions), not on biases."""
    participation: float = Field(0.2, gt=0, le=1)
    """Fraction of the clients drawn for a round's cohort, at least one client."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of local learning: `bfloat16` has convolutions, on a GPU linear layers too, computed in it (autocast), those of
    teachers and frozen backbones as well, and is faster where the hardware has it: GPUs, and CPUs with AMX. State,
    losses, sums and tests stay float32."""
    cuda_graphs: bool = True
    """On a GPU, steps are captured and replayed, one launch each. It needs models and methods whose step is nothing but
    operations on tensors; false: where your own one does other things in it, or waits for the GPU."""
    together: int = Field(1, ge=1, le=10**4)
    """Clients of its part of the cohort that a rank trains in one step, their states stacked: for small models on a
    GPU, which wait for launches; a CPU is slower with it. Equal to one at a time but for rounding, which also depends
    on who learns beside whom, hence on the number of ranks. For the methods that learn by plain SGD or distillation
    and for models whose samples do not depend on each other (no batch norm, no dropout); others are refused."""


class Fault(Section):
    """Clients that fail: those that diverge, and a simulation of those that are not there or not in time."""

    max_diverged_rounds: int = Field(3, ge=1)
    """Number of rounds in which some client's learning diverges, in the last of which the run is given up. Before that
    such a client is left out: its upload does not count, and it keeps the private state that it had."""
    dropout: float = Field(0.0, ge=0, le=1)
    """Probability that a client of the cohort is unavailable in a round: it neither receives nor trains."""
    slow: float = Field(0.0, ge=0, le=1)
    """Probability that a client of the cohort is slow in a round."""
    slowdown: float = Field(4.0, ge=1, allow_inf_nan=False)
    """Times that a slow client takes longer."""
    deadline: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Time that the server gives the cohort for local training, in multiples of what a client with the mean number of
    training samples takes, who is not slow. Who is later has received, and nothing of its work in the round is kept;
    0: all are waited for."""


class Evaluate(Section):
    """When all clients are tested. After the last round they always are, at every stage."""

    every: int = Field(5, ge=0)
    """Rounds from one evaluation to the next; 0: at the end only."""
    last_rounds: int = Field(10, ge=1)
    """Rounds at the end of the run over whose evaluations the accuracy at `received` is averaged as well."""
    head_epochs: int = Field(10, ge=0)
    """Epochs of the head alone before stage `head_tuned`, equal for every method."""


class Checkpoint(Section):
    """What a killed run goes on from (`run.resume=auto`), and what is done with a finished one."""

    every: int = Field(10, ge=0)
    """Rounds from one checkpoint to the next, and after the last one; 0: none, but when asked to stop (TERM, USR2)."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""


class Wire(Section):
    """How shared tensors cross between ranks."""

    sum: Literal["float32", "exact"] = "float32"
    """`exact`: 64-bit integer sums, the same bits on any number of ranks, at twice the payload."""
    codec: Literal["none", "bf16", "int8", "topk"] = "none"
    """How a client's update of the model's parameters is represented where it crosses: as float32; rounded to bfloat16;
    as 8-bit integers rounded at random, with a scale for 256 of them; or the largest ones alone, the rest being added
    to the client's next update. Running statistics and what a method sends beside the model cross as they are, and so
    does all that clients receive. With `sum=float32` ranks exchange sums in that form, too."""
    topk: float = Field(0.01, gt=0, le=1)
    """Fraction of the parameters that an update has with `topk`, at 8 bytes each."""
    timeout: float = Field(1800.0, gt=0, allow_inf_nan=False)
    """Seconds the others wait for a rank that lives but does not come, before the run is given up."""
    silence: float = Field(60.0, ge=5, allow_inf_nan=False)
    """Seconds after which a rank that gives no sign of life (killed, stopped, its host gone) is given up, and with it
    the run."""


class Profile(Section):
    """Where time and bytes go. No number of a run depends on it."""

    trace: bool = False
    """Write a Chrome/Perfetto trace of every rank, for each of `profile.rounds`, below the run directory. Such a round
    takes longer than others."""
    rounds: list[Annotated[int, Field(ge=1)]] = Field([2], min_length=1)
    """Rounds of which a trace is taken, from 1; in the first one things happen that happen once."""
    counters: bool = False
    """Write down in every round what the kernel counted at the network interfaces of every host, and how much of each
    rank's communication was hidden behind work. All ranks meet twice more a round for it."""
    comm: bool = False
    """Profile the communication: do this run and FedAvg's, with all else the same, each in a folder of its own below
    `run.dir`, and compare them there in communication.md, .json and .svg. Lists make it several methods or seeds."""
    target: float = Field(0.0, ge=0, le=1)
    """Accuracy at `received` to which `profile.comm` counts rounds, bytes and seconds; 0: 95 % of FedAvg's last."""


class Sweep(Section):
    """Several runs in one launch: an option that is given a list makes one of each value, several their product."""

    dir: Folder = "auto"
    """Folder of the runs, one subfolder each, of which finished ones are skipped; `auto`: runs/sweep-DATE-TIME."""
    slice: str = Field("0/1", pattern=r"^[0-9]+/[1-9][0-9]*$")
    """I/N: do only the runs I, I + N, I + 2N, ..., counted from 0: a part for each of N launches."""


class RunConfig(Section):
    """All options of a run."""

    seed: int = Field(0, ge=0)
    """Every random draw of the run derives from it."""
    run: Run = Run()
    server: Server = Server()
    client: Client = Client()
    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    method: SerializeAsAny[MethodOptions]
    train: Train = Train()
    fault: Fault = Fault()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    wire: Wire = Wire()
    profile: Profile = Profile()
    sweep: Sweep = Sweep()

    def to_yaml(self) -> str:
        """The resolved configuration, which `load` reads back to the same."""
        return dialect.write(self.model_dump())
