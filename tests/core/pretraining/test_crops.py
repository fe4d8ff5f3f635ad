"""Boxes and resampling against torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from dermino_core.pretraining.crops import (
    TRIES,
    Boxes,
    boxes_from,
    resample,
    resample_by_box,
    resample_by_products,
    uniforms_for_boxes,
)

ASPECT = (0.75, 4 / 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def box_by_hand(
    uniforms: list[float],
    size: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """`RandomResizedCrop.get_params`, step by step, with given numbers of chance."""
    height, width = size
    for attempt in range(TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[attempt])
        low, high = math.log(aspect[0]), math.log(aspect[1])
        ratio = math.exp(low + (high - low) * uniforms[TRIES + attempt])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(uniforms[2 * TRIES] * (height - h + 1))
            left = math.floor(uniforms[2 * TRIES + 1] * (width - w + 1))
            return top, left, h, w
    w, h = width, height
    if width / height < aspect[0]:
        h = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(height * aspect[1]))
    return (height - h) // 2, (width - w) // 2, h, w


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=4),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda s: tuple(sorted(s))),
    aspect=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda s: tuple(sorted(s))),
)
def test_boxes_are_those_of_the_law_step_by_step(
    seed: int,
    sizes: list[tuple[int, int]],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> None:
    uniforms = uniforms_for_boxes(3, len(sizes), generator(seed))
    corners = boxes_from(uniforms, torch.tensor(sizes), scale, aspect).corners
    for n in range(3):
        for b, size in enumerate(sizes):
            top, left, h, w = corners[n, b].tolist()
            assert (top, left, h, w) == box_by_hand(uniforms[n, b].tolist(), size, scale, aspect)
            assert 0 <= top <= top + h <= size[0]
            assert 0 <= left <= left + w <= size[1]
            assert h > 0
            assert w > 0


@pytest.mark.parametrize("size", [(48, 64), (64, 20), (30, 300)])
@pytest.mark.parametrize("scale", [(0.32, 1.0), (0.05, 0.32)])
def test_boxes_are_distributed_as_torchvisions(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    n = 3000
    uniforms = uniforms_for_boxes(n, 1, generator(1))
    ours = boxes_from(uniforms, torch.tensor([size]), scale, ASPECT).corners[:, 0].double()
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    params = [RandomResizedCrop.get_params(image, list(scale), list(ASPECT)) for _ in range(n)]
    theirs = torch.tensor(params).double()
    for one, other in zip(ours.T.numpy(), theirs.T.numpy(), strict=True):
        values = np.union1d(one, other)
        below = [np.searchsorted(np.sort(x), values, side="right") / n for x in (one, other)]
        assert np.abs(below[0] - below[1]).max() < 1.95 * math.sqrt(2 / n)


def test_turns_have_their_probabilities() -> None:
    uniforms = uniforms_for_boxes(50, 100, generator())
    turns = boxes_from(
        uniforms, torch.tensor([[9, 9]] * 100), (0.5, 1.0), ASPECT, (0.0, 1.0, 0.3)
    ).turns
    share = turns.double().mean(dim=(0, 1))
    assert share[0] == 0
    assert share[1] == 1
    assert abs(share[2] - 0.3) < 0.03


@pytest.mark.parametrize("how", [resample_by_box, resample_by_products, resample])
@pytest.mark.parametrize("side", [7, 32, 98])
def test_resampling_is_torchvisions(how, side: int) -> None:
    images = noise(0, 3, 3, 80, 120)
    sizes = torch.tensor([[80, 120], [61, 75], [33, 119]])
    uniforms = uniforms_for_boxes(4, 3, generator(2))
    boxes = boxes_from(uniforms, sizes, (0.05, 1.0), ASPECT, (0.5, 0.5, 0.5))
    crops = how(images, boxes, side)
    assert crops.shape == (4, 3, 3, side, side)
    assert crops.dtype == torch.float32
    for n in range(4):
        for b in range(3):
            expected = tv.resized_crop(
                images[b].float() / 255,
                *boxes.corners[n, b].tolist(),
                [side, side],
                InterpolationMode.BICUBIC,
                antialias=True,
            ).clamp(0, 1)
            across, down, transposed = boxes.turns[n, b].tolist()
            expected = tv.hflip(expected) if across else expected
            expected = tv.vflip(expected) if down else expected
            expected = expected.transpose(1, 2) if transposed else expected
            assert (crops[n, b] - expected).abs().max() < 1e-3 / 255


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    side=st.integers(1, 40),
)
def test_both_ways_agree(seed: int, height: int, width: int, side: int) -> None:
    images = noise(seed, 2, 3, height + 3, width)
    sizes = torch.tensor([[height, width], [height + 3, width]])
    uniforms = uniforms_for_boxes(2, 2, generator(seed))
    boxes = boxes_from(uniforms, sizes, (0.05, 1.0), ASPECT, (0.5, 0.5, 0.5))
    one, other = (how(images, boxes, side) for how in (resample_by_box, resample_by_products))
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_large_batches_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(3, 5, 3, 40, 50)
    uniforms = uniforms_for_boxes(3, 5, generator(3))
    boxes = boxes_from(uniforms, torch.tensor([[40, 50]] * 5), (0.1, 1.0), ASPECT)
    whole = resample_by_products(images, boxes, 16)
    monkeypatch.setattr("dermino_core.pretraining.crops.MOST_VALUES", 3 * 16 * 120 * 2)
    torch.testing.assert_close(resample_by_products(images, boxes, 16), whole, rtol=0, atol=1e-6)


def test_autocast_does_not_coarsen_the_products() -> None:
    images = noise(4, 1, 3, 60, 60)
    boxes = Boxes(torch.tensor([[[2, 3, 50, 40]]]), torch.zeros(1, 1, 3, dtype=torch.bool))
    plain = resample_by_products(images, boxes, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample_by_products(images, boxes, 24), plain)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)]
)
def test_wrong_images(images: torch.Tensor) -> None:
    boxes = Boxes(torch.tensor([[[0, 0, 8, 8]] * 2]), torch.zeros(1, 2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 3, H, W\]"):
        resample(images, boxes, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_makes_the_same_crops() -> None:
    images = noise(5, 4, 3, 90, 110)
    sizes = torch.tensor([[90, 110], [70, 80], [90, 50], [33, 110]])
    uniforms = uniforms_for_boxes(3, 4, generator(5))
    law = ((0.05, 1.0), ASPECT, (0.5, 0.5, 0.5))
    here = boxes_from(uniforms, sizes, *law)
    there = boxes_from(uniforms.cuda(), sizes.cuda(), *law)
    assert torch.equal(here.corners, there.corners.cpu())
    assert torch.equal(here.turns, there.turns.cpu())
    crops = resample(images.cuda(), there, 56).cpu()
    torch.testing.assert_close(crops, resample(images, here, 56), rtol=0, atol=1e-3 / 255)
