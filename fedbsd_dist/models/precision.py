"""Learning in bfloat16, wherever a method calls the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedbsd_dist.models.split import SplitModel

CONTEXT = "autocast"
"""Attribute of a module while its forward pass is on."""
_LISTENING = ContextVar("listening", default=False)


@contextmanager
def as_in_learning() -> Iterator[None]:
    """What a model says inside is for learning from, though it is in evaluation mode: a teacher computes as its student
    does, so that the two differ in nothing before the student's first step.
    """
    token = _LISTENING.set(True)
    try:
        yield
    finally:
        _LISTENING.reset(token)


def learn_in_bfloat16(model: SplitModel, device: torch.device) -> None:
    """Have both parts of the model compute by autocast in training mode and where it says `as_in_learning`, and give
    float32 always: losses are not to be computed in less, and tests are neither.

    On a CPU linear layers stay float32: at the batches of this field, to round their weights costs more than it saves
    (a step of `mlp` at batch 50 took 1.3 times as long, one of `cnn` at batch 10 1.1 times).
    """
    low = dict.fromkeys((model.backbone, model.head), True)
    if device.type == "cpu":
        low |= dict.fromkeys((layer for layer in model.modules() if isinstance(layer, nn.Linear)), False)

    def begin(low: bool, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        learning = module.training or _LISTENING.get()
        context = torch.autocast(device.type, torch.bfloat16, enabled=low and learning)
        context.__enter__()
        setattr(module, CONTEXT, context)
        return inputs if low else tuple(value.float() for value in inputs)

    def end(module: nn.Module, _inputs: Any, outputs: Tensor | None) -> Tensor | None:
        module.__dict__.pop(CONTEXT).__exit__(None, None, None)
        return outputs if outputs is None else outputs.float()

    for module, whether in low.items():  # bound, for methods copy modules with their hooks
        module.register_forward_pre_hook(partial(begin, whether))
        module.register_forward_hook(end, always_call=True)  # also where it raises: then there are no outputs
