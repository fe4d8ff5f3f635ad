"""What the frozen blocks make of each training view: computed once, kept in a file, read often.

The blocks below the tuned ones never change, so their output for a view is the same in every epoch
and every round. A fresh process answers every Flower message; the file in the site's cache folder
is what makes the second round as cheap as it is in one process. It is written whole or not at all,
belongs to exactly these images, this backbone and these views, and the oldest files make room.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dermino_core.backbone_card import BackboneCard
from dermino_core.errors import DerminoError
from dermino_core.feature_cache import FeatureCache, stamp_of
from dermino_core.files import open_atomically
from dermino_core.image_limits import ImageError, ImageLimits
from dermino_core.images import read_image_bytes
from dermino_core.progress import progress_bar
from dermino_core.tuning.recipe import Augmentation
from dermino_core.tuning.views import draw_views

if TYPE_CHECKING:
    from dermino_core.tuning.network import Frozen

VERSION = 1
"""Raise it when views or activations change: they are computed again."""

FOLDER = "tuning"
LARGEST_BYTES = 64 * 2**30
"""All files of activations in a cache folder together."""


@dataclass(frozen=True)
class Wanted:
    """What decides the activations beside the images.

    Attributes
    ----------
    card
        The backbone.
    cut
        How many blocks are frozen.
    side
        Pixels of a view's side.
    tokens
        Of a view.
    views
        Of an image.
    precision
        Arithmetic of the frozen blocks.
    """

    card: BackboneCard
    cut: int
    side: int
    tokens: int
    views: int
    augmentation: Augmentation
    precision: str
    seed: int

    def bytes_of(self, images: int) -> int:
        """Size of the file."""
        return 2 * images * self.views * self.tokens * self.card.width

    def key(self, digests: Sequence[bytes]) -> str:
        """What the file is called: all of it, and the images in their order."""
        facts = asdict(self) | {"card": self.card.fingerprint, "version": VERSION}
        word = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for digest in digests:
            word.update(digest)
        return word.hexdigest()[:32]


def activations(
    paths: Sequence[Path], wanted: Wanted, frozen: Frozen, *, cache: Path, title: str
) -> npt.NDArray[np.float16]:
    """float16 [images, views, tokens, D], mapped from disk.

    Parameters
    ----------
    paths
        The training images.
    cache
        Folder of the site's feature cache; the files lie in `tuning/` below it.
    title
        Heads the progress bar.

    Raises
    ------
    DerminoError
        IMAGE_UNREADABLE if an image that had features cannot be decoded any more; CACHE_UNWRITABLE
        if the disk is full, or the file would be larger than all may be.
    """
    size = wanted.bytes_of(len(paths))
    folder = cache / FOLDER
    if size > LARGEST_BYTES:
        raise DerminoError(
            "CACHE_UNWRITABLE",
            f"The activations of {len(paths)} images would take {size / 2**30:.0f} GiB, more than "
            f"{LARGEST_BYTES / 2**30:.0f}.",
            where=folder,
            fix="Ask for fewer views or smaller ones: --set views=2, --set view_share=0.4.",
        )
    file = folder / f"{wanted.key(_digests(paths, cache))}.f16"
    shape = (len(paths), wanted.views, wanted.tokens, wanted.card.width)
    try:
        if not (file.is_file() and file.stat().st_size == size):
            folder.mkdir(parents=True, exist_ok=True)
            _make_room(folder, size)
            _compute(paths, wanted, frozen, file, title)
        os.utime(file)
        return np.memmap(file, dtype=np.float16, mode="r", shape=shape)
    except OSError as error:
        raise DerminoError(
            "CACHE_UNWRITABLE",
            f"The activations cannot be written: {error.strerror or error}.",
            where=folder,
            fix=f"Free {size / 2**30:.1f} GiB, correct the folder's permissions, or choose another "
            "cache.",
        ) from error


def _digests(paths: Sequence[Path], cache: Path) -> list[bytes]:
    """SHA-256 of each image, from the feature cache's index where the file is unchanged."""
    found: list[bytes] = []
    with FeatureCache(cache) as store:
        for path in paths:
            try:
                digest = store.digest_of(os.fsencode(path.absolute()), stamp_of(path.stat()))
                found.append(digest or hashlib.sha256(_bytes_of(path)).digest())
            except OSError as error:
                raise _unreadable(path, error.strerror or str(error)) from error
    return found


def _bytes_of(path: Path) -> bytes:
    try:
        return read_image_bytes(path, limits=ImageLimits())
    except ImageError as error:
        raise _unreadable(path, error.reason) from error


def _unreadable(path: Path, reason: str) -> DerminoError:
    return DerminoError(
        "IMAGE_UNREADABLE",
        f"A training image cannot be read any more: {reason}.",
        where=path,
        fix="Restore it, or run `dermino-client check` to prepare the site again.",
    )


def _make_room(folder: Path, size: int) -> None:
    """Delete files that were not used for longest, and what a killed process left."""
    files = sorted(folder.glob("*.f16"), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    while files and total + size > LARGEST_BYTES:
        oldest = files.pop(0)
        total -= oldest.stat().st_size
        oldest.unlink(missing_ok=True)
    for left in folder.glob(".*.f16.*"):
        if time.time() - left.stat().st_mtime > 24 * 3600:
            left.unlink(missing_ok=True)


def _compute(paths: Sequence[Path], wanted: Wanted, frozen: Frozen, file: Path, title: str) -> None:
    """Every image is decoded once; its views go through the frozen blocks together."""
    total = len(paths) * wanted.views
    with (
        open_atomically(file) as stream,
        progress_bar(f"frozen blocks, {title}", total=total, unit="views") as bar,
    ):
        for path in paths:
            try:
                views = draw_views(
                    _bytes_of(path),
                    wanted.side,
                    wanted.views,
                    wanted.augmentation,
                    seed=wanted.seed,
                )
            except ImageError as error:
                raise _unreadable(path, error.reason) from error
            tokens = frozen(views.to(frozen.device)).float().cpu().numpy()
            if not np.abs(tokens).max() <= np.finfo(np.float16).max:
                raise DerminoError(
                    "DEVICE_UNAVAILABLE",
                    f"The frozen blocks' output is not finite in {wanted.precision}.",
                    fix="Use --precision fp32.",
                )
            stream.write(tokens.astype(np.float16).data)
            bar.advance(wanted.views)
