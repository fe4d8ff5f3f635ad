"""A ViT in two parts: blocks that stay as they are, and the last ones, which are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dermino_core.backbone import BackboneCard, load_network
from dermino_core.errors import DerminoError
from dermino_core.pretraining.packed_vit import PackedViT, attention
from dermino_core.tuning.adapters import BLOCK_PARTS, LAYERS, Adaptation, check_fits


class Frozen(nn.Module):
    """Patches, positions and the first blocks: images -> tokens that the trained blocks read."""

    def __init__(self, vit: PackedViT, cut: int, card: BackboneCard) -> None:
        super().__init__()
        self.vit = vit
        self.cut = cut
        mean, std = torch.tensor(card.preprocessing.mean), torch.tensor(card.preprocessing.std)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(3, 1, 1))
        self.register_buffer("std", std.view(3, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        """float [n, 3, S, S] in 0..1 -> [n, tokens, D]; S is any multiple of the patch size."""
        values = (views - self.mean) / self.std
        weight: Any = self.vit.vit.patch_embed.proj.weight
        xs = [self.vit.embed(values.to(weight.dtype), None, None)]
        for block in list(self.vit.vit.blocks)[: self.cut]:
            xs = block(xs)
        return xs[0]

    def tokens(self, side: int) -> int:
        """How many tokens an image of `side` pixels has."""
        return self.vit.prefix + (side // self.vit.patch_size) ** 2


class Adapter(nn.Module):
    """A frozen linear layer and a low-rank one beside it (Hu et al. 2021, equation 3)."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float, *, freeze_a: bool) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.a = nn.Parameter(torch.zeros(rank, layer.in_features), requires_grad=not freeze_a)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """`W x + scale * B (A x)`."""
        return self.layer(x) + F.linear(F.linear(x, self.a), self.b) * self.scale


class Trained(nn.Module):
    """The last blocks, the last norm, and a linear head on the class token."""

    def __init__(self, vit: PackedViT, adaptation: Adaptation, n_classes: int) -> None:
        super().__init__()
        self.adaptation = adaptation
        self.blocks = nn.ModuleList(list(vit.vit.blocks)[-adaptation.blocks :])
        self.norm: Any = vit.vit.norm
        self.requires_grad_(requires_grad=False)
        self._parts: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        for number, block in enumerate(reversed(list(self.blocks)), start=1):
            self._open(f"last{number}", block)
        self.head = nn.Linear(vit.width, n_classes)
        self._parts |= {"weight": self.head.weight, "bias": self.head.bias}
        self._start |= {k: torch.zeros_like(self._parts[k]) for k in ("weight", "bias")}

    def _open(self, start: str, block: nn.Module) -> None:
        """Make of one block what is trained, and note it under the names of the arrays."""
        if self.adaptation.method == "blocks":
            for name in BLOCK_PARTS:
                parameter = block.get_parameter(name).requires_grad_()
                self._parts[f"{start}.{name}"] = parameter
                self._start[f"{start}.{name}"] = parameter.detach().clone()
            return
        a = self.adaptation
        for name in LAYERS:
            inner, _, last = name.rpartition(".")
            parent = block.get_submodule(inner)
            layer = cast(nn.Linear, getattr(parent, last))
            adapter = Adapter(layer, a.rank, a.scale, freeze_a=a.freeze_a)
            setattr(parent, last, adapter)
            for kind in ("a", "b"):
                parameter = getattr(adapter, kind)
                self._parts[f"{start}.{name}.{kind}"] = parameter
                self._start[f"{start}.{name}.{kind}"] = torch.zeros_like(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, tokens, D] -> features [n, D], before the head."""
        xs = [tokens]
        *first, last = self.blocks
        for block in first:
            xs = block(xs)
        return self.norm(_class_token(last, xs[0])[:, 0])

    def read(self, arrays: Mapping[str, npt.NDArray]) -> None:
        """Take the arrays: of adapters and the head as they are, of blocks as changes."""
        with torch.no_grad():
            for name, parameter in self._parts.items():
                parameter.copy_(self._start[name] + torch.from_numpy(np.array(arrays[name])))

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """The arrays as they are now, float32."""
        return {
            name: (parameter.detach().float().cpu() - self._start[name]).numpy().copy()
            for name, parameter in self._parts.items()
        }

    def head_parameters(self) -> list[nn.Parameter]:
        """Of the head."""
        return list(self.head.parameters())

    def block_parameters(self) -> list[nn.Parameter]:
        """What is trained in the blocks."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in head]


def _class_token(block: Any, x: Tensor) -> Tensor:
    """A block's output for the class token only, [B, 1, D]: nothing reads the other tokens."""
    attn, (b, n) = block.attn, x.shape[:2]
    qkv = attn.qkv(block.norm1(x)).view(b, n, 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = attention(attn.q_norm(q[:, :, :1]), attn.k_norm(k), v)
    mixed = attn.norm(mixed.transpose(1, 2).reshape(b, 1, -1))
    x = x[:, :1]
    x = x + block.ls1(attn.proj(mixed)).to(x.dtype)
    return x + block.ls2(block.mlp(block.norm2(x))).to(x.dtype)


def split_network(
    spec: str, adaptation: Adaptation, n_classes: int, *, precision: str = "fp32"
) -> tuple[Frozen, Trained]:
    """A backbone cut before the blocks that are tuned.

    Parameters
    ----------
    precision
        Arithmetic of the frozen part; the trained one is float32 (and trained under autocast).

    Raises
    ------
    DerminoError
        CONFIG_INVALID for a backbone that is no plain ViT or has too few blocks; what loading it
        raises.
    """
    model, weights, card = load_network(spec)
    check_plain(model)
    check_fits(adaptation, weights, card.width)
    model.requires_grad_(requires_grad=False)
    vit = PackedViT(cast(VisionTransformer, model.eval()))
    trained = Trained(vit, adaptation, n_classes)
    frozen = Frozen(vit, len(list(vit.vit.blocks)) - adaptation.blocks, card)
    if precision == "bf16":
        below = list(vit.vit.blocks)[: frozen.cut]
        for part in (vit.vit.patch_embed, vit.vit.norm_pre, *below):
            part.to(torch.bfloat16)
        for name in ("cls_token", "pos_embed", "reg_token"):
            value = getattr(vit.vit, name, None)
            if value is not None:
                value.data = value.data.to(torch.bfloat16)
    return frozen, trained


def check_plain(model: nn.Module) -> None:
    """Refuse what is no plain ViT.

    Raises
    ------
    DerminoError
        CONFIG_INVALID.
    """
    if not isinstance(model, VisionTransformer):
        raise DerminoError(
            "CONFIG_INVALID",
            f"A {type(model).__name__} cannot be tuned.",
            fix="Choose a plain ViT, for example vit_small_patch14_dinov2.",
        )
    try:
        PackedViT(model)
    except DerminoError as error:
        raise DerminoError(
            "CONFIG_INVALID", error.what.replace("pretrained", "tuned"), fix=error.fix
        ) from error


def view_side(share: float, own: int, patch: int) -> int:
    """Pixels of a view's side: about `share` of the backbone's own, a multiple of the patch."""
    return max(patch, min(own, math.floor(share * own / patch + 0.5) * patch))
