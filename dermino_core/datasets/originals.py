"""What readers of original downloads share: tables, indexes of images, words for what is amiss."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dermino_core.errors import DerminoError

Split = Literal["halves", "published"]
"""`halves`: left to whoever uses the manifest, as the paper; `published`: the data set's own."""

JPEG = (".jpg", ".jpeg")
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
_SHOWN = 5


@dataclass(frozen=True)
class Line:
    """One row of a publisher's table: column -> text without spaces around it, and its place."""

    cells: dict[str, str]
    where: str

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def known(self, column: str) -> str:
        """The cell, or nothing where the table says that it does not know."""
        text = self[column]
        return "" if text.casefold() in {"unknown", "na", "n/a", "nan", "none"} else text


def read_lines(
    file: Path, columns: Sequence[str], *, header: Sequence[str] | None = None
) -> list[Line]:
    """The rows of a publisher's CSV file, separated by comma, semicolon or tab.

    Parameters
    ----------
    columns
        Columns that must be there; others are read as well.
    header
        Column names for a file that has none of its own.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the file cannot be read, is no such table or lacks a column.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DerminoError(
            "DATASET_LAYOUT", f"The table cannot be read: {reason}.", where=file
        ) from error
    first = text.partition("\n")[0]
    delimiter = max((",", ";", "\t"), key=first.count)
    stream = io.StringIO(text, newline="")
    reader = csv.DictReader(stream, fieldnames=header, delimiter=delimiter, strict=True)
    try:
        absent = [name for name in columns if name not in (reader.fieldnames or [])]
        if absent:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The table has no column {', '.join(absent)}.",
                where=file,
                fix="Use the table of the original download.",
            )
        return [
            Line(
                {name: (cell or "").strip() for name, cell in row.items() if name is not None},
                f"{file}, line {reader.line_num}",
            )
            for row in reader
        ]
    except csv.Error as error:
        raise DerminoError(
            "DATASET_LAYOUT", f"The table is not a CSV file: {error}.", where=file
        ) from error


def files_below(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Files under `folder` with one of `endings` (small letters), by name; hidden ones left out.

    Archives packed on a Mac hold hidden doubles (`__MACOSX/._1.jpg`): these are hidden, too.
    """
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [
            Path(root, name)
            for name in sorted(names)
            if name.lower().endswith(tuple(endings)) and not name.startswith(".")
        ]
    return found


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """File name without ending, in small letters -> the first file called so."""
    index: dict[str, Path] = {}
    for file in files:
        index.setdefault(file.stem.casefold(), file)
    return index


def refuse_missing(
    missing: Sequence[str], total: int, *, where: Path, kind: str = "images of the table"
) -> None:
    """Raise `DATASET_LAYOUT` if anything is missing, with the first few names."""
    if missing:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"{len(missing)} of {total} {kind} are not there: {listed(missing)}.",
            where=where,
            fix="Unpack the download again, all of its parts.",
        )


def unknown_label(what: str, label: str, known: Iterable[str], where: str) -> DerminoError:
    """The error for a label that the publication does not name."""
    return DerminoError(
        "DATASET_LAYOUT",
        f"{what} is {label!r}, not one of: {', '.join(known)}.",
        where=where,
        fix="Use the table of the original download.",
    )


def check_choice(option: str, given: str, allowed: Any) -> None:
    """Make sure that `given` is one of the values of the literal type `allowed`.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` otherwise.
    """
    if given not in get_args(allowed):
        raise DerminoError(
            "CONFIG_INVALID",
            f"The option {option} is {given!r}.",
            fix=f"Use one of: {', '.join(get_args(allowed))}.",
        )


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def entry(file: Path, raw: Path) -> str:
    """`file` as a manifest of the folder `raw` names it."""
    return file.relative_to(raw).as_posix()
