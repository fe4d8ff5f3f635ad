"""A bank of seeded textures that every synthetic picture takes random cuts from.

Noise in the frequency domain costs milliseconds; a cut from the bank costs none. With random
offsets, flips and several variants no two pictures share a cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Plane: TypeAlias = NDArray[np.floating]
"""One value per pixel."""

SIDE = 512
"""Side of a bank texture in pixels; textures wrap around without a seam."""

_SEED = 20240817
"""The bank is the same for all sites and seeds: a seed chooses cuts from it."""


class Textures:
    """The bank. `cut` takes a random square from it; thread-safe, since it only reads."""

    def __init__(self, planes: Mapping[str, tuple[Plane, ...]]) -> None:
        self.planes = planes

    def cut(self, rng: np.random.Generator, kind: str, side: int) -> Plane:
        """A random `[side, side]` view of a texture of this kind, flipped at random.

        `kind` is one of `broad`, `fractal`, `medium`, `fine`, `grain` (noise of mean 0 and
        standard deviation 1, by falling size of its features), `network`, `wide_network`,
        `globules`, `furrows`, `pores` (masks in 0..1). `side` is at most :data:`SIDE`.
        """
        variants = self.planes[kind]
        plane = variants[int(rng.integers(len(variants)))]
        top, left = rng.integers(0, SIDE - side + 1, 2)
        flips = int(rng.integers(8))
        view = plane[top : top + side, left : left + side]
        if flips & 1:
            view = view[::-1]
        if flips & 2:
            view = view[:, ::-1]
        return view.T if flips & 4 else view


def _unit(plane: NDArray[np.floating]) -> Plane:
    return ((plane - plane.mean()) / plane.std()).astype(np.float32)


def smoothstep(value: Plane, low: float, high: float) -> Plane:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return (share * share * (3.0 - 2.0 * share)).astype(np.float32)


def _filtered(rng: np.random.Generator, gain: NDArray[np.floating]) -> Plane:
    """White noise with the amplitude spectrum `gain` [SIDE, SIDE // 2 + 1]."""
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    return _unit(np.fft.irfft2(spectrum * gain, s=(SIDE, SIDE)))


def _network(rng: np.random.Generator, warp: Plane, period: float) -> Plane:
    """A honeycomb of lines (1) and holes (0), bent by noise; `period` in pixels."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    bent = np.roll(warp, SIDE // 3, axis=0)
    x, y = x + 1.3 * period * warp, y + 1.3 * period * bent
    turn = rng.uniform(0, np.pi)
    waves = np.zeros((SIDE, SIDE), np.float32)
    for third in range(3):
        angle = turn + third * np.pi / 3
        phase = 2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle))
        waves += np.cos(phase + rng.uniform(0, 2 * np.pi) * (third == 0))
    faded = -waves + 0.45 * np.roll(bent, SIDE // 5, axis=1)
    return smoothstep(faded, -1.1, 1.3)


@lru_cache(maxsize=1)
def textures() -> Textures:
    """The bank, made once in a process (some 0.5 s)."""
    rng = np.random.default_rng(_SEED)
    down = np.fft.fftfreq(SIDE)[:, None]
    across = np.fft.rfftfreq(SIDE)[None, :]
    radius = np.hypot(down, across)

    def low(wavelength: float) -> NDArray[np.floating]:
        return np.exp(-((radius * wavelength) ** 2))

    def band(wavelength: float, width: float = 0.35) -> NDArray[np.floating]:
        safe = np.maximum(radius, 1e-6)
        return np.exp(-((np.log(safe * wavelength) / width) ** 2))

    def along(wavelength: float, angle: float) -> NDArray[np.floating]:
        """Stretched stripes."""
        first = down * np.cos(angle) + across * np.sin(angle)
        second = across * np.cos(angle) - down * np.sin(angle)
        distance = np.hypot(first, 2.6 * second)
        return np.exp(-((np.log(np.maximum(distance, 1e-6) * wavelength) / 0.35) ** 2))

    def many(gain: NDArray[np.floating], count: int) -> tuple[Plane, ...]:
        return tuple(_filtered(rng, gain) for _ in range(count))

    medium = many(low(42.0), 5)
    fractal = np.where(radius > 0, np.maximum(radius, 1 / 160) ** -1.75, 0.0)
    furrows = tuple(
        np.maximum(
            np.exp(-((_filtered(rng, along(15.0, angle)) / 0.20) ** 2)),
            np.exp(-((_filtered(rng, along(18.0, angle + 1.1)) / 0.20) ** 2)),
        ).astype(np.float32)
        for angle in (0.3, 0.9, 1.5)
    )
    return Textures(
        {
            "broad": many(low(150.0), 5),
            "fractal": many(fractal, 5),
            "medium": medium,
            "fine": many(low(11.0), 3),
            "grain": many(low(2.4), 3),
            "network": tuple(_network(rng, plane, 8.5) for plane in medium[:3]),
            "wide_network": tuple(_network(rng, plane, 14.0) for plane in medium[2:5]),
            "globules": tuple(smoothstep(plane, 0.9, 1.5) for plane in many(band(11.0), 3)),
            "furrows": furrows,
            "pores": tuple(smoothstep(plane, 1.5, 2.3) for plane in many(band(7.0), 2)),
        }
    )
