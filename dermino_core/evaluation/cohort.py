"""From a table of images to the two halves that tasks work on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.examples import Examples, Halves, Integers
from dermino_core.evaluation.results import DatasetSummary
from dermino_core.features import FeatureTable
from dermino_core.labels import propose_label_map
from dermino_core.manifest import Manifest, Record
from dermino_core.splits import independent_units, split_records, torn_units

UNKNOWN = "(no label)"
"""Stands in for an empty label where images are divided."""


@dataclass(frozen=True)
class Cohort:
    """A data set, before any image is read.

    Attributes
    ----------
    name, title
        For files and for people.
    manifest
        Its table.
    classes
        Names in order; the last is the positive class of a binary task. Empty without labels.
    columns
        Our column name -> the table's, where they differ.
    """

    name: str
    title: str
    manifest: Manifest
    classes: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def records(self) -> Sequence[Record]:
        """The rows of the table."""
        return self.manifest.records

    @property
    def paths(self) -> list[Path]:
        """Where the images are."""
        return [self.manifest.path_of(record) for record in self.records]


@dataclass(frozen=True)
class Division:
    """Which rows of a cohort train and which test; the same for every backbone.

    Attributes
    ----------
    train, test
        Rows of the manifest whose image can be read, in order.
    units
        What belongs together, one name for each row of the manifest.
    notes
        What a reader of the numbers must know.
    """

    train: Integers
    test: Integers
    units: tuple[str, ...]
    notes: tuple[str, ...]


def open_cohort(
    name: str,
    manifest: Manifest,
    *,
    title: str | None = None,
    classes: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> Cohort:
    """A cohort of a manifest.

    Parameters
    ----------
    classes
        The task's classes in order; images of others are left out of what needs a label. By
        default all labels of the table, a malignant one last if there are two.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` without rows; `CONFIG_INVALID` if a class has no image.
    """
    if not manifest.records:
        raise DerminoError(
            "MANIFEST_INVALID",
            "This table names no image.",
            where=manifest.file,
            fix="Give a table with at least one row.",
        )
    found = Counter(record.label for record in manifest.records if record.label is not None)
    if missing := [label for label in classes if label not in found]:
        raise DerminoError(
            "CONFIG_INVALID",
            f"No image has the label {missing[0]!r}.",
            where=manifest.file,
            fix=f"Its labels are {', '.join(sorted(found)) or 'empty'}.",
        )
    chosen = tuple(classes) or _in_order(sorted(found))
    return Cohort(name, title or name, manifest, chosen, columns or {})


def _in_order(labels: list[str]) -> tuple[str, ...]:
    """Two labels with the malignant one last; others by name."""
    if len(labels) == 2:
        meaning = propose_label_map(labels, ("benign", "malignant"), "malignancy")
        labels.sort(key=lambda label: (meaning[label] == "malignant", label))
    return tuple(labels)


def divide_cohort(cohort: Cohort, table: FeatureTable, *, seed: int = 0) -> Division:
    """Training and test rows: the manifest's own, or stratified halves that share no unit.

    `val` trains, as the paper has no third part. Nothing depends on the backbone: `table` says
    which images can be read, and which are the same.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if only some rows have a split of their own; `DATA_TOO_FEW` if a half is
        empty.
    """
    records = cohort.records
    units = independent_units(records, table.digests)
    own = any(record.split is not None for record in records)
    split = split_records(
        [replace(record, group=unit) for record, unit in zip(records, units, strict=True)],
        [record.label or UNKNOWN for record in records],
        seed=seed,
        where=cohort.manifest.file,
    )
    notes = []
    if own and (torn := torn_units(units, split)):
        notes.append(
            f"The data set's own split puts {len(torn)} patients, lesions or identical images into "
            "both halves: its numbers flatter."
        )
    sides = np.array(split)[table.rows]
    train, test = table.rows[sides != "test"], table.rows[sides == "test"]
    for half, rows in (("training", train), ("test", test)):
        if not len(rows):
            raise DerminoError(
                "DATA_TOO_FEW",
                f"No readable image is in the {half} half.",
                where=cohort.manifest.file,
                fix="Check the column split, or leave it out for stratified halves.",
            )
    return Division(train, test, tuple(units), tuple(notes))


def labelled_halves(
    cohort: Cohort, division: Division, table: FeatureTable
) -> tuple[Halves, Integers, list[str]]:
    """Features and labels of both halves.

    Classes without an image in both halves cannot be learned or scored; their images are left
    out and the returned notes say so.

    Returns
    -------
    The halves, the manifest rows of its test images, and the notes.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if fewer than two classes are left.
    """
    labels = [record.label for record in cohort.records]
    counts = {
        half: Counter(labels[row] for row in rows)
        for half, rows in (("training", division.train), ("test", division.test))
    }
    kept = [c for c in cohort.classes if counts["training"][c] and counts["test"][c]]
    notes = [
        f"{label!r} is in the {half} half only ({number} images): left out."
        for label in cohort.classes
        for half, other in (("training", "test"), ("test", "training"))
        if (number := counts[half][label]) and not counts[other][label]
    ]
    if len(kept) < 2:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"{len(kept)} classes have images in both halves; two are needed.",
            where=cohort.manifest.file,
            fix="Give a table with labels of at least two classes, with two images of each.",
        )
    number = {label: index for index, label in enumerate(kept)}
    place = np.full(len(labels), -1)
    place[table.rows] = np.arange(len(table.rows))
    sides = []
    for rows in (division.train, division.test):
        chosen = rows[[labels[row] in number for row in rows]]
        sides.append(
            (
                chosen,
                Examples(
                    np.asarray(table.vectors[place[chosen]], dtype=np.float32),
                    np.array([number[str(labels[row])] for row in chosen], dtype=np.int64),
                    tuple(division.units[row] for row in chosen),
                ),
            )
        )
    (_, train), (test_rows, test) = sides
    return Halves(train, test, tuple(kept)), test_rows, notes


def summary(
    cohort: Cohort, division: Division, table: FeatureTable, notes: Sequence[str]
) -> DatasetSummary:
    """What a reader of the numbers wants to know of the data."""
    labels = [record.label or UNKNOWN for record in cohort.records]
    return DatasetSummary(
        name=cohort.name,
        title=cohort.title,
        images=len(cohort.records),
        unreadable=len(table.unreadable),
        n_train=len(division.train),
        n_test=len(division.test),
        units_test=len({division.units[row] for row in division.test}),
        grouped=any(record.group is not None for record in cohort.records),
        classes=list(cohort.classes),
        train_counts=dict(Counter(labels[row] for row in division.train)),
        test_counts=dict(Counter(labels[row] for row in division.test)),
        notes=list(notes),
    )
