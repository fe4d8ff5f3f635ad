"""Views of a batch: shapes, chance, normalisation, and sizes that do not fit."""

from __future__ import annotations

import pytest
import torch

from dermino_core.errors import DerminoError
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Views,
    check_sizes,
    local_size,
    make_views,
)

SIZES = torch.tensor([[60, 80], [64, 64], [40, 79]])
PLAIN = {
    "horizontal_flip": 0,
    "vertical_flip": 0,
    "right_angles": 0,
    "jitter": 0,
    "blur": (0, 0, 0),
}


def configured(crops: dict | None = None, **augmentation: object) -> PretrainConfig:
    small = {"global_size": 32, "local_size": 16, "local_count": 3}
    return PretrainConfig.model_validate(
        {"crops": {**small, **(crops or {})}, "augmentation": augmentation}
    )


def noise(seed: int = 0, side: tuple[int, int] = (64, 80)) -> torch.Tensor:
    """Images over the whole canvas: also where none should be read."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 3, *side), dtype=torch.uint8, generator=generator)


def views(config: PretrainConfig, seed: int = 0, images: torch.Tensor | None = None) -> Views:
    images = noise() if images is None else images
    return make_views(images, SIZES, config, 8, torch.Generator().manual_seed(seed))


def locals_of(made: Views) -> torch.Tensor:
    assert made.local_crops is not None
    return made.local_crops


def test_shapes() -> None:
    made = views(configured())
    assert made.global_crops.shape == (2, 3, 3, 32, 32)
    assert locals_of(made).shape == (3, 3, 3, 16, 16)
    assert made.global_crops.dtype == locals_of(made).dtype == torch.float32
    assert torch.isfinite(made.global_crops).all()


def test_without_local_crops() -> None:
    made = views(configured({"local_count": 0}))
    assert made.local_crops is None
    assert torch.equal(made.global_crops, views(configured()).global_crops)


def test_only_the_generator_decides() -> None:
    one, same, other = (views(configured(), seed) for seed in (0, 0, 1))
    assert torch.equal(one.global_crops, same.global_crops)
    assert torch.equal(locals_of(one), locals_of(same))
    assert not torch.equal(one.global_crops, other.global_crops)
    assert not torch.equal(one.global_crops[0], one.global_crops[1])


def test_the_canvas_beyond_an_image_is_never_seen() -> None:
    images = noise()
    beyond = images.clone()
    for image, (height, width) in zip(beyond, SIZES.tolist(), strict=True):
        image[:, height:] = 255
        image[:, :, width:] = 255
    one, other = views(configured(), 3, images), views(configured(), 3, beyond)
    assert torch.equal(one.global_crops, other.global_crops)
    assert torch.equal(locals_of(one), locals_of(other))


def test_normalisation() -> None:
    images = torch.full((3, 3, 64, 80), 51, dtype=torch.uint8)
    made = views(configured(**PLAIN), images=images)
    for channel in range(3):
        expected = (0.2 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        for crops in (made.global_crops, locals_of(made)):
            plane = crops[:, :, channel]
            torch.testing.assert_close(plane, torch.full_like(plane, expected))


def test_own_mean_and_std() -> None:
    images = torch.full((3, 3, 64, 80), 255, dtype=torch.uint8)
    made = make_views(
        images,
        SIZES,
        configured(**PLAIN),
        8,
        torch.Generator().manual_seed(0),
        mean=(0.5, 0.0, 1.0),
        std=(0.5, 0.25, 1.0),
    )
    means = made.global_crops.mean(dim=(0, 1, 3, 4))
    torch.testing.assert_close(means, torch.tensor([1.0, 4.0, 0.0]), atol=1e-5, rtol=0)


def test_a_whole_image_in_all_eight_orientations() -> None:
    config = configured(
        {"global_scale": (1.0, 1.0), "aspect": (1.0, 1.0)}, jitter=0, blur=(0, 0, 0)
    )
    images = noise(7, (64, 64))[:1]
    plain = configured({"global_scale": (1.0, 1.0), "aspect": (1.0, 1.0)}, **PLAIN)
    sizes = torch.tensor([[64, 64]])
    base = make_views(images, sizes, plain, 8, torch.Generator().manual_seed(0)).global_crops[0, 0]
    turns = [torch.rot90(base, k, (1, 2)) for k in range(4)]
    orientations = torch.stack(turns + [turn.flip(2) for turn in turns])
    seen = set()
    for seed in range(60):
        made = make_views(images, sizes, config, 8, torch.Generator().manual_seed(seed))
        for crop in made.global_crops[:, 0]:
            distance = (orientations - crop).abs().amax(dim=(1, 2, 3))
            assert distance.min() < 1e-5
            seen.add(int(distance.argmin()))
    assert seen == set(range(8))


def test_solarisation_and_blur_are_of_the_views_they_belong_to() -> None:
    plain = views(configured(**PLAIN))
    solarised = views(configured(**{**PLAIN, "solarise": 1.0}))
    assert torch.equal(solarised.global_crops[0], plain.global_crops[0])
    assert not torch.equal(solarised.global_crops[1], plain.global_crops[1])
    assert torch.equal(locals_of(solarised), locals_of(plain))
    for place in range(3):
        blurred = views(configured(**{**PLAIN, "blur": [float(i == place) for i in range(3)]}))
        changed = [
            not torch.equal(blurred.global_crops[0], plain.global_crops[0]),
            not torch.equal(blurred.global_crops[1], plain.global_crops[1]),
            not torch.equal(locals_of(blurred), locals_of(plain)),
        ]
        assert changed == [i == place for i in range(3)]


def test_crops_of_their_cached_parts_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured(grayscale=0.3, blur=(0.5, 0.5, 0.5), solarise=0.5)
    whole = views(config, 5)
    monkeypatch.setattr("dermino_core.pretraining.views.CACHED_VALUES", 1)
    torch.testing.assert_close(views(config, 5).global_crops, whole.global_crops)


@pytest.mark.parametrize(
    ("patch", "global_size", "local"),
    [(14, 224, 98), (16, 224, 96), (8, 224, 96), (14, 140, 98), (14, 98, 42), (4, 32, 16)],
)
def test_local_size(patch: int, global_size: int, local: int) -> None:
    config = configured({"global_size": global_size, "local_size": None})
    assert local_size(config, patch) == local
    check_sizes(config, patch)
    assert local_size(configured({"local_size": 70}), patch) == 70


@pytest.mark.parametrize(
    ("crops", "patch", "where", "nearest"),
    [
        ({"global_size": 224, "local_size": 98}, 16, "crops.local_size", "Use 96 or 112."),
        ({"global_size": 230, "local_size": 98}, 14, "crops.global_size", "Use 224 or 238."),
        ({"global_size": 10, "local_count": 0}, 14, "crops.global_size", "Use 14."),
    ],
)
def test_patches_that_do_not_divide_a_crop(
    crops: dict, patch: int, where: str, nearest: str
) -> None:
    with pytest.raises(DerminoError, match="cannot be cut into patches") as caught:
        check_sizes(configured(crops), patch)
    assert caught.value.code == "CONFIG_INVALID"
    assert caught.value.where == where
    assert caught.value.fix == nearest


def test_local_sizes_do_not_matter_without_local_crops() -> None:
    check_sizes(configured({"global_size": 224, "local_size": 98, "local_count": 0}), 16)


@pytest.mark.parametrize("kernel", [8, 33])
def test_a_blur_that_does_not_suit(kernel: int) -> None:
    with pytest.raises(DerminoError, match=f"A blur of {kernel} pixels does not suit"):
        check_sizes(configured(blur_kernel=kernel), 8)
    check_sizes(configured(blur_kernel=kernel, blur=(0, 0, 0)), 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_makes_the_same_views() -> None:
    config = configured(grayscale=0.3, blur=(0.5, 0.5, 0.5), solarise=0.5)
    here = views(config, 9)
    generator = torch.Generator().manual_seed(9)
    there = make_views(noise().cuda(), SIZES.cuda(), config, 8, generator)
    for one, other in (
        (here.global_crops, there.global_crops),
        (locals_of(here), locals_of(there)),
    ):
        assert other.is_cuda
        different = (one - other.cpu()).abs() > 1e-3
        assert different.double().mean() < 1e-3
