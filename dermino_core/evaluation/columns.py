"""Columns of a table by name, for tasks that need more than a manifest has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dermino_core.errors import DerminoError
from dermino_core.manifest import FIELDS
from dermino_core.manifest_table import printable, read_rows

YES = frozenset({"1", "1.0", "yes", "y", "true", "t"})
NO = frozenset({"0", "0.0", "no", "n", "false", "f"})


class Row(NamedTuple):
    """A row: its number in a spreadsheet, and column -> text (None where empty)."""

    number: int
    cells: dict[str, str | None]


def read_columns(
    file: Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> tuple[frozenset[str], list[Row]]:
    """Read columns of a CSV or Parquet file; their names are found in any case.

    Parameters
    ----------
    columns
        Our column name -> the name in this file, as for
        :func:`dermino_core.manifest.read_manifest`.

    Returns
    -------
    The columns that are there, and every row that holds something.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if the file cannot be read, a required column is missing or a name is
        there twice, or there are no rows.
    """
    called = dict(columns or {})
    header, rows = read_rows(file, image_column=called.get(required[0], required[0]))
    ours = {theirs.strip().casefold(): name for name, theirs in called.items()}
    plain = [name.strip().casefold() for name in header]
    # A column that is mapped away from its own name does not stand for that name.
    names = [ours.get(name, "" if name in called else name) for name in plain]
    wanted = [*required, *optional]
    for name in wanted:
        if names.count(name) > 1:
            raise DerminoError(
                "MANIFEST_INVALID",
                f"Two columns are called {name}.",
                where=file,
                fix="Rename one of them.",
            )
    if missing := [name for name in required if name not in names]:
        found = ", ".join(printable(name)[:60] for name in header[:50])
        raise DerminoError(
            "MANIFEST_INVALID",
            f"There is no column {missing[0]}; the columns found are: {found}.",
            where=file,
            fix=f"Needed are {', '.join(required)}"
            + (f"; understood are also {', '.join(optional)}." if optional else "."),
        )
    places = {name: names.index(name) for name in wanted if name in names}
    table = [
        Row(number, {name: _text(row[place]) for name, place in places.items()})
        for number, row in rows
    ]
    if not table:
        raise DerminoError("MANIFEST_INVALID", "The table has no rows.", where=file)
    return frozenset(places), table


def manifest_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Those of `columns` that a manifest has a field for."""
    return {name: theirs for name, theirs in (columns or {}).items() if name in FIELDS}


def _text(value: object) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    # pandas turns integer columns with gaps into floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def cell(row: Row, column: str, file: Path) -> str:
    """The text of a cell that may not be empty.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` with the row's number if it is.
    """
    text = row.cells[column]
    if text is None:
        raise bad_row(row, f"{column} is empty", file)
    return text


def number(row: Row, column: str, file: Path) -> float | None:
    """The finite number in a cell; None where it is empty or there is no such column.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` with the row's number if it holds something else.
    """
    text = row.cells.get(column)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise bad_row(row, f"{column} is {printable(text)[:60]!r}, not a number", file)
    return value


def yes_or_no(row: Row, column: str, file: Path) -> bool | None:
    """Whether a cell says yes; None where it is empty or there is no such column.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` with the row's number if it says neither yes nor no.
    """
    text = row.cells.get(column)
    if text is None:
        return None
    if (plain := text.casefold()) in YES | NO:
        return plain in YES
    raise bad_row(row, f"{column} is {printable(text)[:60]!r}, not yes or no", file)


def bad_row(row: Row, what: str, file: Path, *, fix: str | None = None) -> DerminoError:
    """An error about one row: `Row 7: WHAT.`"""
    return DerminoError("MANIFEST_INVALID", f"Row {row.number}: {what}.", where=file, fix=fix)
