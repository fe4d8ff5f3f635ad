"""The labels of any tables: manifests with images, plain lists of labels, tables of codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_core.label_names import NOT, bracketed_abbreviation, canonical_name, split_labels
from dermino_core.manifest import read_manifest
from dermino_core.manifest_table import printable, read_rows

_PLAIN_STEMS = frozenset({"manifest", "labels", "train", "data", "metadata"})
"""File names that say nothing: the folder's name stands for the data set."""


@dataclass(frozen=True)
class SourceLabel:
    """A label as one data set writes it.

    `images`: how many images carry it; None in a table without images. `normalised`: its
    canonical name, after what the tables teach about abbreviations.
    """

    label: str
    dataset: str
    images: int | None
    normalised: str


def collect_labels(
    tables: Sequence[Path], *, columns: Mapping[str, str] | None = None
) -> list[SourceLabel]:
    """Read every distinct label of `tables`, each normalised.

    A table is one of three kinds, by its columns: `code` and `name` (a code is a synonym of its
    name); `image` and `label`, one row per image, several labels in a cell separated by `|` or
    `;`; or a list with a column `label` or `name`. An abbreviation is explained by its own data
    set first (a code, or brackets: "basal cell carcinoma (BCC)"), then by the abbreviations
    dermino knows, then by the other tables if they agree.

    Parameters
    ----------
    tables
        CSV or Parquet.
    columns
        Our column name -> the one in these tables, e.g. `{"label": "diagnosis"}`.

    Returns
    -------
    list[SourceLabel]
        By table, in the order given, then by label.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` for a table that cannot be read, holds no column of labels or no label.
    """
    names = _dataset_names(tables)
    found: list[tuple[str, str, int | None]] = []
    taught: dict[str, dict[str, str]] = {}
    for table, dataset in zip(tables, names, strict=True):
        counts, codes = _read(table, columns or {})
        if not counts:
            raise DerminoError(
                "MANIFEST_INVALID",
                "The table holds no label.",
                where=table,
                fix="Name the column of labels: --column label=COLUMN.",
            )
        lessons = taught.setdefault(dataset, codes)
        for label, images in sorted(counts.items()):
            found.append((label, dataset, images))
            if lesson := bracketed_abbreviation(label):
                lessons.setdefault(*lesson)
    everywhere = _agreed(taught.values())
    return [
        SourceLabel(label, dataset, images, _normalise(label, taught[dataset], everywhere))
        for label, dataset, images in found
    ]


def _normalise(label: str, own: Mapping[str, str], others: Mapping[str, str]) -> str:
    negated = label.startswith(NOT)
    name = canonical_name(label.removeprefix(NOT))
    plain = " ".join(label.removeprefix(NOT).casefold().split())
    if plain in own:
        name = own[plain]
    elif name == plain:
        name = others.get(plain, name)
    return NOT + name if negated and name else name


def _agreed(lessons: Iterable[Mapping[str, str]]) -> dict[str, str]:
    meanings: dict[str, set[str]] = {}
    for lesson in lessons:
        for short, name in lesson.items():
            meanings.setdefault(short, set()).add(name)
    return {short: names.pop() for short, names in meanings.items() if len(names) == 1}


def _read(
    table: Path, columns: Mapping[str, str]
) -> tuple[Mapping[str, int | None], dict[str, str]]:
    """Labels with their number of images, and what codes mean."""
    wanted = columns.get("label", "label")
    header, rows = read_rows(table, image_column=columns.get("image", wanted))
    places = {name.strip().casefold(): place for place, name in reversed(list(enumerate(header)))}
    if "code" in places and "name" in places and "label" not in columns:
        return _codes(rows, places["code"], places["name"])
    if columns.get("image", "image").casefold() in places:
        manifest = read_manifest(table, columns=dict(columns))
        counts = Counter(
            label for record in manifest.records for label in split_labels(record.label)
        )
        return dict(counts), {}
    place = places.get(wanted.casefold(), places.get("name") if wanted == "label" else None)
    if place is None:
        columns_found = ", ".join(printable(name)[:60] for name in header[:50])
        raise DerminoError(
            "MANIFEST_INVALID",
            f"There is no column {printable(wanted)!r} of labels; the columns found are: "
            f"{columns_found}.",
            where=table,
            fix="Rename it to label, or map it: --column label=COLUMN.",
        )
    labels: dict[str, int | None] = {}
    for _, row in rows:
        value = row[place]
        labels.update(dict.fromkeys(split_labels("" if value is None else str(value))))
    return labels, {}


def _codes(
    rows: Iterable[tuple[int, Sequence[object]]], code: int, name: int
) -> tuple[dict[str, int | None], dict[str, str]]:
    labels: dict[str, int | None] = {}
    meanings: dict[str, str] = {}
    for _, row in rows:
        short, long = ("" if row[i] is None else str(row[i]).strip() for i in (code, name))
        labels.update(dict.fromkeys(text for text in (short, long) if text))
        if short and (meaning := canonical_name(long)):
            meanings[" ".join(short.casefold().split())] = meaning
    return labels, meanings


def _dataset_names(tables: Sequence[Path]) -> list[str]:
    """A short name for each table, distinct."""
    short = [
        path.resolve().parent.name if path.stem.casefold() in _PLAIN_STEMS else path.stem
        for path in tables
    ]
    twins = Counter(short)
    return [
        name if twins[name] == 1 else f"{path.resolve().parent.name}/{path.name}"
        for name, path in zip(short, tables, strict=True)
    ]
