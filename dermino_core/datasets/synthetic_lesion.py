"""Skin with one pigmented lesion on it, before any camera has seen it.

Light passes through a layer of melanin and blood and comes back: the colour is
``skin * exp(-(melanin * k_m + blood * k_b))`` for red, green and blue (Beer-Lambert). The classes
differ in what the ABCD rule looks at (asymmetry, border, colour, dermoscopic structure), each
drawn with much overlap; how dark and how large a lesion is says a little, its skin nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermino_core.datasets.synthetic_sites import CaseKind, SyntheticSite
from dermino_core.datasets.synthetic_textures import Plane, Textures, smoothstep

if TYPE_CHECKING:
    pass

CANVAS = 304
"""Side of the drawn skin in pixels: a picture of 256 with room to turn and move it."""

SKIN = np.array(
    [
        (0.93, 0.78, 0.71),
        (0.88, 0.71, 0.62),
        (0.80, 0.61, 0.49),
        (0.66, 0.46, 0.34),
        (0.47, 0.31, 0.22),
        (0.31, 0.20, 0.15),
    ],
    np.float32,
)
"""Mean colour of Fitzpatrick types I..VI, sRGB in 0..1."""

MELANIN = np.array((0.62, 1.10, 1.52), np.float32)
BLOOD = np.array((0.10, 0.85, 0.62), np.float32)
VEIL = np.array((0.36, 0.39, 0.49), np.float32)
SCAR = np.array((0.86, 0.78, 0.76), np.float32)

SPREAD_SHARED = 0.10
"""Standard deviation of what the four signs of one lesion have in common."""
SPREAD_SIGN = 0.15
"""Standard deviation of each sign for itself."""


@dataclass(frozen=True)
class Signs:
    """How suspicious each sign of the ABCD rule looks, 0..1."""

    asymmetry: float
    border: float
    colour: float
    structure: float


def draw_signs(rng: np.random.Generator, case: CaseKind) -> Signs:
    """The signs of one lesion of this kind; kinds overlap."""
    common = case.suspicion + SPREAD_SHARED * rng.standard_normal()
    values = np.clip(common + SPREAD_SIGN * rng.standard_normal(4), 0.0, 1.0)
    return Signs(*(float(value) for value in values))


def draw_lesion(
    rng: np.random.Generator, bank: Textures, site: SyntheticSite, signs: Signs, skin_type: int
) -> tuple[Plane, Plane]:
    """Draw skin of `skin_type` (1..6) with a lesion that shows `signs`.

    Returns
    -------
    colour, mask
        Reflectance `[CANVAS, CANVAS, 3]` in 0..1 and the lesion's cover `[CANVAS, CANVAS]` in
        0..1; the lesion's outline is where the cover is 0.5.
    """
    depth = _shape(rng, bank, site, signs)
    edge = float(rng.uniform(0.04, 0.13))
    cover = (1.0 / (1.0 + np.exp(np.clip(-depth / edge, -30, 30)))).astype(np.float32)
    melanin = _pigment(rng, bank, site, signs, depth) * cover
    skin, blood = _skin(rng, bank, site, skin_type)
    blood += _redness(rng, bank, depth, cover)

    colour = np.empty((CANVAS, CANVAS, 3), np.float32)
    for channel in range(3):
        optical = melanin * MELANIN[channel] + blood * BLOOD[channel]
        colour[..., channel] = SKIN[skin_type - 1, channel] * skin * np.exp(-optical)
    _cover_with(colour, VEIL * _tone(skin_type), _veil(rng, bank, signs) * cover)
    _cover_with(colour, SCAR * _tone(skin_type), _regression(rng, bank, signs) * cover)
    return colour, cover


def _cut(rng: np.random.Generator, bank: Textures, kind: str) -> Plane:
    return bank.cut(rng, kind, CANVAS)


def _tone(skin_type: int) -> float:
    return float(SKIN[skin_type - 1].mean() / SKIN[1].mean()) ** 0.5


def _ellipse(
    grid: Plane,
    rng: np.random.Generator,
    centre: tuple[float, float],
    radius: float,
    stretch: float,
) -> Plane:
    """1 at the centre, 0 on the ellipse, negative outside."""
    angle = rng.uniform(0, math.pi)
    down, across = grid[:, None] - np.float32(centre[0]), grid[None, :] - np.float32(centre[1])
    cosine, sine = math.cos(angle), math.sin(angle)
    first = (down * cosine + across * sine) / (radius * stretch)
    second = (across * cosine - down * sine) * (stretch / radius)
    return (1.0 - np.sqrt(first * first + second * second)).astype(np.float32)


def _shape(rng: np.random.Generator, bank: Textures, site: SyntheticSite, signs: Signs) -> Plane:
    """Depth inside the lesion: positive in it, 0 on its outline."""
    grid = np.linspace(-0.594, 0.594, CANVAS, dtype=np.float32)
    small, large = site.lesion_size
    radius = small + (large - small) * (0.65 * float(rng.random()) + 0.35 * signs.border)
    centre = (float(rng.normal(0, 0.025)), float(rng.normal(0, 0.025)))
    depth = _ellipse(grid, rng, centre, radius, float(rng.uniform(1.0, 1.22)))
    if signs.asymmetry > 0.15:
        way = rng.uniform(0, 2 * math.pi)
        reach = radius * (0.35 + 0.65 * signs.asymmetry)
        lobe_centre = (centre[0] + reach * math.sin(way), centre[1] + reach * math.cos(way))
        size = radius * float(rng.uniform(0.45, 0.75))
        lobe = _ellipse(grid, rng, lobe_centre, size, float(rng.uniform(1.0, 1.3)))
        sharp = 7.0
        joined = np.logaddexp(sharp * depth, sharp * (lobe * (size / radius))) / sharp
        depth = np.asarray(joined, np.float32) - np.float32(0.10 * signs.asymmetry)
    uneven = 0.06 + 0.26 * signs.border
    ragged = 0.01 + 0.055 * signs.border**1.5
    near = np.exp(-((depth / 0.5) ** 2))
    depth = depth + uneven * 0.8 * _cut(rng, bank, "fractal") * near
    return depth + ragged * _cut(rng, bank, "fine") * near


def _pigment(
    rng: np.random.Generator, bank: Textures, site: SyntheticSite, signs: Signs, depth: Plane
) -> Plane:
    """Melanin density over the lesion."""
    level = float(rng.uniform(0.55, 1.45)) + 0.5 * (signs.colour - 0.4)
    plateau = float(rng.uniform(0.0, 0.6))
    profile = 1.0 + plateau * (np.clip(depth, 0.0, 0.9) - 0.35)
    uneven = 0.10 + 0.55 * signs.colour
    clumps = uneven * _cut(rng, bank, "fractal") * 0.6
    if signs.colour > 0.3:
        clumps += 0.7 * uneven * (2.0 * smoothstep(_cut(rng, bank, "medium"), -0.4, 1.0) - 0.9)
    sided = 0.35 * signs.asymmetry * _cut(rng, bank, "broad")
    pigment = level * np.exp(0.75 * np.clip(clumps + sided, -1.4, 1.1)) * profile
    return pigment * _structures(rng, bank, site, signs) + 0.04 * _cut(rng, bank, "fine")


def _structures(
    rng: np.random.Generator, bank: Textures, site: SyntheticSite, signs: Signs
) -> Plane:
    """Network and globules as a factor around 1: fine and even, or wide and in patches."""
    strength = 1.0 if site.style == "dermoscopy" else 0.35
    patches = smoothstep(_cut(rng, bank, "medium"), -0.8 + signs.structure, 0.4 + signs.structure)
    pattern = rng.random()
    factor = np.ones((CANVAS, CANVAS), np.float32)
    if pattern < 0.7:
        wide = signs.structure > 0.55 + 0.12 * rng.standard_normal()
        lines = _cut(rng, bank, "wide_network" if wide else "network")
        weight = strength * float(rng.uniform(0.25, 0.60))
        spread = 1.0 - signs.structure * (1.0 - patches)
        factor += weight * (lines - 0.5) * spread
    if pattern > 0.45:
        dots = _cut(rng, bank, "globules")
        factor += strength * (0.35 + 0.5 * signs.structure) * dots * (0.25 + 0.75 * patches)
    return factor


def _veil(rng: np.random.Generator, bank: Textures, signs: Signs) -> Plane:
    """Blue-white veil: more of it the more colours a lesion has."""
    amount = float(np.clip(signs.colour + 0.18 * rng.standard_normal() - 0.50, 0.0, 0.4))
    haze = smoothstep(_cut(rng, bank, "broad") + 0.6 * _cut(rng, bank, "fractal"), -0.2, 2.0)
    return np.float32(2.1 * amount) * haze


def _regression(rng: np.random.Generator, bank: Textures, signs: Signs) -> Plane:
    """Scar-like pale areas."""
    amount = float(np.clip(signs.colour + 0.2 * rng.standard_normal() - 0.5, 0.0, 0.45))
    return np.float32(1.4 * amount) * smoothstep(_cut(rng, bank, "fractal"), 0.2, 2.2)


def _redness(rng: np.random.Generator, bank: Textures, depth: Plane, cover: Plane) -> Plane:
    """Blood: a faint halo, and now and then red areas inside. Says nothing about the class."""
    halo = np.exp(-(((depth + 0.12) / 0.28) ** 2)) * float(rng.uniform(0.0, 0.14))
    inside = float(rng.choice((0.05, 0.2, 0.5), p=(0.6, 0.3, 0.1)))
    return halo + inside * cover * smoothstep(_cut(rng, bank, "medium"), 0.0, 1.5)


def _skin(
    rng: np.random.Generator, bank: Textures, site: SyntheticSite, skin_type: int
) -> tuple[Plane, Plane]:
    """Brightness (about 1) and blood density of the skin around."""
    close = site.style == "dermoscopy"
    brightness = 1.0 + 0.03 * rng.standard_normal() + 0.025 * _cut(rng, bank, "medium")
    lines = 0.035 if close else 0.06
    brightness -= lines * float(rng.uniform(0.3, 1.2)) * _cut(rng, bank, "furrows")
    brightness += 0.012 * _cut(rng, bank, "fine")
    brightness -= float(rng.uniform(0.0, 0.10)) * _cut(rng, bank, "pores")
    if skin_type <= 3 and rng.random() < 0.25:
        freckles = smoothstep(_cut(rng, bank, "fractal"), 0.9, 2.2)
        brightness -= float(rng.uniform(0.08, 0.25)) * freckles
    blood = 0.06 + 0.05 * abs(rng.standard_normal()) + 0.03 * _cut(rng, bank, "broad")
    return brightness.astype(np.float32), np.maximum(blood, 0.0).astype(np.float32)


def _cover_with(colour: Plane, paint: Plane, amount: Plane) -> None:
    share = np.clip(amount, 0.0, 0.85)
    for channel in range(3):
        colour[..., channel] += share * (paint[channel] - colour[..., channel])
