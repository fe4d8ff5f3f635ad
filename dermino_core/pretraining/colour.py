"""Colour jitter, gray, blur and solarisation of a whole batch, with its own numbers for each crop.

Each operation is torchvision's of the same name on float images in 0..1, with factors [n] instead
of one factor. The random numbers are drawn on the CPU, so which crops are chosen is known without
asking the accelerator, and only those are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dermino_core.pretraining.config import AugmentationSection

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""

SOLARISE_THRESHOLD = 128 / 255

SMALLEST_CHROMA = 1e-20
"""Instead of 0, whose inverse is infinite: the hue of gray does not matter."""


@dataclass(frozen=True)
class Colours:
    """What happens to each of `n` crops. Tensors are on the CPU.

    Attributes
    ----------
    order
        Order of brightness (0), contrast (1), saturation (2) and hue (3); one for all crops.
    factors
        float32 [n, 4]: brightness, contrast, saturation, and the shift of the hue in turns.
    sigma
        float32 [n]: of the blur, in pixels.
    jitter, grayscale, blur, solarise
        bool [n]: which crops are changed.
    """

    order: tuple[int, ...]
    factors: Tensor
    sigma: Tensor
    jitter: Tensor
    grayscale: Tensor
    blur: Tensor
    solarise: Tensor

    def part(self, which: slice) -> Colours:
        """Of some of the crops."""
        tensors = {f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "order"}
        return replace(self, **tensors)


def draw_colours(
    augmentation: AugmentationSection,
    blur: Tensor,
    solarise: Tensor,
    generator: torch.Generator,
) -> Colours:
    """Random numbers for a batch of crops.

    Parameters
    ----------
    augmentation
        Ranges and probabilities.
    blur, solarise
        float [n]: the probability for each crop.
    generator
        Of the CPU; it moves on by the same amount whatever the probabilities are.
    """
    order = tuple(torch.randperm(4, generator=generator).tolist())
    uniforms = torch.rand(len(blur), 9, generator=generator)
    names = ("brightness", "contrast", "saturation")
    ranges = [(max(0.0, 1 - r), 1 + r) for r in (getattr(augmentation, name) for name in names)]
    ranges.append((-augmentation.hue, augmentation.hue))
    low, high = torch.tensor(ranges).unbind(-1)
    smallest, largest = augmentation.blur_sigma
    return Colours(
        order=order,
        factors=low + (high - low) * uniforms[:, :4],
        sigma=smallest + (largest - smallest) * uniforms[:, 4],
        jitter=uniforms[:, 5] < augmentation.jitter,
        grayscale=uniforms[:, 6] < augmentation.grayscale,
        blur=uniforms[:, 7] < blur,
        solarise=uniforms[:, 8] < solarise,
    )


def apply_colours(crops: Tensor, colours: Colours, kernel: int) -> Tensor:
    """Jitter, gray, blur, solarisation, in this order.

    Parameters
    ----------
    crops
        float32 [n, 3, H, W] in 0..1; changed in place.
    colours
        What happens to each.
    kernel
        Odd side of the blur's window, in pixels.

    Returns
    -------
    `crops`.
    """
    _on_chosen(crops, colours.jitter, lambda x, which: _jitter(x, colours, which))
    _on_chosen(crops, colours.grayscale, lambda x, _: grayscale(x).expand_as(x))
    _on_chosen(
        crops,
        colours.blur,
        lambda x, which: gaussian_blur(x, to_device(colours.sigma[which], x), kernel),
    )
    _on_chosen(crops, colours.solarise, lambda x, _: solarise(x))
    return crops


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Black and `x` blended by `factor` [n]; `x` [n, 3, H, W] is overwritten."""
    return x.mul_(_per_crop(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """The mean gray of each crop and `x` blended by `factor` [n]; `x` is overwritten."""
    mean = grayscale(x).mean(dim=(1, 2, 3), keepdim=True)
    factor = _per_crop(factor)
    return x.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Gray and `x` blended by `factor` [n]; `x` is overwritten."""
    factor = _per_crop(factor)
    gray = grayscale(x).mul_(1 - factor)
    return x.mul_(factor).add_(gray).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by `shift` [n] of a full turn, at the same value V and chroma C.

    With the hue H in sixths of a turn, the way back to colours needs no cases: red is
    V - C clamp(2 - |H - 3|), green V - C clamp(|H - 2| - 1) and blue V - C clamp(|H - 4| - 1),
    each clamped to 0..1.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    inverse = chroma.clamp(min=SMALLEST_CHROMA).reciprocal_()
    blue_or_green = torch.where(
        value == green,
        (blue - red).mul_(inverse).add_(2),
        (red - green).mul_(inverse).add_(4),
    )
    turned = torch.where(value == red, (green - blue).mul_(inverse), blue_or_green)
    turned.add_(6 * shift.view(-1, 1, 1))
    turned.sub_((turned / 6).floor_().mul_(6))
    result = torch.empty_like(x)
    for channel, (centre, sign, shifted) in enumerate(((3, -1, 2), (2, 1, -1), (4, 1, -1))):
        share = (turned - centre).abs_().mul_(sign).add_(shifted).clamp_(0, 1)
        torch.sub(value, share.mul_(chroma), out=result[:, channel])
    return result


def grayscale(x: Tensor) -> Tensor:
    """[n, 3, H, W] -> [n, 1, H, W]."""
    red, green, blue = x.unbind(1)
    gray = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return gray.unsqueeze(1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """A Gaussian window of `kernel` pixels, with `sigma` [n], mirrored at the edges.

    Raises
    ------
    ValueError
        If `kernel` is even, or its half is not less than the crop's side.
    """
    half = kernel // 2
    if kernel % 2 == 0 or half >= min(x.shape[-2:]):
        raise ValueError(f"a blur of {kernel} pixels does not suit crops of {tuple(x.shape[-2:])}")
    offsets = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype)
    weights = torch.softmax(-0.5 * (offsets / sigma.unsqueeze(-1)) ** 2, dim=-1)
    for axis in (-1, -2):
        pad = (half, half, 0, 0) if axis == -1 else (0, 0, half, half)
        padded = F.pad(x, pad, mode="reflect")
        size = x.shape[axis]
        x = padded.narrow(axis, 0, size) * _per_crop(weights[:, 0])
        for tap in range(1, kernel):
            x += padded.narrow(axis, tap, size) * _per_crop(weights[:, tap])
    return x


def solarise(x: Tensor) -> Tensor:
    """Values from 128 of 255 on are inverted."""
    return torch.where(x >= SOLARISE_THRESHOLD, 1 - x, x)


def to_device(tensor: Tensor, like: Tensor) -> Tensor:
    """A small CPU tensor on the device of `like`, without waiting for that device."""
    if not like.is_cuda:
        return tensor.to(like.device)
    return tensor.pin_memory().to(like.device, non_blocking=True)


def _jitter(x: Tensor, colours: Colours, which: Tensor) -> Tensor:
    factors = to_device(colours.factors[which], x)
    operations = (brightness, contrast, saturation, hue)
    strength = colours.factors - torch.tensor([1.0, 1.0, 1.0, 0.0])
    for number in colours.order:
        if strength[:, number].any():
            x = operations[number](x, factors[:, number])
    return x


def _on_chosen(
    crops: Tensor, chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replaces the chosen crops by `operation(those crops, their indices)`."""
    which = chosen.nonzero().squeeze(-1)
    if len(which):
        there = to_device(which, crops)
        crops.index_copy_(0, there, operation(crops.index_select(0, there), which))


def _per_crop(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)
