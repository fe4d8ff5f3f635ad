"""The table of images that every command reads: one row per image.

Columns (any case, any order, further columns are ignored): `image` (path relative to the image
folder), `label`, `split`, `group` (patient or lesion: images that must stay together),
`skin_type`, `sex`, `age`, `mask`, `caption`. Only `image` is required. The tables published with
PanDerm (`image,label,split` and `image,binary_label,split`) are read unchanged.

Rows are numbered as a spreadsheet shows them: the header is row 1, the first image row 2.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.manifest_table import HEADER_ROW, printable, read_rows

SPLITS: Mapping[str, str] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Values of the column `split`, in any case, and what they become."""

ALIASES: Mapping[str, tuple[str, ...]] = {"label": ("binary_label",)}
"""Other column names that are understood when a field's own column is absent."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image and what is known of it. Empty cells are None.

    `image` and `mask` are as written in the table, relative to the image folder; `age` is in
    years.
    """

    image: str
    label: str | None = None
    split: str | None = None
    group: str | None = None
    skin_type: str | None = None
    sex: str | None = None
    age: float | None = None
    mask: str | None = None
    caption: str | None = None


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Record))
"""Every column that is read, in the order in which they are written."""


@dataclass(frozen=True)
class Manifest:
    """A table of images, read.

    `file`: the table. `root`: the image folder. `notes`: what was tolerated while reading, for
    people (:func:`~dermino_core.manifest_checks.check_manifest` shows them as warnings).
    """

    file: Path
    root: Path
    records: list[Record]
    notes: tuple[str, ...] = ()

    @cached_property
    def _real_root(self) -> Path:
        return Path(os.path.realpath(self.root))

    def path_of(self, record: Record) -> Path:
        """Where the image of `record` really is, links followed.

        Raises
        ------
        DerminoError
            `MANIFEST_INVALID` if that is outside `root`, whether by `..`, an absolute path or a
            link. The file need not exist.
        """
        return self.inside(record.image)

    def inside(self, name: str) -> Path:
        """The real path of `name` (an image or a mask), as for :meth:`path_of`."""
        try:
            root = self._real_root
            path = Path(os.path.realpath(root / name))
        except (OSError, ValueError) as error:
            raise DerminoError(
                "MANIFEST_INVALID",
                f"{printable(name)} is not a usable path.",
                where=self.file,
                fix="Correct or remove its row.",
            ) from error
        if not path.is_relative_to(root):
            raise DerminoError(
                "MANIFEST_INVALID",
                f"{printable(name)} is outside the image folder {root}.",
                where=self.file,
                fix="Move the file into the image folder, or name the folder that holds it.",
            )
        return path


def read_manifest(
    file: Path, *, root: Path | None = None, columns: Mapping[str, str] | None = None
) -> Manifest:
    """Read a table of images from CSV or Parquet.

    CSV: UTF-8 with or without byte order mark, separated by comma, semicolon or tab (found from
    the header), quoted as in RFC 4180. Labels stay text: an integer label 1 is "1". An age that
    is no number of years ("unknown", "85+") becomes None and a note: clinical tables are full of
    them, and no computation depends on one.

    Parameters
    ----------
    file
        The table.
    root
        Folder that image paths are relative to and may not leave; default: the table's own.
    columns
        Our column name -> the name in this file, e.g. `{"label": "diagnosis"}`. Goes before the
        column of our own name.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` for everything that keeps the table from being read without guessing;
        `CONFIG_INVALID` if `columns` names a field that does not exist.
    """
    if unknown := sorted(set(columns or {}) - set(FIELDS)):
        raise DerminoError(
            "CONFIG_INVALID",
            f"No such column to map: {', '.join(map(repr, unknown))}.",
            where=file,
            fix=f"The columns that can be mapped are {', '.join(FIELDS)}.",
        )
    header, rows = read_rows(file, image_column=(columns or {}).get("image", "image"))
    places = _find_columns(header, columns or {}, file)
    notes: list[str] = []
    records = list(_records(rows, places, file, notes))
    return Manifest(file, file.parent if root is None else root, records, tuple(notes))


def write_manifest(file: Path, records: Iterable[Record]) -> None:
    """Write a table of images as CSV, with only those columns that hold something. Atomic.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if a name cannot be written as UTF-8.
    """
    table = list(records)
    used = [name for name in FIELDS if name == "image" or _any_value(table, name)]
    text = io.StringIO(newline="")
    # RFC 4180's line ends: with "\n" alone Python 3.11 leaves a "\r" in a name unquoted.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(used)
    writer.writerows([_cell(getattr(record, name)) for name in used] for record in table)
    try:
        content = text.getvalue().encode("utf-8")
    except UnicodeEncodeError as error:
        bad = printable(error.object[max(0, error.start - 40) : error.end])
        raise DerminoError(
            "MANIFEST_INVALID",
            f"A name cannot be written as UTF-8: ...{bad}.",
            where=file,
            fix="Rename that file.",
        ) from error
    write_atomically(file, content)


def row_number(index: int) -> int:
    """The spreadsheet row of the record at `index`."""
    return index + HEADER_ROW + 1


def _find_columns(header: list[str], columns: Mapping[str, str], file: Path) -> dict[str, int]:
    """Our column name -> its place in a row."""
    found = ", ".join(printable(name)[:60] for name in header[:50])
    by_name: dict[str, int] = {}
    for place, name in enumerate(header):
        key = name.casefold()
        if key and key in by_name:
            raise DerminoError(
                "MANIFEST_INVALID",
                f"Two columns are called {printable(name)!r}.",
                where=file,
                fix="Rename one of them.",
            )
        by_name[key] = place
    by_name.pop("", None)
    places: dict[str, int] = {}
    for field in FIELDS:
        if field in columns:
            wanted = columns[field].strip().casefold()
            if wanted not in by_name:
                raise DerminoError(
                    "MANIFEST_INVALID",
                    f"There is no column {printable(columns[field])!r} (for {field}).",
                    where=file,
                    fix=f"The columns found are: {found}.",
                )
            places[field] = by_name[wanted]
            continue
        for name in (field, *ALIASES.get(field, ())):
            if name in by_name:
                places[field] = by_name[name]
                break
    if "image" not in places:
        raise DerminoError(
            "MANIFEST_INVALID",
            f"There is no column image; the columns found are: {found}.",
            where=file,
            fix="Rename the column with the file names to image, or map it: --column image=COLUMN, "
            'in a site file columns = { image = "COLUMN" }.',
        )
    return places


def _records(
    rows: Iterator[tuple[int, Sequence[object]]],
    places: Mapping[str, int],
    file: Path,
    notes: list[str],
) -> Iterator[Record]:
    bad_ages, first_bad_age = 0, ""
    for number, row in rows:
        # Names of files keep their spaces; a cell of nothing but spaces is empty all the same.
        texts = {field: _text(row[place], field, number, file) for field, place in places.items()}
        image = texts.get("image")
        if image is None:
            raise DerminoError(
                "MANIFEST_INVALID", f"Row {number} names no image.", where=f"{file}, row {number}"
            )
        age, understood = _age(texts.get("age"))
        if not understood:
            bad_ages += 1
            first_bad_age = first_bad_age or f"{printable(texts['age'] or '')[:40]!r}, row {number}"
        yield Record(
            image=image,
            label=texts.get("label"),
            split=_split(texts.get("split"), number, file),
            group=texts.get("group"),
            skin_type=texts.get("skin_type"),
            sex=texts.get("sex"),
            age=age,
            mask=texts.get("mask"),
            caption=texts.get("caption"),
        )
    if bad_ages:
        notes.append(f"{bad_ages} ages are no number of years and left out ({first_bad_age})")


def _text(value: object, field: str, number: int, file: Path) -> str | None:
    if value is None:
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        # pandas turns integer columns with gaps into floats.
        value = int(value) if value.is_integer() and field != "age" else value
    elif isinstance(value, bytes | bytearray | list | dict | tuple):
        raise DerminoError(
            "MANIFEST_INVALID",
            f"Row {number}: {field} is not text or a number but {type(value).__name__}.",
            where=file,
            fix=f"Store {field} as text.",
        )
    text = str(value)
    if "\0" in text:
        raise DerminoError(
            "MANIFEST_INVALID", f"Row {number}: {field} holds a null byte.", where=file
        )
    stripped = text.strip()
    if not stripped:
        return None
    return text if field in {"image", "mask"} else stripped


def _split(text: str | None, number: int, file: Path) -> str | None:
    if text is None:
        return None
    try:
        return SPLITS[text.casefold()]
    except KeyError:
        raise DerminoError(
            "MANIFEST_INVALID",
            f"Row {number}: split is {printable(text)[:60]!r}.",
            where=file,
            fix=f"Allowed are {', '.join(SPLITS)}, or nothing.",
        ) from None


def _age(text: str | None) -> tuple[float | None, bool]:
    """Years, and whether the text was understood."""
    if text is None:
        return None, True
    try:
        age = float(text.replace(",", "."))
    except ValueError:
        return None, False
    if math.isnan(age):
        return None, True
    return (age, True) if 0.0 <= age <= 150.0 else (None, False)


def _any_value(records: Sequence[Record], name: str) -> bool:
    return any(getattr(record, name) is not None for record in records)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
