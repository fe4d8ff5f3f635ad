"""Drawn lesions with exact masks, and a ViT small enough to train a head on in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from dermino_core.backbone import Backbone, BackboneCard, Preprocessing
from dermino_core.backbone_weights import fill_randomly
from dermino_core.evaluation.segmentation import MaskedImage

SIDE = 32
PATCH = 4


def tiny_backbone(
    size: int = SIDE, patch: int = PATCH, depth: int = 4, width: int = 24
) -> Backbone:
    """Random weights: its patch features still tell dark from light."""
    model = VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=2, num_classes=0
    )
    fill_randomly(model, 0)
    card = BackboneCard(
        name="tiny",
        architecture="tiny",
        width=width,
        patch_size=patch,
        preprocessing=Preprocessing(size, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        fingerprint="0" * 64,
        pretrained=False,
        source="tests",
    )
    return Backbone(model, card, "fp32", "cpu")


def draw_lesions(
    folder: Path, count: int, *, shape: tuple[int, int] = (SIDE, SIDE), cell: int = PATCH
) -> list[MaskedImage]:
    """Dark rectangles on light skin, their edges on a grid of `cell` pixels."""
    rng = np.random.default_rng(0)
    height, width = shape
    folder.mkdir(parents=True, exist_ok=True)
    examples: list[MaskedImage] = []
    for number in range(count):
        mask = np.zeros(shape, bool)
        top, left = rng.integers(0, height // cell - 5), rng.integers(0, width // cell - 5)
        rows, columns = rng.integers(3, 6, 2)
        mask[top * cell : (top + rows) * cell, left * cell : (left + columns) * cell] = True
        skin = rng.normal((225, 180, 165), 6, (*shape, 3))
        skin[mask] = rng.normal((70, 40, 35), 6, (int(mask.sum()), 3))
        image_file, mask_file = folder / f"{number}.png", folder / f"{number}-mask.png"
        Image.fromarray(skin.clip(0, 255).astype(np.uint8)).save(image_file)
        Image.fromarray(mask).save(mask_file)
        examples.append(MaskedImage(image_file, mask_file, f"patient {number}"))
    return examples


def state_of(head: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in head.state_dict().items()}
