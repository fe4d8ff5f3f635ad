"""States by name and in one piece, whether parameters are sharded or not.

What a checkpoint holds does not depend on how many processes made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dermino_core.errors import DerminoError
from dermino_core.pretraining.network import gather_no_more


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; of a sharded module all processes must call it."""
    gather_no_more(module)
    return {name: _whole(tensor) for name, tensor in module.state_dict().items()}


@torch.no_grad()
def restore_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`whole_state`, strictly.

    Raises
    ------
    DerminoError
        CHECKPOINT_INVALID if names or shapes differ.
    """
    gather_no_more(module)
    own = module.state_dict()
    wrong = sorted(
        name
        for name in {*own, *state}
        if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if wrong:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"The checkpoint is of another model: {len(wrong)} tensors differ, first {wrong[0]}.",
            fix="Use the configuration and labels it was made with, or another --out.",
        )
    for name, tensor in own.items():
        tensor.copy_(_like(state[name], tensor))


def optimiser_state(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimiser remembers of each parameter, by the parameter's name.

    Parameters that have not been stepped yet are not in it.
    """
    return {
        name: {key: _whole(value) for key, value in optimiser.state[parameter].items()}
        for name, parameter in module.named_parameters()
        if parameter in optimiser.state
    }


def restore_optimiser(
    module: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """The inverse of :func:`optimiser_state`."""
    for name, parameter in module.named_parameters():
        if name in state:
            optimiser.state[parameter] = {
                key: _like(value, parameter) if value.shape == parameter.shape else
                value.to(parameter.device)
                for key, value in state[name].items()
            }  # fmt: skip


def _whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)
    return (full() if full is not None else tensor).detach().cpu()


def _like(whole: Tensor, tensor: Tensor) -> Tensor:
    """`whole` on the device of `tensor`, and sharded as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        there = whole.to(tensor.device_mesh.device_type)
        return distribute_tensor(there, tensor.device_mesh, tensor.placements)
    return whole.to(tensor.device)
