"""SGD by the fused kernel is torch.optim.SGD, wherever and however a parameter lies in memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedbsd_dist.config import Model, Train
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model
from fedbsd_dist.optimizer import SGD

SHAPE = (3, 16, 16)


OPTIONS = [
    {"momentum": 0.5, "weight_decay": 1e-4, "lr": 0.01},
    {"momentum": 0.0, "weight_decay": 0.0, "lr": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "lr": 0.05},
    {"momentum": 0.0, "weight_decay": 0.1, "lr": 0.05},
]


def reference(parameters: list[nn.Parameter], options: Train) -> torch.optim.SGD:
    """As its documentation says: one loop over tensors, no fused kernel."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, foreach=False, fused=False)


def descend(
    parameters: list[nn.Parameter], copies: list[nn.Parameter], options: Train, loss: Callable[[list, int], Tensor]
) -> None:
    """20 steps of both; the two must agree after each, from gradients taken at the same point."""
    ours, theirs = SGD(parameters, options), reference(copies, options)
    for step in range(20):
        ours.step(loss(parameters, step))
        theirs.zero_grad()
        loss(copies, step).backward()
        theirs.step()
        for parameter, copy in zip(parameters, copies, strict=True):
            torch.testing.assert_close(parameter, copy, rtol=0, atol=1e-7)


def small_cnn(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(shape[0], 6, 5, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(8 * 4 * 4, num_classes),
    )


def models() -> tuple[nn.Module, nn.Module]:
    """Twice the same network, its convolution weights channels_last inside one buffer a group."""
    config = Model(factory=f"{__name__}:small_cnn")
    one, other = (FlatModel(build_model(config, SHAPE, 5, 0), torch.device("cpu")).module for _ in range(2))
    assert not one.backbone[0][0].weight.is_contiguous()
    return one, other


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_20_steps_on_a_cnn_in_flat_storage(options, layout):
    one, other = models()
    torch.manual_seed(0)
    images = torch.randn(20, 6, *SHAPE)
    labels = torch.randint(5, (20, 6))

    def loss(parameters: list[nn.Parameter], step: int) -> Tensor:
        model = one if parameters[0] is next(one.parameters()) else other
        return F.cross_entropy(model(images[step].contiguous(memory_format=layout)), labels[step])

    descend(list(one.parameters()), list(other.parameters()), Train(**options), loss)
    assert not torch.equal(one.head[0].weight, models()[0].head[0].weight)


def lying(memory: str) -> nn.Parameter:
    """[4, 3, 2, 2] in the named order of memory."""
    values = torch.arange(48.0).reshape(4, 3, 2, 2) / 48
    if memory == "channels_last":
        return nn.Parameter(values.contiguous(memory_format=torch.channels_last))
    if memory == "transposed":
        return nn.Parameter(values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))
    return nn.Parameter(values)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "transposed"])
def test_gradients_that_lie_in_memory_otherwise_than_their_parameter(options, memory):
    parameter, bias = lying(memory), nn.Parameter(torch.ones(3))
    copies = [nn.Parameter(parameter.detach().contiguous()), nn.Parameter(torch.ones(3))]
    factors = torch.randn(20, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def loss(parameters: list[nn.Parameter], step: int) -> Tensor:
        weight, bias = parameters
        return Factor.apply(weight, factors[step]) + (bias**2).sum()

    (gradient,) = torch.autograd.grad(loss([parameter, bias], 0), [parameter])
    assert (gradient.stride() == parameter.stride()) == (memory == "contiguous")
    descend([parameter, bias], copies, Train(**options), loss)


class Factor(torch.autograd.Function):
    """(weight * factor).sum(), whose gradient is `factor` itself, in the memory order of `factor`."""

    @staticmethod
    def forward(ctx, weight: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return (weight * factor).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * gradient, None


def test_weight_decay_is_on_weights_alone():
    weight, bias, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 1))
    optimizer = SGD([bias, weight, unused], Train(lr=0.1, momentum=0.0, weight_decay=0.5))
    optimizer.step((weight * 0).sum() + (bias * 0).sum())
    assert (bias == 1).all()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.95))
    # a parameter that the loss does not depend on has gradient zero
    torch.testing.assert_close(unused.detach(), torch.full((2, 1), 0.95))


def test_one_parameter_alone_of_either_kind():
    for parameter in (nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 1))):
        SGD([parameter], Train(lr=0.5, momentum=0.0, weight_decay=0.0)).step(parameter.sum())
        assert (parameter == 0.5).all()


def test_momentum_starts_from_zero_for_every_optimizer():
    parameter = nn.Parameter(torch.zeros(1))
    values = []
    for _ in range(2):
        optimizer = SGD([parameter], Train(lr=1.0, momentum=0.5, weight_decay=0.0))
        for _ in range(3):
            optimizer.step(parameter.sum())
            values.append(-parameter.item())
    assert values == [1, 2.5, 4.25, 5.25, 6.75, 8.5]  # v = v / 2 + 1
