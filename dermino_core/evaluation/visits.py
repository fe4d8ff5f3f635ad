"""Dated images of lesions, and the pairs that follow each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.evaluation.columns import (
    NO,
    YES,
    Row,
    bad_row,
    cell,
    manifest_columns,
    number,
    read_columns,
)
from dermino_core.manifest import Record, read_manifest
from dermino_core.manifest_table import printable

CHANGED = YES | {"changed", "change"}
UNCHANGED = NO | {"unchanged", "no change", "stable"}

NAMED = 10
"""Most lesions named in a note."""


@dataclass(frozen=True)
class Visit:
    """One image of a lesion.

    Attributes
    ----------
    record
        Its row of the manifest.
    lesion
        What is looked at again and again; its name need be unique within the patient only.
    unit
        Patient, or else lesion: what may not be in both halves.
    day
        Days since any fixed day.
    changed
        Whether the lesion is another than on the image before; None if nobody said.
    row
        Of the table, for messages.
    """

    record: Record
    lesion: str
    unit: str
    day: float
    changed: bool | None
    row: int


@dataclass(frozen=True)
class Pairs:
    """Images that follow each other, P pairs.

    Attributes
    ----------
    before, after
        Indices into the visits, [P].
    labels
        1 where the lesion changed, [P].
    units
        Patient or lesion of each pair.
    splits
        The table's own split of each pair, None without.
    notes
        What was left out.
    """

    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    units: tuple[str, ...]
    splits: tuple[str | None, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def read_visits(
    file: Path, *, root: Path | None = None, columns: Mapping[str, str] | None = None
) -> list[Visit]:
    """Read a manifest with columns for time and change.

    Columns: `lesion` or `group` (with both, `group` is the patient); `date` (ISO 8601, e.g.
    `2021-03-01`, or `01.03.2021`) or `day` (a number, where dates may not be told); `changed`
    (yes or no, against the image before; empty for the first), or `label` with such values.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if columns are missing; with the row's number for a date that cannot be
        read, an unknown answer, or a second image of a lesion on one date; and as for
        :func:`dermino_core.manifest.read_manifest`.
    """
    records = read_manifest(file, root=root, columns=manifest_columns(columns)).records
    found, rows = read_columns(
        file,
        required=("image",),
        optional=("lesion", "group", "date", "day", "changed", "label"),
        columns=columns,
    )
    lesion, when, changed = (
        _first_of(found, names, file)
        for names in (("lesion", "group"), ("date", "day"), ("changed", "label"))
    )
    visits = []
    seen: dict[tuple[str, str, float], int] = {}
    for record, row in zip(records, rows, strict=True):
        name = cell(row, lesion, file)
        key = record.group or name, name, _days(row, when, file)
        if seen.setdefault(key, row.number) != row.number:
            raise bad_row(
                row,
                f"the lesion {printable(name)[:60]!r} has another image of the same {when} in row "
                f"{seen[key]}",
                file,
                fix="Leave one of them out: which came first cannot be known.",
            )
        unit, _, day = key
        answer = _changed(row, changed, file)
        visits.append(Visit(record, name, unit, day, answer, row.number))
    return visits


def pair_visits(visits: Sequence[Visit]) -> Pairs:
    """Each image with the next of its lesion, lesions in order of appearance.

    Lesions with one image, and pairs whose later image does not say whether anything changed, are
    left out and named in the notes.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if the two images of a pair are in different halves; `DATA_TOO_FEW` if
        no pair is left.
    """
    of_lesion: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, visit in enumerate(visits):
        of_lesion[visit.unit, visit.lesion].append(index)
    pairs: list[tuple[int, int]] = []
    unanswered: list[int] = []
    for indices in of_lesion.values():
        in_order = sorted(indices, key=lambda index: visits[index].day)
        for before, after in pairwise(in_order):
            one, two = visits[before], visits[after]
            if one.record.split != two.record.split:
                raise DerminoError(
                    "MANIFEST_INVALID",
                    f"Rows {one.row} and {two.row} show the lesion {printable(one.lesion)[:60]!r} "
                    "but differ in their split.",
                    fix="Put all images of a lesion into one half.",
                )
            if two.changed is None:
                unanswered.append(two.row)
            else:
                pairs.append((before, after))
    notes = []
    if alone := [name for (_, name), indices in of_lesion.items() if len(indices) == 1]:
        named = ", ".join(map(printable, alone[:NAMED]))
        more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
        notes.append(f"{len(alone)} lesions have one image and are left out: {named}{more}.")
    if unanswered:
        notes.append(
            f"{len(unanswered)} pairs do not say whether the lesion changed and are left out, the "
            f"first in row {unanswered[0]}."
        )
    if not pairs:
        raise DerminoError(
            "DATA_TOO_FEW",
            "No lesion has two dated images and an answer whether it changed.",
            fix="Fill the columns lesion, date and changed.",
        )
    later = [visits[after] for _, after in pairs]
    return Pairs(
        np.array([before for before, _ in pairs]),
        np.array([after for _, after in pairs]),
        np.array([int(bool(visit.changed)) for visit in later]),
        tuple(visit.unit for visit in later),
        tuple(visit.record.split for visit in later),
        tuple(notes),
    )


def _first_of(found: frozenset[str], names: Sequence[str], file: Path) -> str:
    for name in names:
        if name in found:
            return name
    raise DerminoError(
        "MANIFEST_INVALID",
        f"There is no column {' and no column '.join(names)}.",
        where=file,
        fix=f"Add a column {names[0]}.",
    )


def _days(row: Row, column: str, file: Path) -> float:
    text = cell(row, column, file)
    if column == "day":
        return number(row, column, file) or 0.0
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        try:
            when = datetime.strptime(text, "%d.%m.%Y")
        except ValueError:
            raise bad_row(
                row,
                f"the date {printable(text)[:60]!r} cannot be read",
                file,
                fix="Write dates as 2021-03-01.",
            ) from None
    midnight = when.replace(hour=0, minute=0, second=0, microsecond=0)
    return when.toordinal() + (when - midnight).total_seconds() / 86400


def _changed(row: Row, column: str, file: Path) -> bool | None:
    text = row.cells[column]
    if text is None:
        return None
    if (plain := text.casefold()) in CHANGED | UNCHANGED:
        return plain in CHANGED
    raise bad_row(
        row,
        f"{column} is {printable(text)[:60]!r}, not yes or no",
        file,
        fix="Write yes where the lesion changed since the image before, else no.",
    )
