"""Two segmentation heads on the patch features of a frozen ViT (paper, section 4.2.3).

Both take [B, L, h, w, D], the features of L depths on an h x w grid of patches, and give the logit
of "lesion" on a grid of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermino_core.backbone_patches import N_LAYERS

HeadName = Literal["linear", "upernet"]

POOLED = (1, 2, 3, 6)
"""Grids of the pyramid pooling (paper; Zhao et al. 2017)."""


class LinearHead(nn.Module):
    """Batch norm, spatial dropout, 1 x 1 convolution, on the last depth.

    Parameters
    ----------
    width
        D.
    dropout
        Share of channels that are dropped (0.1 in the paper).
    """

    depths = 1

    def __init__(self, width: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, 1, h, w, D] -> [B, 1, h, w]."""
        return self.classify(self.dropout(self.norm(_maps(features)[-1])))


class UperNet(nn.Module):
    """UperNet (Xiao et al. 2018) on four depths of a ViT.

    The depths, all on the grid of patches, become a pyramid of strides 4, 8, 16 and 32 (for
    patches of 16 pixels) by transposed convolutions, the identity and pooling. Pyramid pooling
    of the coarsest, a feature pyramid network from there to the finest, one 3 x 3 convolution over
    all of them, one 1 x 1.

    Parameters
    ----------
    width
        D.
    channels
        Of every level. 64 costs 1.6 GFLOP forward for an image of 16 x 16 patches, 256 some 16
        times as much.
    dropout
        Share of channels dropped before the last convolution.
    """

    depths = N_LAYERS

    def __init__(self, width: int, *, channels: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.to_stride_4 = nn.Sequential(
            nn.ConvTranspose2d(width, channels, 2, stride=2),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        )
        self.to_stride_8 = nn.ConvTranspose2d(width, channels, 2, stride=2)
        self.to_stride_32 = nn.MaxPool2d(2, ceil_mode=True)
        self.pooled = nn.ModuleList(_convolution(width, channels, 1) for _ in POOLED)
        self.top = _convolution(width + len(POOLED) * channels, channels, 3)
        self.lateral = nn.ModuleList(
            _convolution(size, channels, 1) for size in (channels, channels, width)
        )
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3) for _ in range(3))
        self.fuse = _convolution(N_LAYERS * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, 1, 1)

    def pyramid(self, features: Tensor) -> list[Tensor]:
        """[B, 4, h, w, D] -> maps of 4h x 4w, 2h x 2w, h x w and h/2 x w/2, finest first."""
        fine, middle, coarse, coarsest = _maps(features)
        return [
            self.to_stride_4(fine),
            self.to_stride_8(middle),
            coarse,
            self.to_stride_32(coarsest),
        ]

    def forward(self, features: Tensor) -> Tensor:
        """[B, 4, h, w, D] -> [B, 1, 4h, 4w]."""
        *finer, coarsest = self.pyramid(features)
        pooled = [
            _resized(layer(F.adaptive_avg_pool2d(coarsest, grid)), coarsest)
            for grid, layer in zip(POOLED, self.pooled, strict=True)
        ]
        levels = [layer(level) for layer, level in zip(self.lateral, finer, strict=True)]
        levels.append(self.top(torch.cat([coarsest, *pooled], dim=1)))
        for place in range(len(levels) - 1, 0, -1):
            levels[place - 1] = levels[place - 1] + _resized(levels[place], levels[place - 1])
        finest = [layer(level) for layer, level in zip(self.smooth, levels[:-1], strict=True)]
        joined = [_resized(level, finest[0]) for level in [*finest, levels[-1]]]
        return self.classify(self.dropout(self.fuse(torch.cat(joined, dim=1))))


Head = LinearHead | UperNet


def build_head(name: HeadName, width: int, *, channels: int = 64, dropout: float = 0.1) -> Head:
    """An untrained head; `channels` matter to UperNet only.

    Raises
    ------
    ValueError
        For another name.
    """
    if name == "linear":
        return LinearHead(width, dropout=dropout)
    if name == "upernet":
        return UperNet(width, channels=channels, dropout=dropout)
    raise ValueError(f"a head is 'linear' or 'upernet', not {name!r}")


def upsampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits [B, 1, h, w] on a mask's pixels, bilinearly: [B, *size]."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _maps(features: Tensor) -> Sequence[Tensor]:
    """[B, L, h, w, D] -> L maps [B, D, h, w], channels last in memory as convolutions like it."""
    return features.permute(0, 1, 4, 2, 3).unbind(dim=1)


def _resized(level: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(level, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _convolution(width: int, channels: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, channels, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
