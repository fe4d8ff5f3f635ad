"""Header and rows out of a CSV or Parquet file, with errors that name the row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from dermino_core.errors import DerminoError

HEADER_ROW = 1
"""Rows are numbered as in a spreadsheet; blank rows are not counted."""

Table = tuple[list[str], Iterator[tuple[int, Sequence[object]]]]
"""Column names, and (row number, cells) of each row that is not blank."""

_DELIMITERS = (",", ";", "\t")
_PARQUET_MAGIC = b"PAR1"


def read_rows(file: Path, *, image_column: str) -> Table:
    """Open a table; rows are read as they are asked for.

    CSV: UTF-8 with or without byte order mark; separated by comma, semicolon or tab, whichever
    gives a header with `image_column` in it, else the most columns; quoted as in RFC 4180.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID`, here or while rows are read, for an unreadable, empty or damaged file
        and for rows whose number of cells is not the header's.
    """
    data = _read_table_bytes(file)
    if data.startswith(_PARQUET_MAGIC):
        return _parquet_rows(data, file)
    if file.suffix.lower() in {".parquet", ".pq"}:
        raise DerminoError(
            "MANIFEST_INVALID",
            "The file is named like a Parquet file but is none.",
            where=file,
            fix="Write it again, or name it .csv if it is text.",
        )
    return _csv_rows(data, file, image_column)


def printable(text: str) -> str:
    r"""`text` with control, invisible and direction-changing characters as escapes (`\n`)."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _read_table_bytes(file: Path) -> bytes:
    try:
        if file.exists() and not file.is_file():
            raise DerminoError("MANIFEST_INVALID", "Not a regular file.", where=file)
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a valid file name"
        raise DerminoError(
            "MANIFEST_INVALID",
            f"The table of images cannot be read: {reason}.",
            where=file,
            fix="Give the path of a CSV or Parquet file that this user may read.",
        ) from error
    if not data.strip():
        raise DerminoError("MANIFEST_INVALID", "The table of images is empty.", where=file)
    return data


def _csv_rows(data: bytes, file: Path, image_column: str) -> Table:
    text = _decode_text(data, file)
    wanted = image_column.strip().casefold()
    delimiter = max(_DELIMITERS, key=lambda sign: _header_score(text, sign, wanted))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = _numbered(reader, file)
    try:
        _, header = next(rows)
    except StopIteration:
        raise DerminoError(
            "MANIFEST_INVALID", "The table of images is empty.", where=file
        ) from None
    header = [name.strip() for name in header]
    return header, _even_rows(rows, len(header), file)


def _decode_text(data: bytes, file: Path) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise DerminoError(
            "MANIFEST_INVALID",
            "The table is UTF-16, not UTF-8."
            if utf16
            else f"The table is not UTF-8: byte 0x{data[error.start]:02x} in line {line}.",
            where=file,
            fix='Save it as UTF-8 (in Excel: "CSV UTF-8 (comma delimited)").',
        ) from error
    if (place := text.find("\0")) >= 0:
        raise DerminoError(
            "MANIFEST_INVALID",
            f"The table has a null byte in line {text.count(chr(10), 0, place) + 1}.",
            where=file,
            fix="Save it as UTF-8 text; this one is damaged or of another kind.",
        )
    return text


def _header_score(text: str, delimiter: str, wanted: str) -> tuple[bool, int]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next((row for row in reader if any(cell.strip() for cell in row)), [])
    except csv.Error:
        return False, 0
    return any(cell.strip().casefold() == wanted for cell in header), len(header)


def _numbered(reader: Iterator[list[str]], file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that hold something, with their number."""
    number = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DerminoError(
                "MANIFEST_INVALID",
                f"Row {number + 1} cannot be read: {error}.",
                where=file,
                fix="Look for a quotation mark without its partner.",
            ) from error
        if any(cell and not cell.isspace() for cell in row):
            number += 1
            yield number, row


def _even_rows(
    rows: Iterator[tuple[int, list[str]]], width: int, file: Path
) -> Iterator[tuple[int, list[str]]]:
    for number, row in rows:
        if len(row) != width:
            raise DerminoError(
                "MANIFEST_INVALID",
                f"Row {number} has {len(row)} cells, the header has {width}.",
                where=file,
                fix="Put quotation marks around cells that hold the separator.",
            )
        yield number, row


def _parquet_rows(data: bytes, file: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data))
        header = [field.name for field in table.schema_arrow]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _bad_parquet(error, file) from error

    def rows() -> Iterator[tuple[int, Sequence[object]]]:
        number = HEADER_ROW
        try:
            for batch in table.iter_batches():
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, row
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _bad_parquet(error, file) from error

    return header, rows()


def _bad_parquet(error: BaseException, file: Path) -> DerminoError:
    said = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
    return DerminoError(
        "MANIFEST_INVALID",
        f"The Parquet file is damaged: {said[:200]}.",
        where=file,
        fix="Write it again, or use CSV.",
    )
