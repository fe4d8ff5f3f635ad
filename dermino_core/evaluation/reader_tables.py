"""The tables of a reader study: the items with truth and model, and the readers' answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dermino_core.errors import DerminoError
from dermino_core.evaluation.columns import Row, bad_row, cell, number, read_columns, yes_or_no
from dermino_core.evaluation.examples import Floats, Integers
from dermino_core.labels import normalise_label
from dermino_core.manifest_table import printable

IMAGE_ENDINGS = frozenset({".bmp", ".dcm", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Without these, and without its folder, an item's name may be written too."""


@dataclass(frozen=True)
class Item:
    """An image that readers were shown.

    Attributes
    ----------
    truth, prediction
        Class names: what it is, and what the model says.
    choices
        Class names that a reader could answer.
    group
        Patient or lesion, drawn as a whole; default: the item itself.
    dataset
        Where it is from, if the study mixes several (the paper's: MPL5 and SID2).
    """

    name: str
    truth: str
    prediction: str
    choices: tuple[str, ...]
    group: str | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Answer:
    """What one reader said of one item.

    Attributes
    ----------
    answer
        A class name, one of the item's choices.
    assisted
        Whether the reader saw the model's prediction.
    order
        Position in the reading, from small to large.
    """

    reader: str
    item: str
    answer: str
    assisted: bool = False
    experience: str | None = None
    order: float | None = None
    confidence: float | None = None


def items_of_predictions(
    images: Sequence[str],
    labels: Integers,
    scores: Floats,
    classes: Sequence[str],
    units: Sequence[str] | None = None,
) -> list[Item]:
    """Items out of a model's class scores [n, C]; it says the class with the highest.

    Raises
    ------
    ValueError
        If lengths do not fit.
    """
    n = len(images)
    if len(labels) != n or scores.shape != (n, len(classes)) or len(units or images) != n:
        raise ValueError(
            f"{n} images, {len(labels)} labels, scores {list(scores.shape)}, {len(classes)} "
            f"classes, {len(units or images)} units"
        )
    choices = tuple(classes)
    return [
        Item(
            image,
            choices[int(label)],
            choices[int(row.argmax())],
            choices,
            None if units is None else units[place],
        )
        for place, (image, label, row) in enumerate(zip(images, labels, scores, strict=True))
    ]


def read_items(file: Path, *, classes: Sequence[str] = ()) -> list[Item]:
    """Read what is true of each item and what the model says.

    Columns: `item`, `truth`, and `prediction` (a class) or `probability` (of the last of two
    `classes`; from 0.5 on it is predicted); optional `group` and `dataset`. Class names match
    whatever their case and punctuation.

    Parameters
    ----------
    classes
        What a reader could choose from; default: every class that is true or predicted of an item
        of the same data set.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` with the row's number for an item that is there twice, an empty cell,
        a probability outside 0..1 or a class that is not in `classes`; `CONFIG_INVALID` for
        probabilities without two classes.
    """
    found, rows = read_columns(
        file,
        required=("item", "truth"),
        optional=("prediction", "probability", "group", "dataset"),
    )
    if "prediction" not in found and "probability" not in found:
        raise DerminoError(
            "MANIFEST_INVALID",
            "There is no column prediction and no column probability.",
            where=file,
            fix="Add what the model says of each item.",
        )
    if "prediction" not in found and len(classes) != 2:
        raise DerminoError(
            "CONFIG_INVALID",
            f"A probability can only be read with two classes, not {len(classes)}.",
            where=file,
            fix="Name the two classes, the one the probability is of last; or add a column "
            "prediction.",
        )
    first: dict[str, int] = {}
    for row in rows:
        name = cell(row, "item", file)
        if first.setdefault(name, row.number) != row.number:
            raise bad_row(
                row, f"the item {printable(name)[:60]!r} is also in row {first[name]}", file
            )
    said = [
        cell(row, "prediction", file) if "prediction" in found else _likelier(row, classes, file)
        for row in rows
    ]
    choices: dict[str | None, dict[str, str]] = {}
    for row, prediction in zip(rows, said, strict=True):
        dataset = row.cells.get("dataset")
        names = classes or (cell(row, "truth", file), prediction)
        known = choices.setdefault(dataset, {})
        for name in names:
            known.setdefault(normalise_label(name), name)
    items = []
    for row, prediction in zip(rows, said, strict=True):
        dataset = row.cells.get("dataset")
        known = choices[dataset]
        items.append(
            Item(
                cell(row, "item", file),
                _class_of(row, cell(row, "truth", file), "truth", known, file),
                _class_of(row, prediction, "prediction", known, file),
                tuple(classes) or tuple(sorted(known.values())),
                row.cells.get("group"),
                dataset,
            )
        )
    return items


def read_answers(file: Path, items: Sequence[Item]) -> tuple[list[Answer], list[str]]:
    """Read the readers' answers.

    Columns: `reader`, `item`, `answer`; optional `assisted` (yes or no; default no),
    `experience` (a group of readers, e.g. `junior`), `order`, `confidence`. An item is found by
    its name, or by its file name without folder and ending where only one item has it. A row
    without an answer (the reader ran out of time) is left out.

    Returns
    -------
    The answers, and notes about what was left out.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` with the row's number for an item that is not among `items`, an answer
        that is not among its choices, a second answer of one reader to one item with (or without)
        assistance, or a reader with two experiences.
    """
    _, rows = read_columns(
        file,
        required=("reader", "item", "answer"),
        optional=("assisted", "experience", "order", "confidence"),
    )
    by_name = _by_name(items)
    experience: dict[str, str | None] = {}
    first: dict[tuple[str, str, bool], int] = {}
    answers: list[Answer] = []
    for row in rows:
        reader, item = cell(row, "reader", file), _item(row, by_name, file)
        assisted = yes_or_no(row, "assisted", file) or False
        key = reader, item.name, assisted
        if first.setdefault(key, row.number) != row.number:
            how = "with" if assisted else "without"
            raise bad_row(
                row,
                f"reader {printable(reader)!r} answers the item {printable(item.name)[:60]!r} "
                f"{how} assistance, and in row {first[key]} already",
                file,
            )
        level = row.cells.get("experience")
        if experience.setdefault(reader, level) != level:
            raise bad_row(
                row,
                f"reader {printable(reader)!r} has the experience {printable(level or 'none')!r}, "
                f"and {printable(experience[reader] or 'none')!r} before",
                file,
            )
        if (text := row.cells["answer"]) is None:
            continue
        known = {normalise_label(name): name for name in item.choices}
        answers.append(
            Answer(
                reader,
                item.name,
                _class_of(row, text, "answer", known, file),
                assisted,
                level,
                number(row, "order", file),
                number(row, "confidence", file),
            )
        )
    left_out = len(rows) - len(answers)
    notes = [f"{left_out} of {len(rows)} answers are empty and left out."] if left_out else []
    return answers, notes


def _likelier(row: Row, classes: Sequence[str], file: Path) -> str:
    cell(row, "probability", file)
    probability = number(row, "probability", file) or 0.0
    if not 0.0 <= probability <= 1.0:
        raise bad_row(row, f"probability is {probability:g}, not from 0 to 1", file)
    return classes[int(probability >= 0.5)]


def _class_of(row: Row, text: str, column: str, known: Mapping[str, str], file: Path) -> str:
    name = known.get(normalise_label(text))
    if name is None:
        raise bad_row(
            row,
            f"the {column} {printable(text)[:60]!r} is none of the classes",
            file,
            fix=f"The classes are {', '.join(sorted(known.values()))}; give all that readers could "
            "choose.",
        )
    return name


def _by_name(items: Sequence[Item]) -> dict[str, Item]:
    """Items by name, and by file name where that is unique."""
    files = Counter(_file_name(item.name) for item in items)
    by_file = {name: item for item in items if files[name := _file_name(item.name)] == 1}
    return by_file | {item.name: item for item in items}


def _file_name(name: str) -> str:
    """Without folder and image ending."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in IMAGE_ENDINGS else path.name


def _item(row: Row, by_name: Mapping[str, Item], file: Path) -> Item:
    name = cell(row, "item", file)
    item = by_name.get(name) or by_name.get(_file_name(name))
    if item is None:
        raise bad_row(
            row,
            f"the item {printable(name)[:60]!r} is not among those with a truth and a prediction",
            file,
        )
    return item
