"""How good the features are while they are being learned: on a small labelled table.

Retrieval, a linear probe and the rank of the features, on images that are decoded once and stay in
memory. What the probe reads never trains anything.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from dermino_core.backbone_card import Preprocessing
from dermino_core.errors import DerminoError
from dermino_core.image_limits import ImageError
from dermino_core.images import decode_image, prepare_image
from dermino_core.labels import normalise_label
from dermino_core.manifest import Manifest, Record, read_manifest
from dermino_core.pretraining.config import MonitorSection
from dermino_core.pretraining.probe_scores import (
    ProbeResult,
    neighbour_scores,
    rank_me,
    ridge_scores,
)
from dermino_core.progress import progress_bar
from dermino_core.splits import split_records

Embed = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.floating]]
"""Images uint8 [B, S, S, 3] to features [B, D]."""

BATCH = 64
"""Images that are embedded at once."""

_SEVERAL = ("|", ";")
_LOGGER = logging.getLogger(__name__)


class Probe:
    """The monitor's images, ready to be embedded again and again.

    A label is taken as written, in any spelling (:func:`dermino_core.labels.normalise_label`);
    images without a label or with several are left out, and so are images that cannot be decoded.
    The halves are those of the manifest (`val` stands in where no image is `test`), or else
    :func:`dermino_core.splits.split_records`: stratified, and no patient on both sides. Classes
    that do not have images in both halves are left out. Of more than `monitor.max_images` a
    stratified part of about that size is used, chosen by the names of the files alone.

    Parameters
    ----------
    monitor
        Which table, how many images, how many neighbours.
    preprocessing
        Of the backbone that is measured. Images of S x S pixels take S * S * 3 bytes each.

    Attributes
    ----------
    classes
        Names, in the order of :attr:`labels`.
    images
        uint8 [n, S, S, 3].
    labels
        Index into `classes`, [n].
    tested
        Whether an image is of the test half, [n].
    groups
        Patient or lesion of each image.
    unreadable
        Images of the table that could not be decoded.

    Raises
    ------
    DerminoError
        CONFIG_INVALID without `monitor.manifest`; MANIFEST_INVALID for a table that cannot be
        read; DATA_TOO_FEW if fewer than two classes are left with images in both halves.
    """

    def __init__(self, monitor: MonitorSection, preprocessing: Preprocessing) -> None:
        if monitor.manifest is None:
            raise DerminoError(
                "CONFIG_INVALID",
                "There is no table of images to measure the backbone on.",
                where="monitor.manifest",
                fix="Name a small labelled manifest, or set monitor.probe_every to 0.",
            )
        self.neighbours = monitor.neighbours
        self._file = monitor.manifest
        manifest = read_manifest(monitor.manifest, root=monitor.images, columns=monitor.columns)
        records, names, tested = _labelled(manifest)
        kept = _spread(records, names, tested, monitor.max_images)
        decoded = _decode(manifest, [records[i] for i in kept], preprocessing)
        self.unreadable = sum(image is None for image in decoded)
        readable = [(i, image) for i, image in zip(kept, decoded, strict=True) if image is not None]
        classes = _classes((names[i], tested[i]) for i, _ in readable)
        self._check(classes)
        place = {name: index for index, name in enumerate(classes)}
        used = [(i, image) for i, image in readable if names[i] in place]
        self.classes = classes
        self.images = np.stack([image for _, image in used])
        self.labels = np.array([place[names[i]] for i, _ in used], dtype=np.int64)
        self.tested = np.array([tested[i] for i, _ in used], dtype=bool)
        self.groups = tuple(records[i].group or f"image {records[i].image}" for i, _ in used)
        if self.unreadable:
            _LOGGER.warning(
                "%d images of the monitor's table could not be decoded and are left out: %s",
                self.unreadable,
                self._file,
            )

    @property
    def test_labels(self) -> npt.NDArray[np.int64]:
        """Class index of each image of the test half."""
        return self.labels[self.tested]

    def measure(self, embed: Embed) -> ProbeResult:
        """Embed all images and score the features; equal features give equal numbers.

        Parameters
        ----------
        embed
            The backbone in evaluation mode.

        Returns
        -------
        ProbeResult
            Its numbers are NaN if a feature is not finite.
        """
        parts = [
            np.asarray(embed(self.images[start : start + BATCH]), dtype=np.float32)
            for start in range(0, len(self.images), BATCH)
        ]
        features = np.concatenate(parts)
        train, test = ~self.tested, self.tested
        shape = (int(test.sum()), len(self.classes))
        neighbour = linear = np.full(shape, np.nan)
        rank = float("nan")
        if np.isfinite(features).all():
            halves = features[train], self.labels[train], features[test], len(self.classes)
            neighbour = neighbour_scores(*halves, neighbours=self.neighbours)
            linear = ridge_scores(*halves)
            rank = rank_me(features)
        return ProbeResult(
            rank_me=rank,
            neighbour_scores=neighbour,
            linear_scores=linear,
            test_labels=self.test_labels,
            test_groups=tuple(itertools.compress(self.groups, test)),
            features=features,
            labels=self.labels,
            classes=self.classes,
        )

    def _check(self, classes: Sequence[str]) -> None:
        if len(classes) >= 2:
            return
        found = f"only {classes[0]!r}" if classes else "none"
        bad = f" {self.unreadable} images could not be decoded." if self.unreadable else ""
        raise DerminoError(
            "DATA_TOO_FEW",
            "The monitor needs two classes with readable images in both halves and has "
            f"{found}.{bad}",
            where=self._file,
            fix="Give a manifest with more labelled images, or set monitor.probe_every to 0.",
        )


def _labelled(manifest: Manifest) -> tuple[list[Record], list[str], list[bool]]:
    """Records with one label, that label, and whether each is of the test half."""
    records, names = [], []
    for record in manifest.records:
        several = record.label is None or any(sign in record.label for sign in _SEVERAL)
        name = "" if several else normalise_label(record.label or "")
        if name:
            records.append(record)
            names.append(name)
    splits = split_records(records, names, where=manifest.file)
    testing = "test" if "test" in splits else "val"
    chosen = [index for index, split in enumerate(splits) if split in {"train", testing}]
    return (
        [records[i] for i in chosen],
        [names[i] for i in chosen],
        [splits[i] == testing for i in chosen],
    )


def _spread(
    records: Sequence[Record], names: Sequence[str], tested: Sequence[bool], most: int
) -> list[int]:
    """Indices of about `most` records; of each class in each half its share, and at least one."""
    if len(records) <= most:
        return list(range(len(records)))
    strata: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for index, stratum in enumerate(zip(names, tested, strict=True)):
        strata[stratum].append(index)
    kept: list[int] = []
    for stratum in sorted(strata):
        members = sorted(strata[stratum], key=lambda i: _hash(records[i].image))
        kept.extend(members[: max(1, len(members) * most // len(records))])
    return sorted(kept)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def _classes(found: Iterable[tuple[str, bool]]) -> tuple[str, ...]:
    """Names that occur in both halves, sorted."""
    halves = Counter(name for name, _ in set(found))
    return tuple(sorted(name for name, count in halves.items() if count == 2))


def _decode(
    manifest: Manifest, records: Sequence[Record], preprocessing: Preprocessing
) -> list[npt.NDArray[np.uint8] | None]:
    """Prepared pixels of each record, or None where the file is no usable image."""

    def one(record: Record) -> npt.NDArray[np.uint8] | None:
        size, kept = preprocessing.image_size, preprocessing.crop_pct
        try:
            image = decode_image(manifest.path_of(record), short_side=round(size / kept))
        except ImageError:
            return None
        return prepare_image(image, size, interpolation=preprocessing.interpolation, crop_pct=kept)

    pixels: list[npt.NDArray[np.uint8] | None] = []
    with (
        progress_bar("reading the monitor's images", total=len(records)) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode") as pool,
    ):
        for image in pool.map(one, records):
            pixels.append(image)
            bar.advance()
    return pixels
