"""From drawn skin to a JPEG file: view, hair, ruler, light, lens, colour cast, noise."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dermino_core.datasets.synthetic_lesion import CANVAS
from dermino_core.datasets.synthetic_sites import SyntheticSite
from dermino_core.datasets.synthetic_textures import Plane, Textures

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 256
"""Side of a synthetic picture in pixels."""

_LARGEST_TURN = 8.0
"""Degrees; the turned and moved picture must stay on the canvas."""


def photograph(
    rng: np.random.Generator,
    bank: Textures,
    site: SyntheticSite,
    colour: Plane,
    cover: Plane | None,
) -> tuple[bytes, NDArray[np.bool_] | None]:
    """One photograph of a drawn lesion.

    Parameters
    ----------
    colour, cover
        As :func:`~dermino_core.datasets.synthetic_lesion.draw_lesion` returns them; `None` for a
        cover where no mask is wanted.

    Returns
    -------
    jpeg, mask
        The file's bytes, and where the lesion is, `[SIDE, SIDE]`, or `None`.
    """
    flips = int(rng.integers(8))
    view = _view(rng)
    skin = _flip(np.clip(colour * 255.0, 0, 255).astype(np.uint8), flips)
    picture = _move(Image.fromarray(skin), view)
    mask = None
    if cover is not None:
        lesion = _flip((cover * 255.0).astype(np.uint8), flips)
        mask = np.asarray(_move(Image.fromarray(lesion), view)) >= 128

    if rng.random() < site.hair:
        _paste_hair(rng, picture)
    if rng.random() < site.ruler:
        _paste_ruler(rng, picture)
    radius = float(rng.uniform(0.0, site.camera.blur))
    if radius > 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(radius))
    return _expose(rng, bank, site, picture), mask


def _view(rng: np.random.Generator) -> tuple[float, float, float, float, float, float]:
    """The affine map from picture to canvas: a small turn, zoom and shift."""
    turn = np.deg2rad(rng.uniform(-_LARGEST_TURN, _LARGEST_TURN))
    zoom = rng.uniform(0.90, 1.0)
    cosine, sine = zoom * np.cos(turn), zoom * np.sin(turn)
    shift = rng.uniform(-6.0, 6.0, 2)
    half = SIDE / 2
    left = CANVAS / 2 + shift[0] - cosine * half - sine * half
    top = CANVAS / 2 + shift[1] + sine * half - cosine * half
    return (cosine, sine, left, -sine, cosine, top)


def _move(image: Image.Image, view: tuple[float, ...]) -> Image.Image:
    return image.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, view, resample=Image.Resampling.BILINEAR
    )


def _flip(array: NDArray[np.uint8], flips: int) -> NDArray[np.uint8]:
    if flips & 1:
        array = array[::-1]
    if flips & 2:
        array = array[:, ::-1]
    if flips & 4:
        array = array.swapaxes(0, 1)
    return np.ascontiguousarray(array)


def _paste_hair(rng: np.random.Generator, picture: Image.Image) -> None:
    """Curved hairs in one colour, drawn at double size for soft edges."""
    layer = Image.new("L", (2 * SIDE, 2 * SIDE))
    pen = ImageDraw.Draw(layer)
    main = rng.uniform(0, np.pi)
    steps = np.linspace(0.0, 1.0, 14)[:, None]
    for _ in range(int(rng.integers(2, 22))):
        way = main + rng.normal(0, 0.45)
        heading = np.array((np.cos(way), np.sin(way)))
        length = rng.uniform(0.25, 1.1) * 2 * SIDE
        start = rng.uniform(-0.1, 1.1, 2) * 2 * SIDE - heading * length / 2
        end = start + heading * length
        bend = (start + end) / 2 + rng.normal(0, 0.12 * length, 2)
        curve = (1 - steps) ** 2 * start + 2 * (1 - steps) * steps * bend + steps**2 * end
        points = [(float(x), float(y)) for x, y in curve]
        pen.line(points, fill=int(rng.integers(150, 245)), width=int(rng.integers(1, 4)))
    dark = rng.uniform(0.05, 0.35)
    colour = tuple(int(255 * dark * gain) for gain in (1.0, 0.78, 0.62))
    picture.paste(colour, (0, 0), layer.resize((SIDE, SIDE), Image.Resampling.BOX))


def _paste_ruler(rng: np.random.Generator, picture: Image.Image) -> None:
    """Ticks of a millimetre scale along one edge, every fifth longer."""
    layer = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(layer)
    gap = float(rng.uniform(7.0, 13.0))
    base = float(rng.uniform(6.0, 16.0))
    slope = float(rng.uniform(-0.06, 0.06))
    first = float(rng.uniform(0.0, gap))
    for tick in range(int(SIDE / gap)):
        x = first + tick * gap
        y = base + slope * x
        length = 13.0 if tick % 5 == 0 else 7.0
        pen.line([(x, y), (x - slope * length, y + length)], fill=215, width=1)
    pen.line([(0, base), (SIDE, base + slope * SIDE)], fill=215, width=1)
    quarter = int(rng.integers(4))
    turned = layer.rotate(90 * quarter)
    picture.paste((28, 28, 32), (0, 0), turned)


def _expose(
    rng: np.random.Generator, bank: Textures, site: SyntheticSite, picture: Image.Image
) -> bytes:
    """Light, lens, colour cast, noise, gamma and JPEG."""
    camera = site.camera
    axis = np.linspace(-1.0, 1.0, SIDE, dtype=np.float32)
    down, across = axis[:, None], axis[None, :]
    tilt = rng.normal(0.0, 0.4, 2) * camera.shading
    light = 1.0 + np.float32(tilt[0]) * down + np.float32(tilt[1]) * across
    distance = down * down + across * across
    light = light - np.float32(camera.shading * rng.uniform(0.1, 0.5)) * distance
    light = light * np.float32(np.exp(rng.normal(0.0, 0.07)))
    light = light + camera.noise * bank.cut(rng, "grain", SIDE)
    if rng.random() < site.vignette:
        rim = np.float32(rng.uniform(0.98, 1.22))
        soft = np.float32(rng.uniform(0.03, 0.09))
        middle = rng.normal(0.0, 0.04, 2).astype(np.float32)
        away = np.sqrt((down - middle[0]) ** 2 + (across - middle[1]) ** 2)
        light = light / (1.0 + np.exp(np.clip((away - rim) / soft, -30, 30)))
    glare = _glare(rng, bank, site)

    gains = np.asarray(camera.gains, np.float32) * np.exp(rng.normal(0.0, 0.025, 3))
    curve = np.linspace(0.0, 1.0, 1024) ** (camera.gamma * np.exp(rng.normal(0.0, 0.05)))
    tones = np.clip(curve * 255.0 + 0.5, 0, 255).astype(np.uint8)
    seen = np.asarray(picture)
    result = np.empty_like(seen)
    for channel in range(3):
        value = seen[..., channel] * (light * np.float32(gains[channel] * 1023 / 255))
        if glare is not None:
            value += glare
        result[..., channel] = tones[np.clip(value, 0, 1023).astype(np.int16)]
    file = io.BytesIO()
    quality = int(rng.integers(camera.jpeg_quality[0], camera.jpeg_quality[1] + 1))
    Image.fromarray(result).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _glare(rng: np.random.Generator, bank: Textures, site: SyntheticSite) -> Plane | None:
    """Specular spots: flash on bare skin, small sparks under a contact dermoscope."""
    if rng.random() > 0.35:
        return None
    strength = rng.uniform(40, 230)
    spots = bank.cut(rng, "pores", SIDE)
    if site.style == "dermoscopy":
        strength *= 1.4
    where = np.clip(bank.cut(rng, "broad", SIDE) - 0.4, 0.0, 1.0)
    return np.float32(strength) * spots * where
