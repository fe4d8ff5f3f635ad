"""From the configuration's sources to one list of images.

A source is a manifest with its image folder, or a folder of prepared shards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.image_limits import ImageError
from dermino_core.label_names import split_labels
from dermino_core.manifest import SPLITS, read_manifest
from dermino_core.pretraining.config import DataSection, SourceSection
from dermino_core.pretraining.image_list import (
    FolderImages,
    ImageList,
    LabelSet,
    Reader,
    Source,
)
from dermino_core.pretraining.shard_folder import open_shards
from dermino_core.pretraining.vocabulary import Vocabulary

__all__ = ["ImageList", "collect_labels", "open_sources"]

TRIED = 16
"""A source is taken for readable if one of so many images, spread over it, can be read."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rows:
    """The selected rows of a source: the label cell and data set of each."""

    reader: Reader
    labels: list[str | None]
    datasets: list[str]


def open_sources(data: DataSection, vocabulary: Vocabulary) -> ImageList:
    """Read the tables of all sources, and see that each has images that can be read.

    Parameters
    ----------
    data
        `[data]` of the configuration.
    vocabulary
        Says which labels mean something; those that it lacks are named in a warning.

    Raises
    ------
    DerminoError
        CONFIG_INVALID without sources, or for two of one name or a split that does not exist;
        DATA_TOO_FEW if a source selects no row; IMAGE_UNREADABLE if the images of a source that
        were tried cannot be read; as :func:`~dermino_core.manifest.read_manifest` and
        :func:`~dermino_core.pretraining.shard_folder.open_shards`.
    """
    sources: list[Source] = []
    codes: dict[LabelSet, int] = {}
    numbers: list[int] = []
    for place, (section, rows) in enumerate(_selected(data)):
        sources.append(Source(section.name, section.weight, rows.reader))
        for cell, dataset in zip(rows.labels, rows.datasets, strict=True):
            entry = LabelSet(place, dataset, split_labels(cell))
            numbers.append(codes.setdefault(entry, len(codes)))
    images = ImageList(
        sources, list(codes), np.array(numbers, dtype=np.int32), vocabulary, data.image_side
    )
    for place in range(len(sources)):
        _check_readable(images, place)
    if len(vocabulary):
        unknown = vocabulary.unmapped(label for entry in codes for label in entry.labels)
        if unknown:
            log.warning(
                "%d labels are not in the table of labels and say nothing: %s%s",
                len(unknown),
                ", ".join(map(repr, unknown[:10])),
                ", ..." if len(unknown) > 10 else "",
            )
    return images


def collect_labels(data: DataSection) -> list[tuple[str, str]]:
    """Every distinct label of the selected rows, with the name of its source, sorted.

    Raises
    ------
    DerminoError
        As :func:`open_sources`, but for IMAGE_UNREADABLE: no image is read.
    """
    return sorted(
        {
            (label, section.name)
            for section, rows in _selected(data)
            for cell in set(rows.labels)
            for label in split_labels(cell)
        }
    )


def _selected(data: DataSection) -> Iterator[tuple[SourceSection, _Rows]]:
    if not data.sources:
        raise DerminoError(
            "CONFIG_INVALID",
            "The configuration names no images.",
            where="data.sources",
            fix="Add a [[data.sources]] with a name and a manifest, or a folder of shards.",
        )
    names = [section.name for section in data.sources]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise DerminoError(
            "CONFIG_INVALID",
            f"Two sources are called {twins[0]!r}.",
            where="data.sources",
            fix="Give each source a name of its own.",
        )
    for section in data.sources:
        splits = _splits(section)
        if section.shards is not None:
            yield section, _from_shards(section, section.shards, splits)
        elif section.manifest is not None:
            yield section, _from_manifest(section, section.manifest, splits)


def _splits(section: SourceSection) -> frozenset[str]:
    known = {"": "", **SPLITS}
    for name in section.splits:
        if name.strip().casefold() not in known:
            raise DerminoError(
                "CONFIG_INVALID",
                f"Source {section.name!r} selects the split {name!r}, which does not exist.",
                where="data.sources",
                fix=f"Allowed are {', '.join(SPLITS)}, and '' for rows without a split.",
            )
    return frozenset(known[name.strip().casefold()] for name in section.splits)


def _from_manifest(section: SourceSection, file: Path, splits: frozenset[str]) -> _Rows:
    manifest = read_manifest(file, root=section.images, columns=section.columns)
    records = [record for record in manifest.records if (record.split or "") in splits]
    _check_any(section, len(records), len(manifest.records), file)
    reader = FolderImages(manifest, [record.image for record in records])
    return _Rows(reader, [record.label for record in records], [""] * len(records))


def _from_shards(section: SourceSection, folder: Path, splits: frozenset[str]) -> _Rows:
    table = open_shards(folder)
    rows = [row for row, split in enumerate(table.splits) if split in splits]
    _check_any(section, len(rows), len(table.splits), folder)
    return _Rows(
        table.select(rows),
        [table.labels[row] for row in rows],
        [table.datasets[row] for row in rows],
    )


def _check_any(section: SourceSection, selected: int, rows: int, where: Path) -> None:
    if selected:
        return
    wanted = " or ".join(repr(name) if name else "none" for name in section.splits)
    raise DerminoError(
        "DATA_TOO_FEW",
        f"Source {section.name!r} has no image to train on: of {rows} rows, none has a split of "
        f"{wanted or 'any kind (splits is empty)'}.",
        where=where,
        fix="Correct `splits` of this source, or the column split of its table.",
    )


def _check_readable(images: ImageList, place: int) -> None:
    first, end = int(images.starts[place]), int(images.starts[place + 1])
    tried = np.unique(np.linspace(first, end - 1, TRIED).astype(np.int64))
    reason = ""
    for position in tried.tolist():
        try:
            images.read(position)
        except ImageError as error:
            reason = reason or error.reason
        else:
            return
    raise DerminoError(
        "IMAGE_UNREADABLE",
        f"No image of source {images.sources[place].name!r} can be read ({len(tried)} of "
        f"{end - first} tried); the first: {reason}.",
        where=images.name(first),
        fix="Set `images` of this source to the folder that the table's entries are relative to; "
        "`dermino data check` lists every bad row.",
    )
