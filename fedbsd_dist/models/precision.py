"""Learning in bfloat16, wherever a method calls the model."""

from typing import Any

import torch
from torch import Tensor, nn

from fedbsd_dist.models.split import SplitModel

CONTEXT = "autocast"
"""Attribute of a part while its forward pass is on."""


def learn_in_bfloat16(model: SplitModel, device: torch.device) -> None:
    """Have both parts of the model compute by autocast in training mode, and give float32 always: losses are not to be
    computed in less, and tests are not in training mode.
    """

    def begin(part: nn.Module, _inputs: Any) -> None:
        context = torch.autocast(device.type, torch.bfloat16, enabled=part.training)
        context.__enter__()
        setattr(part, CONTEXT, context)

    def end(part: nn.Module, _inputs: Any, outputs: Tensor | None) -> Tensor | None:
        part.__dict__.pop(CONTEXT).__exit__(None, None, None)
        return outputs if outputs is None else outputs.float()

    for part in (model.backbone, model.head):
        part.register_forward_pre_hook(begin)
        part.register_forward_hook(end, always_call=True)  # also where it raises: then there are no outputs
