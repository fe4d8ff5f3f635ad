"""Decode untrusted image files safely.

Hospitals hand us whatever lies in a folder: truncated downloads, text files named .jpg, images
that claim a million pixels a side. :func:`decode_image` either returns an upright RGB image or
raises :class:`ImageError` with a reason a person can read. Every function here may be called from
many threads at once.

Colour profiles are ignored: the public data sets were trained on without them.
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from dermino_core.image_limits import (
    DECODER_FAILURES,
    DEFAULT_LIMITS,
    ImageError,
    ImageLimits,
    check_pixel_count,
)

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
"""The only decoders a file may reach (DICOM apart). PostScript, PSD and the like never open."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels. White, as in the viewer where the image was cut out;
black would draw an edge that a network can take for pigment."""

# Pillow's own limit warns above 89 megapixels and refuses above 179, per process. Ours is checked
# against every header before any pixel is decoded, so that one is switched off.
Image.MAX_IMAGE_PIXELS = None
# Damaged EXIF is not worth a line per image on the terminal; the pixels decide.
warnings.filterwarnings("ignore", module=r"PIL\.")

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"GIF8", "GIF"),
)
_CHUNK = 16 * 1024 * 1024
_WIDE_MODES = ("I", "F")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BIT_DEPTHS = (8, 10, 12, 14, 16)
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def decode_image(
    source: Path | bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    short_side: int | None = None,
) -> Image.Image:
    """Decode one image file to RGB, upright as its EXIF orientation says.

    Parameters
    ----------
    source
        A file, or its bytes.
    limits
        Bytes and pixels above which the file is refused without decoding.
    short_side
        The shorter side needed in the end, in pixels. A larger JPEG is then decoded at 1/2, 1/4
        or 1/8 scale, as long as its shorter side stays at least twice this. The whole file is
        still read, so damage is still found. (Where the scale does not divide a side, the last
        row or column stands for a part of one: up to 0.2 pixels of the final image.)

    Returns
    -------
    PIL.Image.Image
        Mode "RGB", without metadata. First frame of an animation; transparent pixels on
        :data:`BACKGROUND`; more than 8 bits scaled to 8 as in :func:`to_eight_bits`.

    Raises
    ------
    ImageError
        For every file that is not a complete image within the limits.
    """
    data = source if isinstance(source, bytes) else read_image_bytes(source, limits=limits)
    _check_byte_count(len(data), limits)
    if data[128:132] == b"DICM":
        from dermino_core.dicom import decode_dicom

        return decode_dicom(data, limits=limits)
    try:
        return _decode(data, limits, short_side)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError("not enough memory to decode it") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(_why_unidentified(data)) from error
    except DECODER_FAILURES as error:
        kind = _signature(data) or "image"
        raise ImageError(f"damaged or incomplete {kind} ({short_reason(error)})") from error


def read_image_bytes(
    path: Path,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> bytes:
    """Read a regular file whole. Never waits on a pipe or a device.

    Raises
    ------
    ImageError
        If it is missing, not a regular file, not readable, empty or larger than
        `limits.max_bytes`.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise ImageError(_why_not_opened(error)) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"not a regular file ({_kind_of_file(status.st_mode)})")
        _check_byte_count(status.st_size, limits)
        # The file may have grown since; read no more than the limit allows.
        chunks: list[bytes] = []
        left = limits.max_bytes + 1
        while left > 0 and (chunk := os.read(handle, min(left, _CHUNK))):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError as error:
        raise ImageError(_why_not_opened(error)) from error
    finally:
        os.close(handle)
    data = b"".join(chunks)
    _check_byte_count(len(data), limits)
    return data


def prepare_image(
    image: Image.Image,
    size: int,
    *,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
) -> np.ndarray:
    """Resize the shorter side, crop the centre: timm's evaluation transform, before normalising.

    The shorter side becomes `floor(size / crop_pct)` (timm's rounding) and the central
    `size` x `size` square is kept. Both happen in one resampling of the region that is kept, so
    a panorama of 20,000 x 8 pixels costs no more than any other image. Equal to resizing first
    and cropping then, within rounding.

    Parameters
    ----------
    image
        Mode "RGB".
    size
        Side of the square, in pixels.
    interpolation
        One of "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming".
    crop_pct
        In (0, 1]: the share of the shorter side that is kept.

    Returns
    -------
    np.ndarray
        uint8 [size, size, 3].

    Raises
    ------
    ValueError
        For an unknown `interpolation`, a `crop_pct` outside (0, 1] or a `size` below 1.
    """
    if not 0.0 < crop_pct <= 1.0:
        raise ValueError(f"crop_pct must be in (0, 1], not {crop_pct}")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    try:
        filter_ = Image.Resampling[interpolation.upper()]
    except KeyError:
        known = ", ".join(filter_.name.lower() for filter_ in Image.Resampling)
        raise ValueError(f"interpolation must be one of {known}, not {interpolation!r}") from None
    width, height = image.size
    short = math.floor(size / crop_pct)
    # Integer arithmetic as in torchvision's Resize: the longer side is cut off, not rounded.
    if width <= height:
        new_width, new_height = short, max(size, int(short * height / width))
    else:
        new_width, new_height = max(size, int(short * width / height)), short
    left, top = round((new_width - size) / 2.0), round((new_height - size) / 2.0)
    per_x, per_y = width / new_width, height / new_height
    box = (
        left * per_x,
        top * per_y,
        min((left + size) * per_x, width),
        min((top + size) * per_y, height),
    )
    return np.asarray(image.resize((size, size), resample=filter_, box=box), dtype=np.uint8)


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale gray values of more than 8 bits to 0..255, keeping their order.

    Integers: 16-bit files often hold 8, 10, 12 or 14 bits (scanners, microscopes), so full scale
    is the smallest of these depths that holds the largest value. Floats from 0 to 1 are taken
    as such, other floats like integers. If a value is below 0 or above 65535 the scale
    is unknown: stretched from smallest to largest. Values that are not finite become black.

    Parameters
    ----------
    values
        [height, width], any real dtype.

    Returns
    -------
    np.ndarray
        uint8 [height, width].

    Raises
    ------
    ImageError
        If no value is finite.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError("no pixel has a finite value")
    low, high = float(values[finite].min()), float(values[finite].max())
    if low < 0 or high > 65535:
        black, white = low, high
    elif values.dtype.kind == "f" and high <= 1.0:
        black, white = 0.0, 1.0
    else:
        black = 0.0
        white = next(float(2**bits - 1) for bits in _BIT_DEPTHS if high <= 2**bits - 1)
    # In halves: the distance between the two ends of float64 is infinite.
    above = np.where(finite, values, black).astype(np.float64) / 2 - black / 2
    span = white / 2 - black / 2 or 1.0
    return np.rint(np.clip(above / span, 0.0, 1.0) * 255.0).astype(np.uint8)


def short_reason(error: BaseException) -> str:
    """What a decoder said, on one short line of printable characters."""
    said = " ".join(str(error).split())
    said = "".join(char if char.isprintable() else "?" for char in said)
    return f"{said[:97]}..." if len(said) > 100 else said or type(error).__name__


def _decode(data: bytes, limits: ImageLimits, short_side: int | None) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_pixel_count(*image.size, limits)
        tags = getattr(image, "tag_v2", {})
        tile = tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_LENGTH, 1)
        if tile > limits.max_pixels:
            raise ImageError(f"too many pixels in one tile: {tile:,}")
        if short_side is not None:
            # Acts on JPEG only; picks the smallest scale that is not below the size asked for.
            image.draft(None, (2 * short_side, 2 * short_side))
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
    rgb.info = {}
    return rgb if upright is None else rgb.transpose(upright)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except DECODER_FAILURES:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_MODES or image.mode.startswith("I;16"):
        return Image.fromarray(to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        front = image.convert("RGBA")
        return Image.alpha_composite(
            Image.new("RGBA", front.size, (*BACKGROUND, 255)), front
        ).convert("RGB")
    return image.convert("RGB")


def _check_byte_count(count: int, limits: ImageLimits) -> None:
    if count == 0:
        raise ImageError("the file is empty")
    if count > limits.max_bytes:
        raise ImageError(f"the file is larger than the limit of {limits.max_bytes:,} bytes")


def _kind_of_file(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for matches, name in kinds if matches(mode)), "a device")


def _signature(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((name for magic, name in _SIGNATURES if data.startswith(magic)), None)


def _why_unidentified(data: bytes) -> str:
    if kind := _signature(data):
        return f"damaged or incomplete {kind} (its header cannot be read)"
    return "not an image in a known format (JPEG, PNG, BMP, TIFF, WebP, GIF, DICOM)"


def _why_not_opened(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    # ENXIO: a socket, or a device without its driver.
    if isinstance(error, OSError) and error.errno == errno.ENXIO:
        return "not a regular file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror.lower()})"
    return "not a valid file name"
