"""The table of labels that a person reviews: what each source label is merged into.

Columns: `source_label` (as the data set writes it), `dataset`, `images`, `normalised`,
`merged_into`, `similarity` (cosine of the last two names). A person edits `merged_into`: empty, and
the label is ignored (its image counts as unlabelled); `!name`, and the image is known not to have
`name`; several names separated by `|`, and it has them all. Only `source_label` and `merged_into`
are needed to read it back.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.label_names import NOT, tidy_name
from dermino_core.manifest_table import printable, read_rows

COLUMNS = ("source_label", "dataset", "images", "normalised", "merged_into", "similarity")
"""In the order in which they are written."""


@dataclass(frozen=True)
class LabelRow:
    """One source label; `merged_into` holds names, some with `!` before them."""

    source_label: str
    dataset: str
    images: int | None
    normalised: str
    merged_into: tuple[str, ...]
    similarity: float | None


def write_label_table(path: Path, rows: Iterable[LabelRow]) -> None:
    """Write the table as CSV. Atomic."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in rows:
        similarity = "" if row.similarity is None else f"{row.similarity:.3f}"
        images = "" if row.images is None else str(row.images)
        names = "|".join(row.merged_into)
        writer.writerow((row.source_label, row.dataset, images, row.normalised, names, similarity))
    write_atomically(path, text.getvalue())


def read_label_table(path: Path) -> list[LabelRow]:
    """Read a table of labels, as written or as edited in a spreadsheet program.

    Names that differ in case, hyphens or punctuation are one name.

    Raises
    ------
    DerminoError
        `CONFIG_NOT_FOUND` without the file; `MANIFEST_INVALID`, with the row, for everything that
        keeps it from being read without guessing: a missing column or label, an empty name
        between two `|`, a name and its `!` in one cell, a label twice with two answers.
    """
    if not path.is_file():
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            "There is no such table of labels.",
            where=path,
            fix="Write one with: dermino labels build MANIFEST... --out labels.csv",
        )
    header, rows = read_rows(path, image_column="source_label")
    places = {name.casefold(): place for place, name in enumerate(header)}
    for column in ("source_label", "merged_into"):
        if column not in places:
            raise DerminoError(
                "MANIFEST_INVALID",
                f"The table of labels has no column {column}.",
                where=path,
                fix=f"Its columns are {', '.join(COLUMNS)}; found: "
                f"{', '.join(printable(name)[:60] for name in header[:50])}.",
            )
    table: list[LabelRow] = []
    seen: dict[str, tuple[int, tuple[str, ...]]] = {}
    for number, cells in rows:
        texts = {name: _text(cells[place]) for name, place in places.items()}
        row = _parse(texts, number, path)
        earlier = seen.setdefault(row.source_label, (number, row.merged_into))
        if set(earlier[1]) != set(row.merged_into):
            raise DerminoError(
                "MANIFEST_INVALID",
                f"Rows {earlier[0]} and {number} merge {printable(row.source_label)!r} into "
                f"{_shown(earlier[1])} and {_shown(row.merged_into)}.",
                where=path,
                fix="Give both rows the same merged_into, or rename the label in one data set.",
            )
        table.append(row)
    return table


def merged_names(rows: Iterable[LabelRow]) -> tuple[str, ...]:
    """Every name that a label is merged into, without `!`, sorted."""
    return tuple(sorted({name.removeprefix(NOT) for row in rows for name in row.merged_into}))


def _parse(texts: dict[str, str], number: int, path: Path) -> LabelRow:
    label = texts["source_label"]
    if not label:
        raise _bad(number, "source_label is empty", path, "Give the label, or remove the row.")
    names: list[str] = []
    parts = texts["merged_into"].split("|") if texts["merged_into"] else []
    for part in parts:
        negated = part.strip().startswith(NOT)
        name = tidy_name(part.strip().removeprefix(NOT))
        if not name:
            advice = "Write names separated by |, or nothing to ignore the label."
            raise _bad(number, f"merged_into {_quoted(texts)} has an empty name", path, advice)
        names.append(NOT + name if negated else name)
    if any(NOT + name in names for name in names):
        what = f"merged_into {_quoted(texts)} has a name both with and without {NOT}"
        raise _bad(number, what, path, "Keep one of them.")
    images = _number(texts.get("images", ""))
    return LabelRow(
        label,
        texts.get("dataset", ""),
        None if images is None or not images.is_integer() else int(images),
        texts.get("normalised", ""),
        tuple(dict.fromkeys(names)),
        _number(texts.get("similarity", "")),
    )


def _number(text: str) -> float | None:
    """For people only: a spreadsheet may have rewritten it beyond recognition."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None


def _bad(number: int, what: str, path: Path, advice: str) -> DerminoError:
    return DerminoError(
        "MANIFEST_INVALID", f"Row {number}: {what}.", where=f"{path}, row {number}", fix=advice
    )


def _quoted(texts: dict[str, str]) -> str:
    return repr(printable(texts["merged_into"])[:80])


def _shown(names: Sequence[str]) -> str:
    return repr(printable("|".join(names))) if names else "nothing"


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
