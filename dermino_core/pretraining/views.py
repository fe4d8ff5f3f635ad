"""From decoded images to the normalised crops of a training step.

Multi-crop: Caron et al. 2020 (SwAV), section 3.3; constants: Oquab et al. 2024 (DINOv2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dermino_core.errors import DerminoError
from dermino_core.pretraining.colour import apply_colours, draw_colours, to_device
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.crops import boxes_from, resample, uniforms_for_boxes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

USUAL_LOCAL_SIZE = 98
"""Pixels of a local crop: 7 patches of 14; the nearest multiple of another patch size."""

LOCAL_SHARE = 98 / 224
"""Local to global side, where the usual size is not smaller than the global crop."""

CACHED_VALUES = 2**17
"""Numbers that a processor changes together: 512 KiB, so that they stay in its cache."""


@dataclass(frozen=True)
class Views:
    """The crops of a batch of B images.

    Attributes
    ----------
    global_crops
        float32 [2, B, 3, S, S].
    local_crops
        float32 [local_count, B, 3, s, s]; None without local crops.
    """

    global_crops: Tensor
    local_crops: Tensor | None


def make_views(
    images: Tensor,
    sizes: Tensor,
    config: PretrainConfig,
    patch_size: int,
    generator: torch.Generator,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Views:
    """Two global crops and the local ones of every image, augmented and normalised.

    Parameters
    ----------
    images
        uint8 [B, 3, H, W], each image in the upper left corner.
    sizes
        int64 [B, 2], height and width of each image, on the device of `images`.
    config
        `crops` and `augmentation` are used.
    patch_size
        Of the ViT, in pixels.
    generator
        Of the CPU, so that every device makes the same crops.
    mean, std
        Of the normalisation, per channel, for values in 0..1.
    """
    crops, augmentation = config.crops, config.augmentation
    blur_first, blur_second, blur_local = augmentation.blur
    global_crops = _make(
        images,
        sizes,
        config,
        (crops.global_size, crops.global_scale),
        (blur_first, blur_second),
        (0.0, augmentation.solarise),
        generator,
        (mean, std),
    )
    if crops.local_count == 0:
        return Views(global_crops, None)
    local_crops = _make(
        images,
        sizes,
        config,
        (local_size(config, patch_size), crops.local_scale),
        (blur_local,) * crops.local_count,
        (0.0,) * crops.local_count,
        generator,
        (mean, std),
    )
    return Views(global_crops, local_crops)


def local_size(config: PretrainConfig, patch_size: int) -> int:
    """Pixels of a local crop's side.

    As configured, or the multiple of the patch size nearest to 98 pixels; where that is not smaller
    than the global crop, the multiple nearest to 98/224 of it.
    """
    if config.crops.local_size is not None:
        return config.crops.local_size
    usual = _nearest(USUAL_LOCAL_SIZE, patch_size)
    if usual < config.crops.global_size:
        return usual
    return _nearest(LOCAL_SHARE * config.crops.global_size, patch_size)


def check_sizes(config: PretrainConfig, patch_size: int) -> None:
    """Checks that the patch size divides the crops' sides, and that the blur fits into them.

    Raises
    ------
    DerminoError
        CONFIG_INVALID; names the nearest sizes that would do.
    """
    sizes = {"crops.global_size": config.crops.global_size}
    if config.crops.local_count:
        sizes["crops.local_size"] = local_size(config, patch_size)
    for where, size in sizes.items():
        if size % patch_size:
            below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
            nearest = f"{below} or {above}" if below else str(above)
            raise DerminoError(
                "CONFIG_INVALID",
                f"Crops of {size} pixels cannot be cut into patches of {patch_size} pixels.",
                where=where,
                fix=f"Use {nearest}.",
            )
    kernel = config.augmentation.blur_kernel
    if any(config.augmentation.blur) and (kernel % 2 == 0 or kernel // 2 >= min(sizes.values())):
        raise DerminoError(
            "CONFIG_INVALID",
            f"A blur of {kernel} pixels does not suit crops of {min(sizes.values())} pixels.",
            where="augmentation.blur_kernel",
            fix="Use an odd number of pixels, less than twice the smallest crop, or set "
            "augmentation.blur to [0, 0, 0].",
        )


def _make(
    images: Tensor,
    sizes: Tensor,
    config: PretrainConfig,
    size_and_scale: tuple[int, tuple[float, float]],
    blur: tuple[float, ...],
    solarise: tuple[float, ...],
    generator: torch.Generator,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
) -> Tensor:
    """One crop for each number in `blur`: float32 [n, B, 3, side, side], normalised."""
    side, scale = size_and_scale
    augmentation, batch, n = config.augmentation, len(images), len(blur)
    uniforms = to_device(uniforms_for_boxes(n, batch, generator), images)
    turns = (augmentation.horizontal_flip, augmentation.vertical_flip, augmentation.right_angles)
    boxes = boxes_from(uniforms, sizes, scale, config.crops.aspect, turns)
    crops = resample(images, boxes, side)
    blurred, solarised = (torch.tensor(p).repeat_interleave(batch) for p in (blur, solarise))
    colours = draw_colours(augmentation, blurred, solarised, generator)
    flat = crops.flatten(0, 1)
    mean, std = (to_device(torch.tensor(v), images).view(3, 1, 1) for v in normalisation)
    step = len(flat) if images.is_cuda else max(1, CACHED_VALUES // (3 * side * side))
    for first in range(0, len(flat), step):
        part = slice(first, first + step)
        apply_colours(flat[part], colours.part(part), augmentation.blur_kernel)
        flat[part].sub_(mean).div_(std)
    return crops


def _nearest(pixels: float, patch_size: int) -> int:
    return max(1, round(pixels / patch_size)) * patch_size
