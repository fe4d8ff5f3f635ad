"""A hash of what a picture shows, which copies of it share.

The signs of the 16 x 16 lowest cosine frequencies of the luminance: 256 bits, of which the first
64 (8 x 8 frequencies) are the hash known as pHash and the others confirm it. On dermoscopic images
the first 64 alone are not enough, as most show a dark spot in the middle of light skin. Scale,
compression, brightness and colour hardly move the signs. Mirroring turns the sign of odd
frequencies and a quarter turn exchanges rows and columns, so that all eight orientations follow
from one hash. Cutting off an edge does move the signs; an image is therefore hashed six times:
whole, without :data:`CROP` of each side at the edges all around, and at each of the four corners.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

FREQUENCIES = 16
"""Frequencies along each side."""

WORDS = 4
"""64-bit words of one hash; the first holds the 8 x 8 lowest frequencies."""

BITS = FREQUENCIES**2 - 1
"""Bits that tell something: all but the mean brightness, whose bit is always 0."""

CROPS = 6
"""Hashes of one image: whole, centre, upper left, upper right, lower left, lower right."""

CROP = 0.06
"""Share of the width and of the height that the five smaller crops leave out.

Measured (see :mod:`dermino_core.near_duplicates`): 0.05 loses copies that were cut by 10 %, 0.08
those cut by 5 % at one corner."""

ORIENTATIONS = 8

THUMBNAIL = 64
"""Side in pixels of the square that is hashed; the shape of the image does not matter."""

SMALLEST_CONTRAST = 2.0
"""Standard deviation of the luminance (0..255) below which an image shows too little to hash."""


def perceptual_hash(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Hash one image.

    Parameters
    ----------
    image
        Any mode that Pillow converts to luminance.

    Returns
    -------
    tuple
        uint64 [6, 4]: for each of :data:`CROPS` its 256 bits; and whether the image has
        enough contrast for the hash to mean anything.
    """
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, dtype=np.float64)
    rows, columns = _crop_bases()
    frequencies = rows @ pixels @ columns.transpose(0, 2, 1)
    return pack(frequencies > 0), bool(pixels.std() >= SMALLEST_CONTRAST)


def oriented(hashes: np.ndarray) -> np.ndarray:
    """The hashes that mirrored and turned copies would have.

    Parameters
    ----------
    hashes
        uint64 [..., 4].

    Returns
    -------
    np.ndarray
        uint64 [..., 8, 4]: first the hash itself, then mirrored left to right, top to bottom and
        both, then the same four of the transposed image.
    """
    bits = unpack(hashes)
    both = np.stack([hashes, pack(np.swapaxes(bits, -1, -2))], axis=-2)
    return (both[..., :, None, :] ^ _mirror_masks()).reshape(
        *hashes.shape[:-1], ORIENTATIONS, WORDS
    )


def distance(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number of differing bits, 0..255: int64 [...] of uint64 [..., 4] (broadcast)."""
    return np.bitwise_count(hashes ^ others).sum(axis=-1, dtype=np.int64)


def pack(bits: np.ndarray) -> np.ndarray:
    """Signs, bool [..., 16, 16] (vertical, horizontal frequency), to uint64 [..., 4].

    The bit of the mean brightness is cleared.
    """
    flat = bits.reshape(*bits.shape[:-2], FREQUENCIES**2)[..., _bit_order()]
    flat[..., 0] = False
    octets = np.ascontiguousarray(np.packbits(flat, axis=-1, bitorder="little"))
    return octets.view("<u8").astype(np.uint64)


def unpack(hashes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`pack`: bool [..., 16, 16]."""
    octets = np.ascontiguousarray(hashes.astype("<u8")).view(np.uint8)
    flat = np.unpackbits(octets, axis=-1, bitorder="little").astype(bool)
    bits = np.empty_like(flat)
    bits[..., _bit_order()] = flat
    return bits.reshape(*hashes.shape[:-1], FREQUENCIES, FREQUENCIES)


@functools.cache
def _bit_order() -> np.ndarray:
    """Place in the 16 x 16 square of each bit: the 8 x 8 lowest frequencies first."""
    places = np.arange(FREQUENCIES**2).reshape(FREQUENCIES, FREQUENCIES)
    low = np.zeros(places.shape, dtype=bool)
    low[:8, :8] = True
    return np.concatenate([places[low], places[~low]])


@functools.cache
def _mirror_masks() -> np.ndarray:
    """uint64 [4, 4]: which bits turn in no mirror, left to right, top to bottom, both."""
    odd = np.arange(FREQUENCIES) % 2 == 1
    horizontal = np.broadcast_to(odd[None, :], (FREQUENCIES, FREQUENCIES))
    vertical = horizontal.T
    return pack(np.stack([horizontal & ~horizontal, horizontal, vertical, horizontal ^ vertical]))


@functools.cache
def _crop_bases() -> tuple[np.ndarray, np.ndarray]:
    """Cosine transforms of the rows and of the columns, float64 [6, 16, 64], one per crop."""
    whole, middle = _cosines(0, 1), _cosines(CROP / 2, 1 - CROP / 2)
    low, high = _cosines(0, 1 - CROP), _cosines(CROP, 1)
    return (
        np.stack([whole, middle, low, low, high, high]),
        np.stack([whole, middle, low, high, low, high]),
    )


def _cosines(start: float, end: float) -> np.ndarray:
    """Cosine transform of a part of the side, float64 [16, 64].

    Each cosine is integrated over each pixel, so that a crop may begin within one.
    """
    edges = np.clip(np.arange(THUMBNAIL + 1) / THUMBNAIL, start, end)
    phase = np.pi * (edges - start) / (end - start)
    wave = np.arange(1, FREQUENCIES)[:, None]
    integrals = np.diff(np.sin(wave * phase), axis=1) / (np.pi * wave)
    return np.concatenate([np.diff(phase)[None] / np.pi, integrals])
