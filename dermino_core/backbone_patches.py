"""What a ViT knows of each patch, at several depths: the input of segmentation heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dermino_core.errors import DerminoError

if TYPE_CHECKING:
    import torch

    from dermino_core.backbone_card import BackboneCard

N_LAYERS = 4
"""Depths a pyramid is made of (paper 4.2.3: four layers)."""


def pyramid_layers(depth: int) -> tuple[int, ...]:
    """Four evenly spaced blocks of `depth`, the last one last: 12 -> (2, 5, 8, 11), as the paper.

    A ViT of fewer than four blocks gives some of them twice.
    """
    return tuple(max(0, (k + 1) * depth // N_LAYERS - 1) for k in range(N_LAYERS))


def patch_features(
    model: Any,
    card: BackboneCard,
    batch: np.ndarray,
    normalise: Callable[[np.ndarray], torch.Tensor],
    batch_size: int,
    depths: int = N_LAYERS,
) -> np.ndarray:
    """Patch tokens at several depths, normed, without class and register tokens.

    The backbone's final norm brings every depth to one scale, which half precision holds.

    Parameters
    ----------
    model
        A timm ViT.
    batch
        Prepared images, uint8 [B, H, W, 3].
    normalise
        From such images to the model's input.
    batch_size
        Images per forward pass.
    depths
        How many of :func:`pyramid_layers`, from the last.

    Returns
    -------
    float16 [B, depths, H / patch, W / patch, width], the last block last.

    Raises
    ------
    ValueError
        If `batch` has another type or shape.
    DerminoError
        BACKBONE_UNAVAILABLE if the backbone shows no patches; DEVICE_UNAVAILABLE if features are
        not finite.
    """
    import torch

    size = card.preprocessing.image_size
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (size, size, 3):
        raise ValueError(
            f"expected uint8 [B, {size}, {size}, 3], got {batch.dtype} {list(batch.shape)}"
        )
    wanted = pyramid_layers(_block_count(model, card.name))[-depths:]
    distinct = sorted(set(wanted))
    grid = size // card.patch_size
    features = np.empty((len(batch), len(wanted), grid, grid, card.width), dtype=np.float16)
    for start in range(0, len(batch), batch_size):
        with torch.inference_mode():
            found = model.forward_intermediates(
                normalise(batch[start : start + batch_size]),
                indices=distinct,
                norm=True,
                stop_early=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
            tokens = torch.stack([found[distinct.index(layer)] for layer in wanted], dim=1)
            part = tokens.unflatten(2, (grid, grid)).half().cpu().numpy()
        features[start : start + len(part)] = part
    if not np.isfinite(features).all():
        raise DerminoError(
            "DEVICE_UNAVAILABLE",
            "The backbone's patch features are not finite, or too large for half precision.",
            fix="Use --precision fp32.",
        )
    return features


def _block_count(model: object, name: str) -> int:
    blocks = getattr(model, "blocks", None)
    # SAM's ViT has its last norm within a neck that changes the width.
    plain = hasattr(model, "forward_intermediates") and not hasattr(model, "neck")
    if blocks is None or not plain:
        raise DerminoError(
            "BACKBONE_UNAVAILABLE",
            f"{name} gives one vector per image and none per patch: it cannot segment.",
            fix="Choose one of timm's vit_* models.",
        )
    return len(blocks)
