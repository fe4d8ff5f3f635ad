"""AdamW in groups: layer-wise rates, no decay where there is nothing to decay, clipping by part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from dermino_core.pretraining.config import OptimiserSection
from dermino_core.pretraining.schedules import Settings

_BLOCK = re.compile(r"(?:^|\.)backbone\.vit\.blocks\.(\d+)\.")
_BACKBONE = re.compile(r"(?:^|\.)backbone\.|^mask_token$")


@dataclass(frozen=True)
class GroupKey:
    """What the parameters of one group have in common.

    Attributes
    ----------
    part
        `backbone`, `head` or `last_layer`: whose learning rate applies.
    rate_scale
        Factor on that rate.
    decayed
        Whether weight decay applies.
    """

    part: str
    rate_scale: float
    decayed: bool


def group_of(
    name: str,
    parameter: Tensor,
    *,
    depth: int,
    section: OptimiserSection,
    last_layers: frozenset[str],
) -> GroupKey:
    """The group of a parameter.

    Layer `l` of the backbone's `depth` blocks learns at `layer_decay ** (depth + 1 - l)`, where
    patches, positions and tokens are layer 0 and the last norm is layer `depth` + 1; the patch
    embedding also at `patch_embed_scale`. The student's mask token is one of these tokens, as in
    DINOv2's code, where it belongs to the ViT. Biases, norms, LayerScale, tokens and position
    embeddings do not decay.
    """
    decayed = parameter.ndim > 1 and not name.endswith(("bias", "token", "pos_embed"))
    if name in last_layers:
        return GroupKey("last_layer", 1.0, decayed)
    if not _BACKBONE.search(name):
        return GroupKey("head", 1.0, decayed)
    block = _BLOCK.search(name)
    outside = depth + 1 if ".vit.norm." in name else 0
    layer = int(block.group(1)) + 1 if block else outside
    scale = section.layer_decay ** (depth + 1 - layer)
    if ".patch_embed." in name:
        scale *= section.patch_embed_scale
    return GroupKey("backbone", scale, decayed)


def make_optimiser(
    module: nn.Module, section: OptimiserSection, last_layers: frozenset[str], *, depth: int
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`, in as few groups as possible."""
    groups: dict[GroupKey, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = group_of(name, parameter, depth=depth, section=section, last_layers=last_layers)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "part": key.part,
                "rate_scale": key.rate_scale,
                "decayed": key.decayed,
            }
            for key, parameters in groups.items()
        ],
        betas=section.betas,
        fused=True,
    )


def apply_settings(optimiser: torch.optim.Optimizer, settings: Settings) -> None:
    """Write a step's rates and weight decay into the groups."""
    rates = {
        "backbone": settings.backbone_rate,
        "head": settings.head_rate,
        "last_layer": settings.last_layer_rate,
    }
    for group in optimiser.param_groups:
        group["lr"] = rates[group["part"]] * group["rate_scale"]
        group["weight_decay"] = settings.weight_decay if group["decayed"] else 0.0


def clip_gradients(
    parts: Mapping[str, nn.Module],
    largest: float,
    beside: Mapping[str, Iterable[nn.Parameter]] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Scale each part's gradient to a norm of at most `largest`; return the norms before.

    With `largest` 0 nothing is scaled. The norms stay on the device.

    Parameters
    ----------
    beside
        Parameters outside of a part that are clipped with it, by the part's name.
    """
    norms: dict[str, Tensor] = {}
    for name, part in parts.items():
        together = (*part.parameters(), *beside.get(name, ()))
        parameters = [p for p in together if p.requires_grad and p.grad is not None]
        if parameters:
            limit = largest if largest > 0 else float("inf")
            norm = nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
            whole = getattr(norm, "full_tensor", None)
            norms[f"gradient/{name}"] = (whole() if whole is not None else norm).detach()
    return norms
