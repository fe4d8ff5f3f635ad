"""Batched colour operations, crop by crop against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as tv

from dermino_core.pretraining import colour
from dermino_core.pretraining.colour import Colours, apply_colours, draw_colours
from dermino_core.pretraining.config import AugmentationSection

TOLERANCE = {"rtol": 0, "atol": 2e-6}


def pictures(seed: int = 0, n: int = 5, side: int = 24) -> torch.Tensor:
    """Noise, with some gray, black, white and primary pixels."""
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    x[:, :, 0, 0] = 0.4
    x[:, :, 0, 1] = 0
    x[:, :, 0, 2] = 1
    for channel in range(3):
        x[:, :, 1, channel] = 0
        x[:, channel, 1, channel] = 1
        x[:, channel, 2, channel] = x[:, (channel + 1) % 3, 2, channel]
    return x


def factors(low: float, high: float, n: int = 5) -> torch.Tensor:
    return torch.linspace(low, high, n)


def stacked(x: torch.Tensor, operation, numbers: torch.Tensor) -> torch.Tensor:
    pairs = zip(x, numbers.tolist(), strict=True)
    return torch.stack([operation(crop, number) for crop, number in pairs])


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("brightness", factors(0.0, 1.8)),
        ("contrast", factors(0.0, 1.8)),
        ("saturation", factors(0.0, 1.8)),
        ("hue", factors(-0.5, 0.5)),
    ],
)
def test_jitter_is_torchvisions(name: str, numbers: torch.Tensor) -> None:
    x = pictures()
    expected = stacked(x, getattr(tv, f"adjust_{name}"), numbers)
    result = getattr(colour, name)(x.clone(), numbers)
    torch.testing.assert_close(result, expected, **TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(
    rgb=st.tuples(*[st.integers(0, 255)] * 3),
    shift=st.floats(-0.5, 0.5),
)
def test_hue_of_any_colour(rgb: tuple[int, int, int], shift: float) -> None:
    x = (torch.tensor(rgb) / 255).view(1, 3, 1, 1)
    result = colour.hue(x, torch.tensor([shift]))
    expected = tv.adjust_hue(x, shift)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_grayscale_is_torchvisions() -> None:
    x = pictures()
    torch.testing.assert_close(colour.grayscale(x), tv.rgb_to_grayscale(x), **TOLERANCE)


def test_solarisation_is_torchvisions() -> None:
    x = (pictures() * 255).round() / 255
    expected = tv.solarize((x * 255).round().to(torch.uint8), 128).float() / 255
    torch.testing.assert_close(colour.solarise(x), expected, **TOLERANCE)


@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_blur_is_torchvisions(kernel: int) -> None:
    x, sigma = pictures(), factors(0.1, 2.0)
    expected = stacked(x, lambda crop, s: tv.gaussian_blur(crop, [kernel, kernel], [s, s]), sigma)
    torch.testing.assert_close(colour.gaussian_blur(x, sigma, kernel), expected, **TOLERANCE)


@pytest.mark.parametrize(("kernel", "side"), [(4, 24), (9, 4)])
def test_blur_that_does_not_suit(kernel: int, side: int) -> None:
    with pytest.raises(ValueError, match=f"blur of {kernel} pixels does not suit"):
        colour.gaussian_blur(pictures(side=side), factors(0.1, 2.0), kernel)


def by_torchvision(crop: torch.Tensor, colours: Colours, index: int) -> torch.Tensor:
    names = ("brightness", "contrast", "saturation", "hue")
    if colours.jitter[index]:
        for number in colours.order:
            factor = colours.factors[index, number].item()
            crop = getattr(tv, f"adjust_{names[number]}")(crop, factor)
    if colours.grayscale[index]:
        crop = tv.rgb_to_grayscale(crop, 3)
    if colours.blur[index]:
        sigma = colours.sigma[index].item()
        crop = tv.gaussian_blur(crop, [9, 9], [sigma, sigma])
    return tv.solarize(crop, 128 / 255) if colours.solarise[index] else crop


@pytest.mark.parametrize("seed", range(5))
def test_the_whole_chain_crop_by_crop(seed: int) -> None:
    section = AugmentationSection(
        brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.6, grayscale=0.3
    )
    x = pictures(seed, n=24)
    half = torch.full((24,), 0.5)
    colours = draw_colours(section, half, half * 0, torch.Generator().manual_seed(seed))
    expected = torch.stack([by_torchvision(crop, colours, i) for i, crop in enumerate(x)])
    result = x.clone()
    assert apply_colours(result, colours, 9) is result
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    untouched = ~(colours.jitter | colours.grayscale | colours.blur)
    assert untouched.any()
    assert torch.equal(result[untouched], x[untouched])


def test_parts_give_what_the_whole_gives() -> None:
    half = torch.full((24,), 0.5)
    colours = draw_colours(AugmentationSection(), half, half, torch.Generator().manual_seed(0))
    whole, parts = pictures(1, n=24), pictures(1, n=24)
    apply_colours(whole, colours, 9)
    for first in range(0, 24, 5):
        part = slice(first, first + 5)
        apply_colours(parts[part], colours.part(part), 9)
    torch.testing.assert_close(parts, whole, **TOLERANCE)


def test_draws_follow_the_configuration() -> None:
    section = AugmentationSection(
        jitter=0.8, brightness=0.3, contrast=0.2, saturation=0.1, hue=0.05, grayscale=0.2
    )
    n = 4000
    drawn = draw_colours(
        section,
        torch.full((n,), 0.1),
        torch.cat([torch.zeros(n // 2), torch.ones(n // 2)]),
        torch.Generator().manual_seed(0),
    )
    low, high = drawn.factors.amin(dim=0), drawn.factors.amax(dim=0)
    np.testing.assert_allclose(low, [0.7, 0.8, 0.9, -0.05], atol=5e-3)
    np.testing.assert_allclose(high, [1.3, 1.2, 1.1, 0.05], atol=5e-3)
    np.testing.assert_allclose(drawn.factors.mean(dim=0), [1, 1, 1, 0], atol=0.02)
    np.testing.assert_allclose([drawn.sigma.min(), drawn.sigma.max()], [0.1, 2.0], atol=5e-3)
    shares = [x.double().mean() for x in (drawn.jitter, drawn.grayscale, drawn.blur)]
    np.testing.assert_allclose(shares, [0.8, 0.2, 0.1], atol=0.03)
    assert not drawn.solarise[: n // 2].any()
    assert drawn.solarise[n // 2 :].all()
    assert sorted(drawn.order) == [0, 1, 2, 3]


def test_the_generator_moves_on_by_the_same_amount_whatever_is_drawn() -> None:
    after = []
    for section in (AugmentationSection(), AugmentationSection(jitter=0.0, grayscale=1.0)):
        generator = torch.Generator().manual_seed(0)
        draw_colours(section, torch.zeros(7), torch.ones(7), generator)
        after.append(torch.rand(1, generator=generator))
    assert torch.equal(*after)


def test_orders_differ_between_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(2)
    orders = {
        draw_colours(AugmentationSection(), zeros, zeros, generator).order for _ in range(200)
    }
    assert len(orders) == 24
