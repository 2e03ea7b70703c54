"""Where the head begins: a network cut into its backbone and its head."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fedbsd_dist.config import Model
from fedbsd_dist.errors import UserError, did_you_mean

Cut = tuple[nn.Module, nn.Module, str]
"""Backbone, head, and the dotted name that the head had in the network; empty where it is the end of an nn.Sequential,
whose layers keep their names."""


def cut(network: nn.Module, options: Model, name: str, images: Tensor, logits: Tensor) -> Cut:
    """`network` in two, of which they are made: it is not to be used any more.

    An nn.Sequential is cut between two of its layers. Of any other module the head is a submodule, in
    whose place the backbone has nn.Identity. Raises UserError where `options` name no layer or submodule,
    where backbone or head would be empty, and where head(backbone(images)) is not network(images), which
    are `logits`, in evaluation mode.
    """
    if options.head_from and options.head_layers > 1:
        raise UserError(
            f"model.head_layers={options.head_layers} and model.head_from={options.head_from}: both say where "
            "the head begins. Leave one out."
        )
    if isinstance(network, nn.Sequential):
        (backbone, head, place), said = _cut_sequence(network, options, name)
    else:
        (backbone, head, place), said = _cut_module(network, options, name)
    if not list(head.parameters()):
        raise UserError(f"{said}: this head has no parameters to learn. Begin it earlier.")
    if not _same(backbone, head, images, logits):
        raise UserError(
            f"{said}: is not what {name} ends with: this head after a backbone without it gives other logits "
            "than the whole. Name with model.head_from the submodule whose output the logits are."
        )
    return backbone, head, place


def _cut_sequence(layers: nn.Sequential, options: Model, name: str) -> tuple[Cut, str]:
    """And the words for what decided where the head begins."""
    first = _first_layer(layers, options, name)
    said = f"model.head_from={options.head_from}" if options.head_from else f"model.head_layers={options.head_layers}"
    # no slices: of a subclass they would be made by its own __init__, whose arguments nobody knows
    named = list(layers._modules.items())
    return (nn.Sequential(OrderedDict(named[:first])), nn.Sequential(OrderedDict(named[first:])), ""), said


def _cut_module(network: nn.Module, options: Model, name: str) -> tuple[Cut, str]:
    if options.head_from:
        chosen, said = options.head_from, f"model.head_from={options.head_from}"
    else:
        chosen = _last_linear(network, options, name)
        said = f"model {name}: {chosen}, its last nn.Linear"
    head = _submodule(network, chosen, name)
    network.set_submodule(chosen, nn.Identity())
    return (network, head, chosen), said


def _first_layer(layers: nn.Sequential, options: Model, name: str) -> int:
    """Index of the head's first layer."""
    names = list(layers._modules)
    if not options.head_from:
        if options.head_layers >= len(layers):
            raise UserError(
                f"model.head_layers={options.head_layers}: {name} has {len(layers)} layers, "
                f"and its backbone needs one. Use 1 to {len(layers) - 1}."
            )
        return len(layers) - options.head_layers
    if options.head_from not in names:
        raise UserError(
            f"model.head_from={options.head_from}: {name} has no such layer."
            f"{did_you_mean(options.head_from, names)} Its layers are {', '.join(names)}."
        )
    if options.head_from == names[0]:
        raise UserError(
            f"model.head_from={options.head_from}: this is the first layer of {name}, and its backbone needs one. "
            f"Use one of {', '.join(names[1:])}."
        )
    return names.index(options.head_from)


def _last_linear(network: nn.Module, options: Model, name: str) -> str:
    if options.head_layers > 1:
        raise UserError(
            f"model.head_layers={options.head_layers}: {name} is no nn.Sequential, whose layers could be counted. "
            "Name the submodule that is the head with model.head_from."
        )
    linears: list[str] = [inner for inner, module in network.named_modules() if inner and isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(
            f"model {name}: has no nn.Linear inside it that could be the head. "
            "Name the submodule that is with model.head_from."
        )
    return linears[-1]


def _submodule(network: nn.Module, chosen: str, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
    del modules[""]  # the network itself
    if chosen not in modules:
        children = [inner for inner, _ in network.named_children()]
        raise UserError(
            f"model.head_from={chosen}: {name} has no such submodule.{did_you_mean(chosen, modules)} "
            f"Its outermost are {', '.join(children)}."
        )
    return modules[chosen]


def _same(backbone: nn.Module, head: nn.Module, images: Tensor, logits: Tensor) -> bool:
    """Whether head(backbone(images)) is `logits`, but for rounding."""
    try:
        with torch.no_grad():
            features = backbone.eval()(images)
            after = head.eval()(features)
        # a tolerance, for a mean over positions may come before or after a linear head; and one that goes
        # with the logits, for an untrained network with batch norm may give very small ones
        tolerance = 1e-4 * float(logits.abs().max())
        same_rows = isinstance(features, Tensor) and len(features) == len(images)
        return same_rows and torch.allclose(after, logits, rtol=0, atol=tolerance)
    except Exception:  # a module from elsewhere in the network meets tensors that it was not made for
        return False
