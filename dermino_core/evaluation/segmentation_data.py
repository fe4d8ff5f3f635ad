"""Images with a mask of the lesion, made ready for a backbone.

The whole image is resized to a square, nothing is cropped, and its mask with it: both are sampled
over the same box, so a pixel of the one stays on its pixel of the other.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_scores import Mask
from dermino_core.image_limits import DECODER_FAILURES, ImageError
from dermino_core.images import FORMATS, decode_image, read_image_bytes
from dermino_core.manifest import Manifest
from dermino_core.manifest_table import printable
from dermino_core.progress import progress_bar

logger = logging.getLogger(__name__)

NOISE = 64
"""A mask's pixel is black or white if it is this close to 0 or 255: JPEG blurs and rings."""

SOFT_SHARE = 0.02
"""Largest share of a mask's pixels that may be in between: the blurred outline of the lesion."""

_CHUNK = 64


@dataclass(frozen=True)
class MaskedImage:
    """An image file, the file with its lesion's mask, and the patient or lesion it shows.

    `mask` is None where the data name none.
    """

    image: Path
    mask: Path | None
    unit: str


@dataclass(frozen=True)
class MaskedSet:
    """Images and masks, read and resized.

    Attributes
    ----------
    examples
        Those n that can be used.
    pixels
        uint8 [n, S, S, 3]; mapped from disk.
    masks
        uint8 [n, S, S], 0 or 1; mapped from disk.
    notes
        What was left out and why, without names of files (those are logged).
    """

    examples: tuple[MaskedImage, ...]
    pixels: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def units(self) -> tuple[str, ...]:
        """Patient or lesion of each image."""
        return tuple(example.unit for example in self.examples)


def masked_images(
    manifest: Manifest, rows: Sequence[int] | npt.NDArray[np.integer], units: Sequence[str]
) -> list[MaskedImage]:
    """The images of some rows of a table, with the masks that its column `mask` names.

    Parameters
    ----------
    rows
        Indices into the table's records.
    units
        Patient or lesion of every record of the table.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if a path leaves the image folder.
    """
    chosen = [(manifest.records[int(row)], units[int(row)]) for row in rows]
    return [
        MaskedImage(
            manifest.path_of(record),
            None if record.mask is None else manifest.inside(record.mask),
            unit,
        )
        for record, unit in chosen
    ]


def read_mask(file: Path) -> Mask:
    """A binary mask, bool [height, width], of the file's own size.

    Two gray values: the brighter one is the lesion, and the other must be black (0/1 and 0/255
    files alike); only black: no lesion. More values are taken for a mask that was kept as JPEG or
    resized smoothly if all but :data:`SOFT_SHARE` of its pixels are within :data:`NOISE` of 0 or
    255; from 128 on is lesion then.

    Raises
    ------
    ImageError
        If the file is no image, is coloured, has transparent pixels, or is not binary.
    """
    data = read_image_bytes(file)
    rgb = np.asarray(decode_image(data))
    if _has_transparent_pixels(data):
        raise ImageError("the mask has transparent pixels, which could mean either side")
    gray = rgb[..., 0]
    if not (np.array_equal(gray, rgb[..., 1]) and np.array_equal(gray, rgb[..., 2])):
        raise ImageError("the mask is coloured, not black and white")
    counts = np.bincount(gray.ravel(), minlength=256)
    values = np.flatnonzero(counts)
    if len(values) == 1:
        return gray > 0
    if len(values) == 2 and values[0] == 0:
        return gray > 0
    if counts[NOISE + 1 : 255 - NOISE].sum() <= SOFT_SHARE * gray.size:
        return gray >= 128
    shown = ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
    raise ImageError(f"the mask is not binary: it has {len(values)} gray values ({shown})")


def whole_square(image: Image.Image, size: int, interpolation: str) -> npt.NDArray[np.uint8]:
    """The whole image as uint8 [size, size, 3], whatever its shape; nothing is cropped."""
    kind = Image.Resampling[interpolation.upper()]
    return np.array(image.resize((size, size), resample=kind), dtype=np.uint8)


def mask_square(mask: Mask, size: int) -> npt.NDArray[np.uint8]:
    """A mask as uint8 [size, size]: 1 where at least half of what a pixel covers is lesion."""
    gray = Image.fromarray(mask.astype(np.uint8) * 255)
    square = gray.resize((size, size), resample=Image.Resampling.BILINEAR)
    return (np.asarray(square) >= 128).astype(np.uint8)


def prepare_masked(
    examples: Sequence[MaskedImage],
    *,
    size: int,
    interpolation: str,
    title: str,
    scratch: Path | None = None,
) -> MaskedSet:
    """Read images and masks; leave out, and say so, what cannot be used.

    A missing or unreadable file, a mask that is not binary and a mask of another size than its
    image cost that one image. An empty mask does not: it says that there is no lesion.

    Parameters
    ----------
    size
        S, in pixels.
    interpolation
        Of the image, as in :func:`dermino_core.images.prepare_image`.
    title
        Of the progress bar and the notes, e.g. `test`.
    scratch
        Folder for a nameless file that holds the arrays; by default the system's.

    Raises
    ------
    DerminoError
        `CACHE_UNWRITABLE` if that file cannot be written.
    """
    pixels = scratch_array((len(examples), size, size, 3), np.uint8, scratch)
    masks = scratch_array((len(examples), size, size), np.uint8, scratch)
    kept: list[MaskedImage] = []
    reasons: list[tuple[MaskedImage, str]] = []

    def read(example: MaskedImage) -> tuple[np.ndarray, np.ndarray] | str:
        return _read(example, size, interpolation)

    with (
        progress_bar(f"reading {title}", total=len(examples)) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode") as pool,
    ):
        for start in range(0, len(examples), _CHUNK):
            part = examples[start : start + _CHUNK]
            for example, found in zip(part, pool.map(read, part), strict=True):
                if isinstance(found, str):
                    reasons.append((example, found))
                else:
                    pixels[len(kept)], masks[len(kept)] = found
                    kept.append(example)
                bar.advance()
    for example, reason in reasons:
        logger.warning("left out: %s: %s", printable(str(example.image)), reason)
    n = len(kept)
    return MaskedSet(tuple(kept), pixels[:n], masks[:n], _notes(title, reasons, masks[:n]))


def scratch_array(
    shape: tuple[int, ...], kind: type[np.generic], folder: Path | None
) -> npt.NDArray:
    """Zeros in a nameless file, mapped; the file goes when the array does.

    Raises
    ------
    DerminoError
        `CACHE_UNWRITABLE` if there is no room for it.
    """
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if size == 0:
        return np.zeros(shape, dtype=kind)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Room is claimed now: a full disk would otherwise kill the process on first touch.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype=kind, mode="r+", shape=shape)
    except OSError as error:
        raise DerminoError(
            "CACHE_UNWRITABLE",
            f"{size / 2**20:.0f} MiB of working space cannot be had: {error.strerror or error}.",
            where=folder or tempfile.gettempdir(),
            fix="Free disk space, or choose another folder for the cache.",
        ) from error


def _read(
    example: MaskedImage, size: int, interpolation: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | str:
    """Image and mask, resized, or why not. Runs in a thread."""
    if example.mask is None:
        return "no mask is named for it"
    try:
        # At full size: a JPEG decoded at half scale may end half a pixel further.
        image = decode_image(example.image)
    except ImageError as error:
        return f"image: {error.reason}"
    try:
        mask = read_mask(example.mask)
    except ImageError as error:
        return f"mask: {error.reason}"
    height, width = mask.shape
    if image.size != (width, height):
        return "the mask has another size than its image"
    return whole_square(image, size, interpolation), mask_square(mask, size)


def _has_transparent_pixels(data: bytes) -> bool:
    """Of a file that :func:`decode_image` could read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if not image.has_transparency_data:
                return False
            return int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 255
    except DECODER_FAILURES:  # a DICOM file: without transparency
        return False


def _notes(
    title: str, reasons: Sequence[tuple[MaskedImage, str]], masks: npt.NDArray[np.uint8]
) -> tuple[str, ...]:
    notes: list[str] = []
    if reasons:
        kinds = Counter(reason for _, reason in reasons)
        listed = "; ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
        notes.append(f"{len(reasons)} {title} images are left out: {listed}.")
    if empty := sum(not mask.any() for mask in masks):
        notes.append(
            f"{empty} {title} images have an empty mask: an empty prediction scores 1 there, any "
            "other 0."
        )
    return tuple(notes)
