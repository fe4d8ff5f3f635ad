"""Training views of an image: a random part of it, turned, with other colours.

A view depends on the image's bytes, its number and the seed, and on nothing else: not on the other
images, nor on how often training was interrupted.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dermino_core.image_limits import ImageLimits
from dermino_core.images import decode_image
from dermino_core.pretraining.colour import apply_colours, draw_colours
from dermino_core.pretraining.config import AugmentationSection
from dermino_core.pretraining.crops import boxes_from, resample, uniforms_for_boxes
from dermino_core.tuning.recipe import Augmentation

BLUR_KERNEL = 9


def draw_views(
    data: bytes,
    side: int,
    count: int,
    augmentation: Augmentation,
    *,
    seed: int,
    limits: ImageLimits | None = None,
) -> Tensor:
    """Views of an encoded image: float32 [count, 3, side, side] in 0..1.

    Raises
    ------
    ImageError
        If the image cannot be decoded.
    """
    # The smallest views are not enlarged.
    short = math.ceil(side / math.sqrt(augmentation.smallest_area))
    image = decode_image(data, limits=limits or ImageLimits(), short_side=short)
    pixels = torch.from_numpy(_shrunk(image, short)).permute(2, 0, 1).contiguous()
    word = hashlib.sha256(seed.to_bytes(8, "little") + data).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(word[:8], "little", signed=True))
    chance = 0.5 if augmentation.turns else 0.0
    boxes = boxes_from(
        uniforms_for_boxes(count, 1, generator),
        torch.tensor([pixels.shape[1:]]),
        (augmentation.smallest_area, 1.0),
        (1 / augmentation.aspect, augmentation.aspect),
        (chance, chance, chance),
    )
    views = resample(pixels[None], boxes, side)[:, 0]
    strength = augmentation.colour
    if not strength:
        return views
    section = AugmentationSection(
        jitter=1.0,
        brightness=strength,
        contrast=strength,
        saturation=strength,
        hue=strength / 8,
    )
    never = torch.zeros(count)
    return apply_colours(views, draw_colours(section, never, never, generator), BLUR_KERNEL)


def _shrunk(image: Image.Image, short: int) -> np.ndarray:
    """The image with a shorter side of at most `short` pixels."""
    factor = short / min(image.size)
    if factor < 1:
        width, height = (max(1, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8)
