"""A timm ViT that reads crops of several sizes in one pass.

The tokens of all crops stand in one long list for everything that treats tokens one by one (norms,
linear layers, MLP); only attention is computed per crop size. As in DINOv3, without any kernel that
torch does not bring. Stochastic depth leaves out whole crops of a batch, so that it saves their
arithmetic (DINOv2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers.attention import Attention
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dermino_core.errors import DerminoError

DINOV2_OFFSET = 0.1
"""DINOv2's code adds this to the number of patches when it resizes positions."""


class PackedBlock(Block):
    """A timm block whose input is a list of token tensors, one for each crop size.

    Attributes
    ----------
    drop_share
        Share of the crops of a batch that a residual branch leaves out while training.
    """

    drop_share: float = 0.0

    def forward(self, xs: list[Tensor]) -> list[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B_i, N_i, D] each -> the same shapes."""
        xs = self._residual(xs, self._attend)
        return self._residual(xs, self._mlp)

    def _residual(self, xs: list[Tensor], branch: Any) -> list[Tensor]:
        drop = self.drop_share if self.training else 0.0
        keeps = [max(1, int(len(x) * (1 - drop))) for x in xs]
        if all(keep == len(x) for keep, x in zip(keeps, xs, strict=True)):
            return [x + r.to(x.dtype) for x, r in zip(xs, branch(xs), strict=True)]
        chosen = [
            torch.randperm(len(x), device=x.device)[:keep]
            for keep, x in zip(keeps, xs, strict=True)
        ]
        some = branch([x.index_select(0, c) for x, c in zip(xs, chosen, strict=True)])
        return [
            x.index_add(0, c, r.to(x.dtype), alpha=len(x) / len(c))
            for x, c, r in zip(xs, chosen, some, strict=True)
        ]

    def _attend(self, xs: list[Tensor]) -> list[Tensor]:
        attn: Any = self.attn
        long = attn.qkv(self.norm1(_flat(xs)))
        outputs = []
        for part, x in zip(long.split([x.shape[0] * x.shape[1] for x in xs]), xs, strict=True):
            b, n = x.shape[:2]
            q, k, v = part.view(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
            mixed = attention(attn.q_norm(q), attn.k_norm(k), v)
            outputs.append(mixed.transpose(1, 2).reshape(b * n, -1))
        return _unflat(self.ls1(attn.proj(attn.norm(torch.cat(outputs)))), xs)

    def _mlp(self, xs: list[Tensor]) -> list[Tensor]:
        return _unflat(self.ls2(self.mlp(self.norm2(_flat(xs)))), xs)


class PackedViT(nn.Module):
    """A timm ViT, read in packed fashion; its parameters keep timm's names under `vit.`.

    Parameters
    ----------
    vit
        Plain timm ViT with a class token, without classifier.
    drop_path
        Stochastic depth of the last block; rising linearly from 0.
    position_resize
        How positions are resized to a crop's grid: `timm` (bicubic, antialiased) or `dinov2`
        (bicubic, not antialiased, scaled by (grid + 0.1) / own grid).
    checkpointing
        Whether activations are computed again in the backward pass instead of kept.

    Raises
    ------
    DerminoError
        CONFIG_INVALID if the ViT has parts that cannot be read so.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        drop_path: float = 0.0,
        position_resize: Literal["timm", "dinov2"] = "timm",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_plain(vit)
        blocks = list(vit.blocks)
        for index, block in enumerate(blocks):
            # The class, not the module, is exchanged: names, weights and hooks stay timm's.
            block.__class__ = PackedBlock
            block.drop_share = drop_path * index / max(1, len(blocks) - 1)  # pyright: ignore
        self.vit = vit
        self.position_resize: Literal["timm", "dinov2"] = position_resize
        self.checkpointing = checkpointing

    @property
    def width(self) -> int:
        """Numbers per token."""
        return self.vit.num_features

    @property
    def patch_size(self) -> int:
        """In pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and registers."""
        return self.vit.num_prefix_tokens

    def forward(
        self,
        crops: Sequence[Tensor],
        *,
        masks: Sequence[Tensor | None] | None = None,
        mask_token: Tensor | None = None,
    ) -> list[Tensor]:
        """Tokens after the last norm.

        Parameters
        ----------
        crops
            float [B_i, 3, S_i, S_i], normalised; one tensor for each crop size.
        masks
            bool [B_i, patches] or None, for each: patches that `mask_token` [1, D] replaces.

        Returns
        -------
        [B_i, prefix + patches, D] for each.
        """
        if masks is None:
            masks = [None] * len(crops)
        xs = [self.embed(c, m, mask_token) for c, m in zip(crops, masks, strict=True)]
        for block in self.vit.blocks:
            if self.checkpointing and self.training:
                xs = checkpoint(block, xs, use_reentrant=False)
            else:
                xs = block(xs)
        return _unflat(self.vit.norm(_flat(xs)), xs)  # pyright: ignore[reportArgumentType]

    def embed(self, crop: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
        vit: Any = self.vit
        patches = vit.patch_embed.proj(crop)
        grid = (patches.shape[2], patches.shape[3])
        x = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        if mask is not None and mask_token is not None:
            x = torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype), x)
        positions = self._positions(grid)
        prefix = [vit.cls_token] if vit.reg_token is None else [vit.cls_token, vit.reg_token]
        ahead = torch.cat(prefix, dim=1)
        if vit.no_embed_class:
            x = x + positions
        else:
            ahead = ahead + positions[:, : ahead.shape[1]]
            x = x + positions[:, ahead.shape[1] :]
        x = torch.cat([ahead.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        return vit.norm_pre(x)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        vit: Any = self.vit
        ahead = 0 if vit.no_embed_class else self.prefix
        return resize_positions(
            vit.pos_embed, grid, vit.patch_embed.grid_size, ahead, self.position_resize
        )


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of [B, heads, N, d].

    torch's fused kernel, but for bf16 on a CPU, where its backward pass takes several times as long
    as that of the two products (58 against 14 ms for [8, 6, 257, 64] on one AVX512-BF16 core).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return weights.softmax(dim=-1) @ v


def resize_positions(
    positions: Tensor,
    grid: tuple[int, int],
    own: tuple[int, int],
    prefix: int,
    how: Literal["timm", "dinov2"],
) -> Tensor:
    """Position embeddings for another grid: [1, prefix + own, D] -> [1, prefix + grid, D]."""
    if grid == tuple(own):
        return positions
    if how == "timm":
        return resample_abs_pos_embed(
            positions, new_size=list(grid), old_size=list(own), num_prefix_tokens=prefix
        )
    ahead, patches = positions[:, :prefix], positions[:, prefix:]
    square = patches.reshape(1, *own, -1).permute(0, 3, 1, 2).float()
    scale = tuple((new + DINOV2_OFFSET) / old for new, old in zip(grid, own, strict=True))
    resized = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
    return torch.cat([ahead, resized.permute(0, 2, 3, 1).flatten(1, 2).to(ahead.dtype)], dim=1)


def _flat(xs: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten(0, 1) for x in xs]) if len(xs) > 1 else xs[0].flatten(0, 1)


def _unflat(long: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = long.split([x.shape[0] * x.shape[1] for x in like])
    return [part.view(*x.shape[:2], -1) for part, x in zip(parts, like, strict=True)]


def _check_plain(vit: VisionTransformer) -> None:
    parts: Any = vit
    strange = [
        name
        for name, wrong in (
            ("blocks", any(type(block) not in (Block, PackedBlock) for block in parts.blocks)),
            ("attention", any(type(block.attn) is not Attention for block in parts.blocks)),
            ("gated attention", any(getattr(b.attn, "gate", None) for b in parts.blocks)),
            ("positions", parts.pos_embed is None),
            ("class token", parts.cls_token is None),
            ("pooling", parts.global_pool != "token"),
            ("norm after pooling", not isinstance(parts.fc_norm, nn.Identity)),
        )
        if wrong
    ]
    if strange:
        raise DerminoError(
            "CONFIG_INVALID",
            f"This ViT cannot be pretrained here; it has other {', '.join(strange)}.",
            where="model.architecture",
            fix="Use a plain ViT with a class token, for example vit_small_patch14_dinov2.",
        )
