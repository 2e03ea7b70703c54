"""Operations of several clients and samples at once: the numbers and gradients of a loop over them, in few kernels."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from test_together import Counting
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode

from fedbsd_dist.operations import FewKernels

CLIENTS, SAMPLES = 3, 5


def draw(*shape: int) -> Tensor:
    """Noise, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


LABELS = (torch.arange(CLIENTS * SAMPLES) % 4).view(CLIENTS, SAMPLES)


def convolved(**options: object) -> Callable[..., Tensor]:
    return lambda state, images: torch.conv2d(images, state["weight"], state.get("bias"), **options).tanh().sum()


KERNELS = {"weight": draw(CLIENTS, 6, 2, 3, 2), "bias": draw(CLIENTS, 6)}
IMAGES = draw(CLIENTS, SAMPLES, 2, 9, 8)
ROWS = {"weight": draw(CLIENTS, 4, 7), "bias": draw(CLIENTS, 4)}
WORDS = draw(CLIENTS, SAMPLES, 6, 7)
CASES = {
    "convolution": (convolved(), KERNELS, (IMAGES,)),
    "without bias": (convolved(), {"weight": KERNELS["weight"]}, (IMAGES,)),
    "strided": (convolved(stride=2), KERNELS, (IMAGES,)),
    "dilated, padded": (convolved(dilation=(2, 1), padding=(1, 2)), KERNELS, (IMAGES,)),
    "padded to the same size": (convolved(padding="same"), {"weight": draw(CLIENTS, 6, 2, 3, 3)}, (IMAGES,)),
    "one stride for both": (convolved(stride=(2,)), {"weight": KERNELS["weight"]}, (IMAGES,)),
    "of an image alone": (
        lambda state, images: torch.conv2d(input=images[0], weight=state["weight"]).tanh().sum(),
        {"weight": KERNELS["weight"]},
        (IMAGES,),
    ),
    "twice": (
        lambda state, images: torch.conv2d(torch.conv2d(images, **state, padding=1).tanh(), **state).sum(),
        {"weight": draw(CLIENTS, 2, 2, 3, 3)},
        (IMAGES,),
    ),
    "grouped": (convolved(groups=2), {"weight": draw(CLIENTS, 6, 1, 3, 2)}, (IMAGES,)),
    "many places": (convolved(), {"weight": draw(CLIENTS, 1, 2, 3, 2)}, (IMAGES,)),
    "linear": (lambda state, rows: F.linear(rows, **state).tanh().sum(), ROWS, (draw(CLIENTS, SAMPLES, 7),)),
    "linear, to one output": (
        lambda state, rows: F.linear(input=rows, weight=state["weight"]).tanh().sum(),
        {"weight": draw(CLIENTS, 7)},
        (draw(CLIENTS, SAMPLES, 7),),
    ),
    "attention": (
        lambda state, words: F.scaled_dot_product_attention(words, F.linear(words, **state), words).tanh().sum(),
        {"weight": draw(CLIENTS, 7, 7)},
        (WORDS,),
    ),
    "linear, of words": (
        lambda state, words: F.linear(words, **state).tanh().sum(),
        {"weight": ROWS["weight"]},
        (WORDS,),
    ),
    "linear, of what is the same for all": (
        lambda state, rows: (F.linear(torch.ones_like(state["weight"][:1]), **state) + rows).tanh().sum(),
        ROWS,
        (draw(CLIENTS, SAMPLES, 4),),
    ),
    "cross-entropy": (
        lambda state, rows, labels: F.cross_entropy(F.linear(rows, **state), labels),
        ROWS,
        (draw(CLIENTS, SAMPLES, 7), LABELS),
    ),
    "cross-entropy with options": (
        lambda state, rows, labels: F.cross_entropy(F.linear(rows, **state), labels, label_smoothing=0.1),
        ROWS,
        (draw(CLIENTS, SAMPLES, 7), LABELS),
    ),
    "cross-entropy with distributions": (
        lambda state, rows, wanted: F.cross_entropy(F.linear(rows, **state), wanted),
        ROWS,
        (draw(CLIENTS, SAMPLES, 7), draw(CLIENTS, SAMPLES, 4).softmax(-1)),
    ),
    "cross-entropy of each of many": (
        lambda state, rows, labels: F.cross_entropy(F.linear(rows, **state).repeat(2, 1), labels.repeat(2)),
        ROWS,
        (draw(CLIENTS, SAMPLES, 7), LABELS),
    ),
}
"""(loss of one client's parameters and a batch of one, their values, the samples of each client)"""


def gradients(outputs: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = draw(*outputs.shape).abs()
    return outputs.detach(), *torch.autograd.grad(outputs, inputs, weights)


def inputs(values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    return (
        {name: value.clone().requires_grad_() for name, value in values.items()},
        tuple(rows.clone().requires_grad_(rows.is_floating_point()) for rows in batch),
    )


def differentiable(state: dict[str, Tensor], batch: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor for tensor in (*state.values(), *batch) if tensor.requires_grad]


def stacked(
    mode: TorchFunctionMode,
    loss: Callable[..., Tensor],
    state: dict[str, Tensor],
    rows: tuple[Tensor, ...],
    by_client: int | None = 0,
) -> Tensor:
    """[CLIENTS, SAMPLES] losses of batches of one."""
    with mode:
        losses: Tensor = torch.vmap(
            lambda own, *samples: torch.vmap(lambda *sample: loss(own, *(row[None] for row in sample)))(*samples),
            in_dims=(by_client, *(0 for _ in rows)),
        )(state, *rows)
    return losses


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention, which vmap has no rule for
@pytest.mark.parametrize("common", [False, True], ids=["each its own", "in common"])
@pytest.mark.parametrize("case", CASES)
def test_inside_vmap_numbers_and_gradients_are_those_of_a_loop(case, common):
    loss, values, batch = CASES[case]
    if common:
        values = {name: value[0] for name, value in values.items()}
    state, rows = inputs(values, batch)
    each = [
        [
            loss(state if common else {name: value[client] for name, value in state.items()}, *row)
            for row in zip(*(tensor[client].split(1) for tensor in rows), strict=True)
        ]
        for client in range(CLIENTS)
    ]
    expected = gradients(torch.stack([torch.stack(of_one) for of_one in each]), *differentiable(state, rows))

    state, rows = inputs(values, batch)
    found = stacked(FewKernels(), loss, state, rows, None if common else 0)
    for value, wanted in zip(gradients(found, *differentiable(state, rows)), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["convolution", "linear"])
def test_a_gradient_of_a_gradient_is_refused(case):
    """It would be without what goes through the products."""
    loss, values, batch = CASES[case]
    state, rows = inputs(values, batch)
    losses = stacked(FewKernels(), loss, state, rows)
    (gradient,) = torch.autograd.grad(losses.sum(), [state["weight"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def kernels_of(case: str, mode: TorchFunctionMode) -> Counter[str]:
    """Of the losses [CLIENTS, SAMPLES] and the gradients of all that has one."""
    loss, values, batch = CASES[case]
    state, rows = inputs(values, batch)
    ones = torch.ones(CLIENTS, SAMPLES, dtype=torch.float64)
    with Counting() as counting:
        losses = stacked(mode, loss, state, rows)
        torch.autograd.grad(losses, differentiable(state, rows), ones)
    # those that a GPU has to start something for
    return Counter({name: n for name, n in counting.seen.items() if "empty" not in name and "view" not in name})


def test_a_convolution_is_products():
    """Grouped, it would be done one group after the other."""
    kernels = kernels_of("convolution", FewKernels())
    assert not [name for name in kernels if "convolution" in name]
    assert kernels.total() <= 13, kernels


@pytest.mark.parametrize(("case", "most"), [("linear", 8), ("cross-entropy", 12)])
def test_they_take_few_kernels(case, most):
    few, many = (kernels_of(case, mode) for mode in (FewKernels(), BaseTorchFunctionMode()))
    assert few.total() <= most, few
    assert few.total() < many.total()


def test_gradients_of_a_layer_lie_in_memory_as_its_weights():
    """As a fused step needs them: theirs is the largest there is to copy."""
    loss, values, batch = CASES["linear"]
    state, rows = inputs(values, batch)
    (gradient,) = torch.autograd.grad(stacked(FewKernels(), loss, state, rows).sum(), [state["weight"]])
    assert gradient.stride() == state["weight"].stride()
