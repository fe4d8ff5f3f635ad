"""What an image may cost, and what it is when it costs too much or cannot be read."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from PIL import Image

DECODER_FAILURES: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Image.DecompressionBombError,
    Warning,
    struct.error,
    zlib.error,
)
"""What decoders raise on damaged files (`Warning`: when warnings are turned into errors)."""


class ImageError(ValueError):
    """A file is not a usable image. `reason` is for people and holds no path."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost. All limits are checked before pixels are decoded.

    `max_bytes`: size of the file. `max_pixels`: width times height as declared in the header
    (decoding takes 4 to 12 bytes for each). `min_side`: shorter side in pixels; less is no
    photograph of skin.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_pixels: int = 200_000_000
    min_side: int = 8


DEFAULT_LIMITS = ImageLimits()


def check_pixel_count(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse an image whose header declares too many or too few pixels.

    Raises
    ------
    ImageError
        If width times height is above `limits.max_pixels`, or a side below `limits.min_side`.
    """
    if width * height > limits.max_pixels:
        raise ImageError(
            f"too many pixels: {width} x {height}, the limit is {limits.max_pixels:,} in all"
        )
    if min(width, height) < limits.min_side:
        raise ImageError(
            f"too small: {width} x {height} pixels, each side needs at least {limits.min_side}"
        )
