"""The states of several clients as one, and a method's loss as a function of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedbsd_dist.client import Loss
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.operations import FewKernels


class Stacked(FlatModel):
    """The states of several clients under the one live module: buffers [num_clients, numel].

    A group of the model's that is the same for all is there once, its stride over the clients 0, until it changes.
    """

    def __init__(self, model: FlatModel, private: Sequence[Mapping[str, Tensor]]) -> None:
        """`private`: each client's own groups; the others as the live model has them."""
        vars(self).update(vars(model))
        self.buffers = {}
        for name, buffer in model.buffers.items():
            if name in private[0]:
                self.buffers[name] = torch.stack([groups[name] for groups in private]).to(buffer.device)
            else:
                # not the live model's own, which each client's personal model will be in
                common = buffer.clone().expand(len(private), -1)
                self.buffers[name] = common if name in model.groups else common.contiguous()

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Make these groups' values, [num_clients, numel], the present ones."""
        for group in state:
            self._part(group)
        super().put(state)

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """The parameters of `module`, the live one or a part of it, [num_clients, ...] by their names in it."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return {name: self.view(self.buffers, names[id(own)]) for name, own in module.named_parameters()}

    def learned(self, values: Mapping[str, Tensor], whose: slice) -> None:
        """Make these, [num_clients, ...], the present values of parameters of some clients, by their names in the live
        module.
        """
        if not values:
            return
        for name in values:
            self._part(self._places[name][0])
        present = self.of(self.module)
        torch._foreach_copy_(
            [present[name][whose] for name in values], [learned.detach()[whose] for learned in values.values()]
        )

    def _part(self, group: str) -> None:
        """From here on, the clients may differ in it."""
        if is_common(self.buffers[group]):
            self.buffers[group] = self.buffers[group].contiguous()


class Losses(nn.Module):
    """The loss of a method as a function of the live model's parameters, too."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self._loss = module, loss

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Of a batch, what is descended and, without gradient, what is reported [num_losses]."""
        total, reported = self._loss(*batch)
        return total, torch.stack([*reported]).detach()

    def of_samples(self, state: Mapping[str, Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of each sample as a batch of one, by each client's parameters, what is descended [num_clients, b] and what is
        reported [num_clients, b, num_losses].
        """
        # a value that all have in common is not copied for each
        common = {name for name, values in state.items() if is_common(values)}
        given = {f"module.{name}": values[0] if name in common else values for name, values in state.items()}
        by_client = {f"module.{name}": None if name in common else 0 for name in state}

        def of_client(parameters: dict[str, Tensor], *rows: Tensor) -> Any:
            def of_sample(*row: Tensor) -> Any:
                return functional_call(self, parameters, tuple(tensor[None] for tensor in row))

            return torch.vmap(of_sample)(*rows)

        with FewKernels():
            descended, reported = torch.vmap(of_client, in_dims=(by_client, *(0 for _ in batch)))(given, *batch)
        return descended, reported


def is_common(values: Tensor) -> bool:
    """Whether it is there once for all clients, of whom there are several."""
    return values.stride(0) == 0
