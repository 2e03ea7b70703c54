"""Every option of a run, a class a section.

A field's docstring is its help text (`--help` prints them all), with its unit and source.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from fedbsd_dist import dialect


class Section(BaseModel):
    """A group of options. Values are checked strictly: no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Run(Section):
    """Where the run lives and what it runs on."""

    dir: str = "auto"
    """Run directory; `auto`: runs/METHOD-SOURCE-sSEED-DATE-TIME."""
    overwrite: bool = False
    """Delete the run that `run.dir` already holds, finished or not, and start again."""
    resume: Literal["never", "auto"] = "never"
    """`auto`: go on from the newest checkpoint in `run.dir` that verifies, or start if there is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPUs where there are any, else the CPU."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads a rank. Results are bit-equal for the same value, on any number of ranks."""


class Server(Section):
    """Rank 0."""

    trains: bool = False
    """Rank 0 hosts clients too. A run of one process always does."""


class Data(Section):
    """Which samples there are, and which client owns which."""

    source: Literal["digits"] = "digits"
    """`digits`: UCI optdigits and a subset of MNIST at 16x16, inside the package."""
    partition: Literal["dirichlet", "iid", "domain"] = "dirichlet"
    """`dirichlet`: label skew; `domain`: a client's samples are of one domain; `iid`: no skew."""
    alpha: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Concentration of the Dirichlet label skew: the smaller, the fewer classes a client holds."""
    num_clients: int = Field(20, ge=1)
    """Number of clients."""
    min_samples: int = Field(10, ge=1)
    """Training samples that every client has at least."""


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
    of their backbone or head cross; `local`: they stay with each client."""


class MethodOptions(Section):
    """The algorithm; which options there are depends on `method.name`."""

    name: str
    """The algorithm."""


class Train(Section):
    """The rounds, and a client's local learning in each."""

    rounds: int = Field(40, ge=1)
    """Communication rounds."""
    local_epochs: int = Field(2, ge=1)
    """Passes of a client over its own samples in a round."""
    batch_size: int = Field(10, ge=1)
    """Samples a step; an epoch's last batch may be smaller, or with batch norm larger by one."""
    lr: float = Field(0.02, gt=0, allow_inf_nan=False)
    """SGD's learning rate."""
    momentum: float = Field(0.5, ge=0, lt=1)
    """SGD's momentum, from zero at the start of every local training (FedRep's protocol: 0.5)."""
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    """L2 penalty on weights (tensors of two or more dimensions), not on biases."""
    participation: float = Field(0.2, gt=0, le=1)
    """Fraction of the clients drawn for a round's cohort, at least one client."""


class Evaluate(Section):
    """When all clients are tested. After the last round they always are, at every stage."""

    every: int = Field(5, ge=0)
    """Rounds from one evaluation to the next; 0: at the end only."""
    head_epochs: int = Field(10, ge=0)
    """Epochs of the head alone before stage `head_tuned`, equal for every method."""


class Checkpoint(Section):
    """What a killed run goes on from (`run.resume=auto`)."""

    every: int = Field(10, ge=0)
    """Rounds from one checkpoint to the next; 0: none."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""


class Wire(Section):
    """How shared tensors cross between ranks."""

    sum: Literal["float32", "exact"] = "float32"
    """`exact`: 64-bit integer sums, the same bits on any number of ranks, at twice the payload."""
    codec: Literal["none"] = "none"
    """How an upload is represented on the wire."""
    timeout: float = Field(1800.0, gt=0, allow_inf_nan=False)
    """Seconds a rank waits for the others before the run is given up."""


class RunConfig(Section):
    """All options of a run."""

    seed: int = Field(0, ge=0)
    """Every random draw of the run derives from it."""
    run: Run = Run()
    server: Server = Server()
    data: Data = Data()
    model: Model = Model()
    method: SerializeAsAny[MethodOptions]
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    wire: Wire = Wire()

    def to_yaml(self) -> str:
        """The resolved configuration, which `load` reads back to the same."""
        return dialect.write(self.model_dump())
