"""Readers' answers laid out as arrays: settings x readers x items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.reader_tables import Answer, Item
from dermino_core.labels import normalise_label

UNASSISTED, ASSISTED = SETTINGS = ("unassisted", "assisted")
"""The order of the first axis of :class:`Sheets`."""


@dataclass(frozen=True)
class Sheets:
    """What R readers said of the I items that any of them answered.

    Attributes
    ----------
    settings
        Those of :data:`SETTINGS` in which anything was answered.
    experience
        Of each reader, [R].
    said
        Number of the class, -1 where there is no answer, [2, R, I].
    truth, model
        Number of the class, [I].
    order, confidence
        [2, R, I], NaN where unknown.
    """

    readers: tuple[str, ...]
    experience: tuple[str | None, ...]
    items: tuple[Item, ...]
    settings: tuple[str, ...]
    said: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    model: npt.NDArray[np.int64]
    order: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """[2, R, I]."""
        return self.said >= 0

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether a reader's answer is the truth, [2, R, I]."""
        return self.said == self.truth

    @property
    def model_right(self) -> npt.NDArray[np.bool_]:
        """Whether the model's answer is the truth, [I]."""
        return self.model == self.truth


def lay_out(answers: Sequence[Answer], items: Sequence[Item]) -> Sheets:
    """Put every answer into its place.

    Raises
    ------
    ValueError
        If an answer is to no item, none of its choices, or given twice.
    """
    names = {item.name for item in items}
    if strangers := [answer.item for answer in answers if answer.item not in names]:
        raise ValueError(f"an answer is to {strangers[0]!r}, which is no item")
    touched = {answer.item for answer in answers}
    kept = tuple(item for item in items if item.name in touched)
    column = {item.name: place for place, item in enumerate(kept)}
    experience: dict[str, str | None] = {}
    for answer in answers:
        experience.setdefault(answer.reader, answer.experience)
    row = {reader: place for place, reader in enumerate(experience)}
    codes: dict[str, int] = {}

    def code(name: str) -> int:
        return codes.setdefault(normalise_label(name), len(codes))

    shape = len(SETTINGS), len(row), len(kept)
    said = np.full(shape, -1, np.int64)
    order, confidence = np.full(shape, np.nan), np.full(shape, np.nan)
    choices = [{code(name) for name in item.choices} for item in kept]
    for answer in answers:
        place = int(answer.assisted), row[answer.reader], column[answer.item]
        if said[place] >= 0:
            raise ValueError(f"{answer.reader!r} answers {answer.item!r} twice")
        if code(answer.answer) not in choices[place[2]]:
            raise ValueError(f"{answer.answer!r} is no choice of {answer.item!r}")
        said[place] = code(answer.answer)
        order[place] = np.nan if answer.order is None else answer.order
        confidence[place] = np.nan if answer.confidence is None else answer.confidence
    return Sheets(
        tuple(experience),
        tuple(experience.values()),
        kept,
        tuple(name for name, sheet in zip(SETTINGS, said, strict=True) if (sheet >= 0).any()),
        said,
        np.array([code(item.truth) for item in kept]),
        np.array([code(item.prediction) for item in kept]),
        order,
        confidence,
    )
