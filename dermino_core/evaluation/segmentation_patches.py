"""The patch features of a set of images: computed once, or whenever they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dermino_core.backbone import Backbone
from dermino_core.evaluation.segmentation_data import scratch_array
from dermino_core.progress import progress_bar

Rows = npt.NDArray[np.integer]
Features = npt.NDArray[np.float16]


class Patches(Protocol):
    """Where a head gets the features of images from."""

    @property
    def nbytes(self) -> int:
        """What is kept on disk."""
        ...

    def take(self, rows: Rows, depths: int) -> Features:
        """The last `depths` depths of some images: float16 [B, depths, h, w, D]."""
        ...


@dataclass(frozen=True)
class StoredPatches:
    """Features that were computed once, float16 [n, L, h, w, D]; mapped from disk."""

    features: Features

    @property
    def nbytes(self) -> int:
        """See :class:`Patches`."""
        return self.features.nbytes

    def take(self, rows: Rows, depths: int) -> Features:
        """See :class:`Patches`."""
        return self.features[rows, -depths:]


@dataclass(frozen=True)
class StreamedPatches:
    """Features of uint8 images [n, S, S, 3], computed anew each time."""

    backbone: Backbone
    pixels: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """See :class:`Patches`."""
        return 0

    def take(self, rows: Rows, depths: int) -> Features:
        """See :class:`Patches`."""
        return self.backbone.patches(self.pixels[rows], depths)


def patches_of(
    backbone: Backbone,
    pixels: npt.NDArray[np.uint8],
    depths: int,
    *,
    budget: int,
    title: str,
    scratch: Path | None = None,
) -> Patches:
    """Features of images: stored if they take at most `budget` bytes, else streamed.

    Parameters
    ----------
    pixels
        uint8 [n, S, S, 3].
    depths
        Most depths that will be asked for.
    title
        Of the progress bar.
    scratch
        Folder for a nameless file; by default the system's.

    Raises
    ------
    DerminoError
        As :meth:`dermino_core.backbone.Backbone.patches`; CACHE_UNWRITABLE without room on disk.
    """
    card = backbone.card
    grid = card.preprocessing.image_size // card.patch_size
    shape = (len(pixels), depths, grid, grid, card.width)
    if int(np.prod(shape)) * np.dtype(np.float16).itemsize > budget:
        return StreamedPatches(backbone, pixels)
    features = scratch_array(shape, np.float16, scratch)
    with progress_bar(f"embedding {title}", total=len(pixels)) as bar:
        for start in range(0, len(pixels), backbone.batch_size):
            part = pixels[start : start + backbone.batch_size]
            features[start : start + len(part)] = backbone.patches(part, depths)
            bar.advance(len(part))
    return StoredPatches(features)
