"""Random boxes for a whole batch, and their resampling to squares.

The law of the boxes is torchvision's `RandomResizedCrop` (Szegedy et al. 2015), and resampling is
its `resized_crop(..., BICUBIC, antialias=True)`: Keys 1981 with a = -0.5 and a kernel stretched by
the shrinkage. That is separable: a crop is `rows @ image @ columns`, and one pair of batched matrix
products over the canvas makes all crops of a batch, boxes and mirrors included. Most weights are 0,
which an accelerator does not mind; a processor is six times as fast box after box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dermino_core.losses.numerics import float32_island

TRIES = 10
"""Draws of area and aspect before a centred box is taken."""

KEYS = -0.5
"""The parameter a of Keys' cubic kernel."""

MOST_VALUES = 2**27
"""Float32 numbers in one intermediate product (half a gibibyte); larger batches go in parts."""


@dataclass(frozen=True)
class Boxes:
    """Where `n` crops of each of `B` images are taken from, and how they are turned.

    Attributes
    ----------
    corners
        int64 [n, B, 4]: top, left, height and width, in pixels of the image.
    turns
        bool [n, B, 3]: mirrored left to right, mirrored top to bottom, then transposed.
    """

    corners: Tensor
    turns: Tensor


def uniforms_for_boxes(n: int, batch: int, generator: torch.Generator) -> Tensor:
    """The random numbers behind a batch of boxes: float64 [n, batch, 2 x TRIES + 5] in 0..1."""
    return torch.rand(n, batch, 2 * TRIES + 5, generator=generator, dtype=torch.float64)


def boxes_from(
    uniforms: Tensor,
    sizes: Tensor,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    turns: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Boxes:
    """Boxes of `RandomResizedCrop`, computed on the device of `sizes` without waiting for it.

    A box has a uniform share of the image's area and a log-uniform aspect ratio (width / height);
    the first of ten that fits is taken, at a uniform place. If none fits, the box is the largest
    centred one whose aspect ratio is allowed.

    Parameters
    ----------
    uniforms
        From :func:`uniforms_for_boxes`, float64 [n, B, 2 x TRIES + 5], on the device of `sizes`.
    sizes
        int64 [B, 2], height and width of each image.
    scale, aspect
        Ranges of the share of the area, and of width / height.
    turns
        Probabilities of the two mirrors and of the transposition.
    """
    height, width = sizes.double().unbind(-1)
    height, width = height.unsqueeze(-1), width.unsqueeze(-1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[..., :TRIES])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = torch.exp(low + (high - low) * uniforms[..., TRIES : 2 * TRIES])
    wide, tall = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.int().argmax(dim=-1, keepdim=True)
    found = fits.any(dim=-1)
    whole = width / height
    centred_wide = torch.where(whole > aspect[1], (height * aspect[1]).round().clamp(min=1), width)
    centred_tall = torch.where(whole < aspect[0], (width / aspect[0]).round().clamp(min=1), height)
    box_wide = torch.where(found, wide.gather(-1, first).squeeze(-1), centred_wide.squeeze(-1))
    box_tall = torch.where(found, tall.gather(-1, first).squeeze(-1), centred_tall.squeeze(-1))
    room = torch.stack([height.squeeze(-1) - box_tall, width.squeeze(-1) - box_wide], dim=-1)
    place = torch.floor(uniforms[..., 2 * TRIES : 2 * TRIES + 2] * (room + 1))
    start = torch.where(found.unsqueeze(-1), place, torch.floor(room / 2))
    corners = torch.cat([start, box_tall.unsqueeze(-1), box_wide.unsqueeze(-1)], dim=-1)
    chances = torch.tensor(turns, dtype=torch.float64, pin_memory=sizes.is_cuda)
    turned = uniforms[..., -3:] < chances.to(sizes.device, non_blocking=True)
    return Boxes(corners.long(), turned)


def resample(images: Tensor, boxes: Boxes, side: int) -> Tensor:
    """Every box as a square: antialiased bicubic, clamped to 0..1.

    Parameters
    ----------
    images
        uint8 [B, 3, H, W].
    boxes
        n boxes for each image, on the same device; they lie within their images.
    side
        Pixels of a crop's side.

    Returns
    -------
    float32 [n, B, 3, side, side] in 0..1.

    Raises
    ------
    ValueError
        If `images` is not uint8 [B, 3, H, W].
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 [B, 3, H, W], not {images.dtype} {tuple(images.shape)}"
        )
    how = resample_by_box if images.device.type == "cpu" else resample_by_products
    return how(images, boxes, side)


def resample_by_box(images: Tensor, boxes: Boxes, side: int) -> Tensor:
    """As :func:`resample`, box after box."""
    n, batch = boxes.corners.shape[:2]
    crops = images.new_empty((n, batch, 3, side, side), dtype=torch.float32)
    corners, turns = boxes.corners.tolist(), boxes.turns.tolist()
    for number in range(n):
        for index in range(batch):
            top, left, tall, wide = corners[number][index]
            region = images[index : index + 1, :, top : top + tall, left : left + wide].float()
            crop = F.interpolate(region, size=(side, side), mode="bicubic", antialias=True)[0]
            across, down, transposed = turns[number][index]
            axes = [axis for axis, mirrored in ((-1, across), (-2, down)) if mirrored]
            crop = crop.flip(axes) if axes else crop
            crops[number, index] = crop.mT if transposed else crop
    return crops.div_(255).clamp_(0, 1)


def resample_by_products(images: Tensor, boxes: Boxes, side: int) -> Tensor:
    """As :func:`resample`, by two batched matrix products over the whole canvas."""
    n, batch, _, height, width = (*boxes.corners.shape[:2], *images.shape[1:])
    crops = images.new_empty((n, batch, 3, side, side), dtype=torch.float32)
    step = max(1, MOST_VALUES // (n * side * max(3 * height, width)))
    with float32_island(images):
        for first in range(0, batch, step):
            part = slice(first, first + step)
            corners, turns = boxes.corners[:, part], boxes.turns[:, part]
            rows = _weights(corners[..., 0], corners[..., 2], turns[..., 1], side, height)
            columns = _weights(corners[..., 1], corners[..., 3], turns[..., 0], side, width)
            some = images[part].float()
            across = some.flatten(1, 2) @ columns.transpose(0, 1).flatten(1, 2).mT
            across = across.view(len(some), 3, height, n, side).permute(3, 0, 2, 1, 4).flatten(3)
            done = (rows @ across).view(n, len(some), side, 3, side).transpose(2, 3)
            crops[:, part] = torch.where(turns[..., 2, None, None, None], done.mT, done)
    return crops.div_(255).clamp_(0, 1)


def _weights(start: Tensor, length: Tensor, mirrored: Tensor, side: int, canvas: int) -> Tensor:
    """Weights of every pixel of an axis in every pixel of the crop: float32 [n, B, side, canvas].

    `start`, `length` and `mirrored` [n, B] are the box on this axis. Pixels out of the box have
    weight 0, and each row sums to 1.
    """
    device = start.device
    out = torch.arange(side, device=device)
    out = torch.where(mirrored.unsqueeze(-1), side - 1 - out, out)
    shrinkage = length.float().unsqueeze(-1) / side
    centre = (out + 0.5) * shrinkage
    pixel = torch.arange(canvas, device=device) - start.unsqueeze(-1)
    distance = (pixel.unsqueeze(-2) + 0.5 - centre.unsqueeze(-1)).abs_()
    distance /= shrinkage.clamp(min=1).unsqueeze(-1)
    inside = (pixel >= 0) & (pixel < length.unsqueeze(-1))
    weights = _keys(distance).mul_(inside.unsqueeze(-2))
    return weights / weights.sum(dim=-1, keepdim=True)


def _keys(x: Tensor) -> Tensor:
    """Keys' cubic kernel of a distance; 0 from 2 on."""
    near = ((KEYS + 2) * x - (KEYS + 3)) * x * x + 1
    far = ((KEYS * x - 5 * KEYS) * x + 8 * KEYS) * x - 4 * KEYS
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
