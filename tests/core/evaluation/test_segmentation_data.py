"""Masks: read whatever is unambiguous, leave out the rest by name, keep the geometry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermino_core.errors import DerminoError
from dermino_core.evaluation import segmentation_data
from dermino_core.evaluation.segmentation_data import (
    MaskedImage,
    mask_square,
    masked_images,
    prepare_masked,
    read_mask,
    scratch_array,
    whole_square,
)
from dermino_core.image_limits import ImageError
from dermino_core.manifest import read_manifest


def disc(height: int = 120, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - height * 0.4) ** 2 + (x - width * 0.55) ** 2 < (0.3 * height) ** 2


def save(folder: Path, image: Image.Image, name: str = "mask.png", **options: object) -> Path:
    file = folder / name
    image.save(file, **options)
    return file


EXACT: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "0 and 255": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "0 and 1": lambda m: Image.fromarray(m.astype(np.uint8)),
    "0 and 128": lambda m: Image.fromarray(m.astype(np.uint8) * 128),
    "one bit": lambda m: Image.fromarray(m),
    "16 bits": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "RGB": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("RGB"),
    "opaque RGBA": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("RGBA"),
    "palette": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("P"),
}


@pytest.mark.parametrize("kind", EXACT)
def test_binary_masks_are_read_exactly(kind: str, tmp_path: Path) -> None:
    truth = disc()
    np.testing.assert_array_equal(read_mask(save(tmp_path, EXACT[kind](truth))), truth)


@pytest.mark.parametrize(("value", "lesion"), [(0, False), (1, True), (255, True)])
def test_masks_of_one_value(value: int, lesion: bool, tmp_path: Path) -> None:
    mask = read_mask(save(tmp_path, Image.new("L", (20, 10), value)))
    assert mask.shape == (10, 20)
    assert mask.all() == mask.any() == lesion


def test_masks_kept_as_jpeg_or_resized_smoothly(tmp_path: Path) -> None:
    truth = disc()
    gray = Image.fromarray(truth.astype(np.uint8) * 255)
    for quality in (50, 75, 95):
        file = save(tmp_path, gray, "mask.jpg", quality=quality)
        assert len(np.unique(np.asarray(Image.open(file)))) > 2
        assert np.mean(read_mask(file) != truth) < 1e-3
    smooth = gray.resize((240, 180), Image.Resampling.BILINEAR)
    expected = np.asarray(smooth) >= 128
    np.testing.assert_array_equal(read_mask(save(tmp_path, smooth)), expected)


def partly_transparent(truth: np.ndarray) -> Image.Image:
    image = Image.fromarray(truth.astype(np.uint8) * 255).convert("RGBA")
    image.putalpha(Image.fromarray(truth.astype(np.uint8) * 255))
    return image


def coloured(truth: np.ndarray) -> Image.Image:
    """Two classes that only their colour tells apart."""
    values = np.zeros((*truth.shape, 3), np.uint8)
    values[truth] = (128, 0, 0)
    values[:20] = (0, 128, 0)
    return Image.fromarray(values)


REFUSED: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "a photograph": (
        lambda m: Image.fromarray(np.linspace(0, 255, m.size).reshape(m.shape).astype(np.uint8)),
        "not binary: it has 256 gray values",
    ),
    "three classes": (
        lambda m: Image.fromarray(np.where(np.arange(m.shape[1]) < 40, 128, m * 255).astype("u1")),
        r"not binary: it has 3 gray values \(0, 128, 255\)",
    ),
    "classes from 1": (
        lambda m: Image.fromarray((100 + 20 * m).astype(np.uint8)),
        r"not binary: it has 2 gray values \(100, 120\)",
    ),
    "colours": (coloured, "coloured"),
    "transparency": (partly_transparent, "transparent"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_ambiguous_masks_are_refused(kind: str, tmp_path: Path) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(ImageError, match=reason):
        read_mask(save(tmp_path, make(disc())))


@pytest.mark.parametrize("shape", [(120, 160), (101, 67), (300, 70), (90, 71)])
def test_a_mask_stays_on_its_image(shape: tuple[int, int]) -> None:
    """A lesion and its mask, resized: the same area in the same place, to a tenth of a pixel."""
    truth, size = disc(*shape), 56
    picture = Image.fromarray(np.where(truth, 0, 255).astype(np.uint8)).convert("RGB")
    lesion = 1 - whole_square(picture, size, "bilinear")[..., 0] / 255
    mask = mask_square(truth, size)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    y, x = np.mgrid[:size, :size]
    for axis in (y, x):
        middle = [(axis * weight).sum() / weight.sum() for weight in (lesion, mask)]
        assert middle[0] == pytest.approx(middle[1], abs=0.1)
    assert np.abs(lesion - mask).mean() < 0.03
    assert mask.mean() == pytest.approx(truth.mean(), abs=0.02)


def test_nothing_is_cropped() -> None:
    """Corners of a wide image are still there."""
    values = np.zeros((40, 400, 3), np.uint8)
    values[:10, :100] = values[-10:, -100:] = 255
    square = whole_square(Image.fromarray(values), 16, "bicubic")
    assert square.shape == (16, 16, 3)
    assert square[0, 0].min() > 200
    assert square[-1, -1].min() > 200
    assert square[0, -1].max() < 50


def triangle(n: int, size: int) -> np.ndarray:
    """Weights [size, n] of linear resampling that covers every pixel when it shrinks."""
    step = n / size
    centres = (np.arange(size)[:, None] + 0.5) * step
    distance = np.abs(np.arange(n)[None] + 0.5 - centres) / max(step, 1)
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("shape", "size"), [((24, 36), 8), ((30, 200), 56), ((17, 19), 56)])
def test_a_pixel_is_lesion_if_half_of_it_is(shape: tuple[int, int], size: int) -> None:
    truth = disc(*shape)
    share = triangle(shape[0], size) @ truth @ triangle(shape[1], size).T
    sure = np.abs(share - 0.5) > 0.01
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(mask_square(truth, size)[sure] == 1, share[sure] > 0.5)


@pytest.fixture
def wild(tmp_path: Path) -> list[MaskedImage]:
    """Good images between all that can go wrong."""
    picture = Image.fromarray(np.full((30, 40, 3), 200, np.uint8))
    mask = Image.fromarray(disc(30, 40))
    good = save(tmp_path, picture, "image.png"), save(tmp_path, mask)
    text = tmp_path / "text.png"
    text.write_text("this is no picture")
    gray = Image.fromarray(np.arange(1200).reshape(30, 40).astype(np.uint8))
    pairs: list[tuple[Path, Path | None]] = [
        good,
        (good[0], None),
        (good[0], tmp_path / "nowhere.png"),
        (good[0], save(tmp_path, mask.resize((41, 30)), "other.png")),
        (good[0], save(tmp_path, mask.transpose(Image.Transpose.ROTATE_90), "turned.png")),
        (good[0], save(tmp_path, gray, "gray.png")),
        good,
        (good[0], text),
        (text, good[1]),
        (good[0], save(tmp_path, Image.new("L", (40, 30)), "empty.png")),
    ]
    return [MaskedImage(image, mask, f"unit {n}") for n, (image, mask) in enumerate(pairs)]


def test_what_cannot_be_used_is_left_out(
    wild: list[MaskedImage], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = prepare_masked(wild, size=16, interpolation="bicubic", title="test")
    assert found.units == ("unit 0", "unit 6", "unit 9")
    assert found.pixels.shape == (3, 16, 16, 3)
    assert found.masks.shape == (3, 16, 16)
    np.testing.assert_array_equal(found.masks[0], mask_square(disc(30, 40), 16))
    np.testing.assert_array_equal(found.masks[1], found.masks[0])
    assert not found.masks[2].any()
    assert (found.pixels == 200).all()
    first, second = found.notes
    assert first.startswith("7 test images are left out: ")
    for reason in (
        "no mask is named for it (1)",
        "mask: no such file (1)",
        "the mask has another size than its image (2)",
        "mask: the mask is not binary: it has 256 gray values (0, 1, 2, 3, ...) (1)",
        "mask: not an image in a known format",
        "image: not an image in a known format",
    ):
        assert reason in first
    assert second.startswith("1 test images have an empty mask")
    assert str(wild[0].image.parent) not in " ".join(found.notes)
    assert len(caplog.records) == 7
    assert str(wild[1].image) in caplog.text


def test_many_images_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_data, "_CHUNK", 4)
    mask = save(tmp_path, Image.fromarray(disc(20, 20)))
    examples = []
    for n in range(11):
        image = save(tmp_path, Image.new("RGB", (20, 20), (10 * n, 0, 0)), f"{n}.png")
        examples.append(MaskedImage(image, mask if n != 5 else None, str(n)))
    found = prepare_masked(examples, size=8, interpolation="bicubic", title="test")
    expected = [n for n in range(11) if n != 5]
    assert found.units == tuple(map(str, expected))
    assert found.pixels[:, 0, 0, 0].tolist() == [10 * n for n in expected]


def test_a_table_names_images_and_masks(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,mask\na.png,m/a.png\nb.png,\nc.png,m/c.png\n")
    manifest = read_manifest(table)
    found = masked_images(manifest, np.array([2, 1]), ["one", "two", "three"])
    root = tmp_path.resolve()
    assert found == [
        MaskedImage(root / "c.png", root / "m" / "c.png", "three"),
        MaskedImage(root / "b.png", None, "two"),
    ]
    table.write_text("image,mask\na.png,../../etc/passwd\n")
    with pytest.raises(DerminoError, match="outside the image folder"):
        masked_images(read_manifest(table), [0], ["one"])


def test_working_space_that_cannot_be_had(tmp_path: Path) -> None:
    array = scratch_array((3, 4), np.float16, tmp_path)
    array[:] = 7
    assert array.sum() == 84
    assert list(tmp_path.iterdir()) == []
    assert scratch_array((0, 4), np.uint8, tmp_path).shape == (0, 4)
    with pytest.raises(DerminoError, match="working space") as caught:
        scratch_array((2**50,), np.float16, tmp_path)
    assert caught.value.code == "CACHE_UNWRITABLE"
    with pytest.raises(DerminoError, match="working space"):
        scratch_array((8,), np.float16, tmp_path / "nowhere")
