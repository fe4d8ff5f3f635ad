"""Cells of published tables in a manifest's words; tables that are workbooks; what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dermino_core.datasets.originals import Line, read_lines
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

MISSING_FILE = "missing.csv"

_SKIN_TYPES = frozenset("123456")


def read_published(table: Path, columns: Sequence[str]) -> list[Line]:
    """The rows of a CSV file, or of the first sheet of a workbook (`.xlsx`).

    Parameters
    ----------
    columns
        Columns that must be there.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the file is no such table, lacks a column or has no rows;
        `DEPENDENCY_MISSING` if it is a workbook and openpyxl is not installed.
    """
    is_workbook = table.suffix.lower() == ".xlsx"
    lines = _read_workbook(table, columns) if is_workbook else read_lines(table, columns)
    if not lines:
        raise DerminoError("DATASET_LAYOUT", "The table names no image.", where=table)
    return lines


def list_missing(out: Path, header: Sequence[str], missing: Sequence[Sequence[str]]) -> None:
    """Write `out/missing.csv`, or remove an old one if nothing is missing."""
    file = out / MISSING_FILE
    if missing:
        write_table(file, header, missing)
    else:
        file.unlink(missing_ok=True)


def one_label(text: str) -> str:
    """A label that a manifest takes for a single one: `|` and `;` separate labels there."""
    return " ".join(text.replace("|", ",").replace(";", ",").split())


def fitzpatrick_type(text: str) -> str:
    """`"1"`..`"6"` from 3, 3.0 or FST3; empty for anything else."""
    number = text.strip().upper().removeprefix("FST").removesuffix(".0")
    return number if number in _SKIN_TYPES else ""


def sex_of(text: str) -> str:
    """`"female"`, `"male"`, or empty for anything else."""
    return text.casefold() if text.casefold() in {"female", "male"} else ""


def _read_workbook(table: Path, columns: Sequence[str]) -> list[Line]:
    rows = _workbook_rows(table)
    header = next(rows, [])
    if absent := [name for name in columns if name not in header]:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"The table has no column {', '.join(absent)}.",
            where=table,
            fix="Use the table of the original download.",
        )
    return [
        Line(dict(zip(header, cells, strict=False)), f"{table}, row {number}")
        for number, cells in enumerate(rows, start=2)
        if any(cells)
    ]


def _workbook_rows(table: Path) -> Iterator[list[str]]:
    from zipfile import BadZipFile

    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            "Reading this workbook needs the package openpyxl.",
            where=table,
            fix="pip install 'dermino[xlsx]', or save the table as CSV beside it.",
        ) from None
    try:
        book = load_workbook(table, read_only=True, data_only=True)
    except (BadZipFile, InvalidFileException, KeyError, OSError) as error:
        raise DerminoError(
            "DATASET_LAYOUT", f"This is not a readable workbook: {error}.", where=table
        ) from error
    try:
        for row in book.worksheets[0].iter_rows(values_only=True):
            yield ["" if cell is None else str(cell).strip() for cell in row]
    finally:
        book.close()
