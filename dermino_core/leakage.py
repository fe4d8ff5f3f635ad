"""Which images of several tables are copies of each other, and which rows to give up for it.

A test image that was also pretrained or trained on measures memory. The paper pretrains on the
training halves of its downstream tasks (section 4.1), whose public data sets share images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.image_signatures import read_signatures
from dermino_core.labels import normalise_label
from dermino_core.manifest import Manifest, Record, row_number
from dermino_core.near_duplicates import (
    DISTANCE,
    MAX_PAIRS,
    Pairs,
    embedding_pairs,
    perceptual_pairs,
    whiten,
)
from dermino_core.paths import default_cache

KINDS = ("exact", "perceptual", "embedding")
"""How a pair was found, the surest first: equal bytes, perceptual hash, features."""

DANGERS = ("leak", "across", "within")
"""What a pair may do, the worst first: a test image's copy outside the test half; a copy in another
table or another half; a copy in the same half of the same table."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of one of the tables: `table` and `index` count from 0; `path` is None where the
    table's entry leads out of the image folder."""

    table: int
    index: int
    record: Record
    path: Path | None

    @property
    def number(self) -> int:
        """As a spreadsheet shows it."""
        return row_number(self.index)


@dataclass(frozen=True, slots=True)
class Twins:
    """Two rows that show the same picture, as indices into the rows of the audit.

    `first` is the one that stays if one has to go. `distance`: bits that differ of 255, None where
    hashes did not find the pair; `similarity`: cosine of the features, likewise.
    """

    first: int
    second: int
    kind: str
    danger: str
    distance: int | None
    similarity: float | None
    labels_differ: bool


@dataclass(frozen=True)
class Audit:
    """What :func:`audit_manifests` found.

    Attributes
    ----------
    rows
        All rows of all tables.
    pairs
        The most dangerous first.
    unreadable
        Row -> why its image could not be read.
    plain
        Rows whose image has too little contrast for a hash; only equal bytes are found for them.
    removed
        Row -> the row it is given up for.
    protected
        Rows of the halves that are never changed.
    """

    rows: list[Row]
    pairs: list[Twins]
    unreadable: dict[int, str]
    plain: list[int]
    removed: dict[int, int]
    protected: frozenset[int]

    @property
    def leaks(self) -> list[Twins]:
        """Pairs of a protected row and another one."""
        return [pair for pair in self.pairs if pair.danger == "leak"]

    def cleaned(self, table: int) -> list[Record]:
        """The rows of one table that are left, in their order."""
        return [
            row.record
            for place, row in enumerate(self.rows)
            if row.table == table and place not in self.removed
        ]


@dataclass(frozen=True)
class Features:
    """Which features to compare as well: see :func:`dermino_core.features.extract_features`.

    `min_similarity`: None for the default of :func:`dermino_core.near_duplicates.whiten`.
    """

    backbone: str
    min_similarity: float | None = None
    device: str = "auto"
    precision: str = "auto"


def audit_manifests(
    manifests: Sequence[Manifest],
    *,
    against: Collection[str] = ("test",),
    cache: Path | None = None,
    max_distance: int = DISTANCE,
    features: Features | None = None,
) -> Audit:
    """Find copies within and across tables, and decide which rows to remove.

    A row outside the protected halves is removed if it has a twin of any kind inside them. Of the
    rest, copies by bytes or hash are kept once: labelled before unlabelled, then validation before
    training, then in the order of the tables and rows. (Twins found by features alone may be two
    photographs of one lesion; outside the protected halves both stay.) A row is only removed for
    a row that stays, so that a chain of ever less similar images does not vanish whole.

    Parameters
    ----------
    manifests
        Tables of images; a row without a split counts as pretraining.
    against
        Splits that are protected: `train`, `val` or `test`.
    cache
        Where hashes and features are kept; default :func:`dermino_core.paths.default_cache`.
    max_distance
        As :func:`dermino_core.near_duplicates.perceptual_pairs`.
    features
        Compare features as well.

    Raises
    ------
    DerminoError
        DATA_TOO_FEW if no image can be read; CONFIG_INVALID for thresholds out of range or that
        find too many pairs; what the cache and the backbone raise.
    """
    folder = default_cache() if cache is None else cache
    rows, unreadable = _rows(manifests)
    found = [place for place, row in enumerate(rows) if row.path is not None]
    paths = [row.path for row in rows if row.path is not None]
    signatures = read_signatures(paths, cache=folder)
    unreadable.update({found[place]: why for place, why in signatures.unreadable.items()})
    copies: dict[bytes, list[int]] = defaultdict(list)
    content: list[int] = []  # one place in `found` for each distinct content
    for place, digest in enumerate(signatures.digests):
        if digest is not None and place not in signatures.unreadable:
            if digest not in copies:
                content.append(place)
            copies[digest].append(found[place])
    if not content:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"None of the {len(rows)} images can be read"
            + (f" ({next(iter(unreadable.values()))})." if unreadable else "."),
            where=", ".join(str(manifest.file) for manifest in manifests),
            fix="Give the folder that the tables' entries are relative to: --images FOLDER.",
        )
    members = list(copies.values())
    hashed = np.flatnonzero(signatures.usable[content])
    by_hash = perceptual_pairs(
        signatures.hashes[[content[place] for place in hashed]], max_distance=max_distance
    )
    near = Pairs(hashed[by_hash.first], hashed[by_hash.second], by_hash.score)
    alike = None
    if features is not None:
        alike = _by_features([paths[place] for place in content], features, folder)
    protected = frozenset(place for place, row in enumerate(rows) if row.record.split in against)
    rank = {place: order for order, place in enumerate(_in_order_of_staying(rows, protected))}
    pairs = [_twins(rows, protected, rank, pair) for pair in _row_pairs(members, near, alike)]
    pairs.sort(key=_worst_first)
    return Audit(
        rows=rows,
        pairs=pairs,
        unreadable=dict(sorted(unreadable.items())),
        plain=sorted(
            row
            for place, of in enumerate(members)
            if not signatures.usable[content[place]]
            for row in of
        ),
        removed=_removed(pairs, protected, rank),
        protected=protected,
    )


def _rows(manifests: Sequence[Manifest]) -> tuple[list[Row], dict[int, str]]:
    rows: list[Row] = []
    outside: dict[int, str] = {}
    for table, manifest in enumerate(manifests):
        for index, record in enumerate(manifest.records):
            path = None
            try:
                path = manifest.path_of(record)
            except DerminoError:
                outside[len(rows)] = "outside the image folder"
            rows.append(Row(table, index, record, path))
    return rows, outside


def _by_features(paths: Sequence[Path], features: Features, cache: Path) -> Pairs:
    from dermino_core.features import extract_features

    table = extract_features(
        paths,
        features.backbone,
        cache=cache,
        precision=features.precision,
        device=features.device,
        title="images for the audit",
    )
    vectors, default = whiten(table.vectors)
    threshold = default if features.min_similarity is None else features.min_similarity
    pairs = embedding_pairs(vectors, min_similarity=threshold)
    return Pairs(table.rows[pairs.first], table.rows[pairs.second], pairs.score)


RowPair = tuple[int, int, str, int | None, float | None]


def _row_pairs(members: list[list[int]], near: Pairs, alike: Pairs | None) -> Iterator[RowPair]:
    """Pairs of rows, each once: row, row, kind, distance, similarity."""
    count = sum(len(of) * (len(of) - 1) // 2 for of in members)
    cosines: dict[tuple[int, int], float] = {}
    if alike is not None:
        cosines = dict(
            zip(
                zip(alike.first.tolist(), alike.second.tolist(), strict=True),
                alike.score.tolist(),
                strict=True,
            )
        )
    contents: list[tuple[int, int, str, int | None, float | None]] = []
    for key, bits in zip(
        zip(near.first.tolist(), near.second.tolist(), strict=True),
        near.score.tolist(),
        strict=True,
    ):
        contents.append((*key, "perceptual", bits, cosines.pop(key, None)))
    contents += [(*key, "embedding", None, cosine) for key, cosine in cosines.items()]
    count += sum(len(members[one]) * len(members[other]) for one, other, *_ in contents)
    if count > MAX_PAIRS:
        raise DerminoError(
            "CONFIG_INVALID",
            f"{count:,} pairs of rows show the same picture; the limit is {MAX_PAIRS:,}.",
            fix="Remove tables that list the same files again, or ask for a smaller --distance.",
        )
    for of in members:
        for place, one in enumerate(of):
            for other in of[place + 1 :]:
                yield one, other, "exact", 0, None
    for first, second, kind, bits, cosine in contents:
        for one in members[first]:
            for other in members[second]:
                yield one, other, kind, bits, cosine


def _in_order_of_staying(rows: Sequence[Row], protected: Collection[int]) -> list[int]:
    def key(place: int) -> tuple[bool, bool, bool, int]:
        record = rows[place].record
        return place not in protected, record.label is None, record.split != "val", place

    return sorted(range(len(rows)), key=key)


def _twins(
    rows: Sequence[Row],
    protected: Collection[int],
    rank: Mapping[int, int],
    pair: RowPair,
) -> Twins:
    kind, bits, cosine = pair[2:]
    first, second = sorted(pair[:2], key=rank.__getitem__)
    one, other = rows[first], rows[second]
    if (first in protected) != (second in protected):
        danger = "leak"
    elif one.table != other.table or one.record.split != other.record.split:
        danger = "across"
    else:
        danger = "within"
    labels = (one.record.label, other.record.label)
    differ = None not in labels and len({normalise_label(label or "") for label in labels}) > 1
    return Twins(first, second, kind, danger, bits, cosine, differ)


def _worst_first(pair: Twins) -> tuple[int, bool, int, int, float, int, int]:
    return (
        DANGERS.index(pair.danger),
        not pair.labels_differ,
        KINDS.index(pair.kind),
        pair.distance or 0,
        -(pair.similarity or 0.0),
        pair.first,
        pair.second,
    )


def _removed(
    pairs: Sequence[Twins], protected: Collection[int], rank: dict[int, int]
) -> dict[int, int]:
    removed: dict[int, int] = {}
    copies: dict[int, list[int]] = defaultdict(list)
    for pair in pairs:
        if pair.danger == "leak":
            removed.setdefault(pair.second, pair.first)
        elif pair.kind != "embedding" and pair.second not in protected:
            copies[pair.second].append(pair.first)
    for place in sorted(copies, key=rank.__getitem__):
        if place not in removed:
            stays = [one for one in copies[place] if one not in removed]
            if stays:
                removed[place] = min(stays, key=rank.__getitem__)
    return dict(sorted(removed.items()))
