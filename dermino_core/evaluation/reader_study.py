"""Readers against the model on the same items, and readers with the model's help.

The paper (section 2.5, Fig. 6c, d): 23 readers answer 119 items alone, and two weeks later with the
model's prediction before them. Its discussion adds that readers then follow the model into its
mistakes; that is measured here, too.

Means over readers weigh readers equally. Their replicates draw readers and, independently, items
(patients or lesions as a whole), so that the interval is about other readers and other items: the
multi-reader multi-case bootstrap (Beiden, Wagner & Campbell 2000), which is rather too wide than
too narrow (Owen 2007). Numbers of one reader draw items only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.evaluation.measure import EVERYONE, FloatArray, Measure, Outcome, measured
from dermino_core.evaluation.reader_sheets import ASSISTED, SETTINGS, UNASSISTED, Sheets, lay_out
from dermino_core.evaluation.reader_tables import Answer, Item
from dermino_core.metrics import bootstrap_weights

READERS, MODEL, DIFFERENCE = "readers", "model", "model - readers"
GAIN = f"{ASSISTED} - {UNASSISTED}"

FOLLOWS = "follows the model's error"
DEPARTS = "departs from the model's right answer"
ERRED = "accuracy where the model errs"

FEW_READERS = 5
"""With fewer, a note says that the interval over readers is not to be relied on."""

Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Rate:
    """A mean of `values` over the items `asked`, both [R, I]; `sign` is 1, or -1 to subtract it."""

    values: npt.NDArray
    asked: Booleans
    sign: int = 1


@dataclass(frozen=True)
class _Part:
    """Some readers on some items, with draws of both, [B, R'] and [B, I]."""

    name: str
    readers: Booleans
    items: Booleans
    reader_draws: npt.NDArray[np.integer]
    item_draws: FloatArray


def reader_study(
    answers: Sequence[Answer], items: Sequence[Item], *, replicates: int = 1000, seed: int = 0
) -> Outcome:
    """Everything about one study.

    Parameters
    ----------
    answers, items
        From :func:`~dermino_core.evaluation.reader_tables.read_answers` and `read_items` (or
        `items_of_predictions`).

    Returns
    -------
    Outcome
        `setting` is `unassisted`, `assisted` or their difference, over what a reader answered
        both ways. For all, by `experience=...` and by `dataset=...`:

        - method `model`: `accuracy`, and the `share of readers below the model`;
        - method `readers`: mean `accuracy`; where there are assisted answers also
          :data:`FOLLOWS` (share of the answers to items on which the model errs that are its
          wrong answer), :data:`ERRED` (accuracy on these items) and :data:`DEPARTS` (share of
          the answers to items on which it is right that are not its answer). Without assistance
          these say how often readers agree by chance or because an item is hard;
        - method `model - readers`: `accuracy difference` on the same items.

        For each `reader=...`: `accuracy` and the difference. Where the table has them, mean
        `confidence` in right and in wrong answers, and `accuracy late - early`: in the second
        half of a reader's own order against the first.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` without answers.
    ValueError
        If an answer is to no item, none of its choices, or given twice.
    """
    if not answers:
        raise DerminoError(
            "DATA_TOO_FEW", "No reader answered an item.", fix="Fill the column answer."
        )
    sheets = lay_out(answers, items)
    groups = [f"group {i.group}" if i.group else f"item {i.name}" for i in sheets.items]
    item_draws = bootstrap_weights(
        len(groups), groups=groups, replicates=replicates, seed=seed
    ).astype(np.float64)
    measures: list[Measure] = []
    for place, (name, readers, within) in enumerate(_parts(sheets)):
        # A seed of its own: readers are drawn independently of items.
        reader_draws = bootstrap_weights(
            int(readers.sum()), replicates=replicates, seed=seed + 1 + place
        )
        part = _Part(name, readers, within, reader_draws, item_draws)
        measures += _of_part(sheets, part)
    for place, reader in enumerate(sheets.readers):
        alone = np.arange(len(sheets.readers)) == place
        itself = np.ones((replicates, 1), np.int64)
        everything = np.ones(len(groups), np.bool_)
        part = _Part(f"reader={reader}", alone, everything, itself, item_draws)
        measures += _accuracies(sheets, part)
    return Outcome(measures, notes=_notes(sheets, measures, len(items)))


def _parts(sheets: Sheets) -> Iterator[tuple[str, Booleans, Booleans]]:
    """Name, readers [R] and items [I] of everything that is measured together."""
    all_readers = np.ones(len(sheets.readers), np.bool_)
    all_items = np.ones(len(sheets.items), np.bool_)
    yield EVERYONE, all_readers, all_items
    for level in dict.fromkeys(filter(None, sheets.experience)):
        yield f"experience={level}", np.array([e == level for e in sheets.experience]), all_items
    for dataset in dict.fromkeys(filter(None, (item.dataset for item in sheets.items))):
        within = np.array([item.dataset == dataset for item in sheets.items])
        yield f"dataset={dataset}", all_readers, within


def _of_part(sheets: Sheets, part: _Part) -> Iterator[Measure]:
    if not part.name.startswith("experience="):
        # Every item was answered by somebody.
        model = _Rate(sheets.model_right[None, :], np.ones((1, len(sheets.items)), np.bool_))
        alone = np.ones((len(part.item_draws), 1), np.int64)
        whole = _Part(part.name, np.ones(1, np.bool_), part.items, alone, part.item_draws)
        yield _mean(whole, [model], MODEL, "accuracy", "")
    yield from _surpassed(sheets, part)
    yield from _accuracies(sheets, part)
    if ASSISTED in sheets.settings:
        right, same = sheets.right, sheets.said == sheets.model
        erring = np.broadcast_to(~sheets.model_right, right.shape)
        yield from _both_ways(sheets, part, FOLLOWS, same, erring)
        yield from _both_ways(sheets, part, ERRED, right, erring)
        yield from _both_ways(sheets, part, DEPARTS, ~same, ~erring)
    if part.name == EVERYONE:
        yield from _habits(sheets, part)


def _accuracies(sheets: Sheets, part: _Part) -> Iterator[Measure]:
    yield from _both_ways(
        sheets, part, "accuracy", sheets.right, np.ones(sheets.right.shape, np.bool_)
    )
    for setting in sheets.settings:
        terms = _against_model(sheets, setting)
        yield _mean(part, terms, DIFFERENCE, "accuracy difference", setting)


def _against_model(sheets: Sheets, setting: str) -> list[_Rate]:
    """Accuracy of the model minus a reader's, on what the reader answered."""
    place = SETTINGS.index(setting)
    asked = sheets.answered[place]
    model = np.broadcast_to(sheets.model_right, asked.shape)
    return [_Rate(model, asked), _Rate(sheets.right[place], asked, sign=-1)]


def _both_ways(
    sheets: Sheets, part: _Part, metric: str, values: Booleans, eligible: Booleans
) -> Iterator[Measure]:
    """A rate without and with assistance, and what assistance changes."""
    asked = sheets.answered & eligible
    for setting in sheets.settings:
        place = SETTINGS.index(setting)
        yield _mean(part, [_Rate(values[place], asked[place])], READERS, metric, setting)
    if len(sheets.settings) == 2:
        both = asked[0] & asked[1]
        terms = [_Rate(values[1], both), _Rate(values[0], both, sign=-1)]
        yield _mean(part, terms, READERS, metric, GAIN)


def _surpassed(sheets: Sheets, part: _Part) -> Iterator[Measure]:
    metric = "share of readers below the model"
    for setting in sheets.settings:
        terms = _against_model(sheets, setting)
        yield _mean(part, terms, MODEL, metric, setting, share_above_zero=True)


def _habits(sheets: Sheets, part: _Part) -> Iterator[Measure]:
    for setting in sheets.settings:
        place = SETTINGS.index(setting)
        answered, right = sheets.answered[place], sheets.right[place]
        sure = sheets.confidence[place]
        if np.isfinite(sure).any():
            for word, these in (("right", right), ("wrong", ~right)):
                rate = _Rate(np.nan_to_num(sure), answered & these & np.isfinite(sure))
                yield _mean(part, [rate], READERS, f"confidence in {word} answers", setting)
        order = sheets.order[place]
        if np.isfinite(order).any():
            middle = np.array([[_median(row)] for row in order])
            late: Booleans = answered & (order > middle)
            early: Booleans = answered & (order <= middle)
            terms = [_Rate(right, late), _Rate(right, early, sign=-1)]
            yield _mean(part, terms, READERS, "accuracy late - early", setting)


def _median(row: FloatArray) -> float:
    known = row[np.isfinite(row)]
    return float(np.median(known)) if len(known) else np.nan


def _mean(
    part: _Part,
    terms: Sequence[_Rate],
    method: str,
    metric: str,
    setting: str,
    *,
    share_above_zero: bool = False,
) -> Measure:
    """Mean over the part's readers of the sum of their rates, with its replicates."""
    terms = [
        _Rate(t.values[part.readers], t.asked[part.readers] & part.items, t.sign) for t in terms
    ]
    ones = np.ones((1, len(part.items))), np.ones((1, int(part.readers.sum())))
    value, drawn = (
        _over_readers(terms, items, readers, share_above_zero)
        for items, readers in (ones, (part.item_draws, part.reader_draws))
    )
    n = int(np.logical_or.reduce([term.asked for term in terms]).any(axis=0).sum())
    return measured(
        method,
        metric,
        float(value[0]),
        drawn,
        n=n,
        group=part.name,
        setting=setting,
        why_undefined="no reader answered such an item",
    )


def _over_readers(
    terms: Sequence[_Rate], items: FloatArray, readers: npt.NDArray, share_above_zero: bool
) -> FloatArray:
    """[B], from draws of items [B, I] and of readers [B, R]; NaN where nobody was asked."""
    each = np.zeros(readers.shape)
    for term in terms:
        hits = items @ (term.values * term.asked).T.astype(np.float64)
        count = items @ term.asked.T.astype(np.float64)
        each += term.sign * np.divide(hits, count, out=np.full(hits.shape, np.nan), where=count > 0)
    defined = np.isfinite(each)
    if share_above_zero:
        each = np.where(defined, each > 0, np.nan)
    weights = readers * defined
    total = weights.sum(axis=1)
    summed = (weights * np.where(defined, each, 0.0)).sum(axis=1)
    return np.divide(summed, total, out=np.full(len(each), np.nan), where=total > 0)


def _notes(sheets: Sheets, measures: Sequence[Measure], n_items: int) -> list[str]:
    found = {(m.method, m.metric, m.setting): m for m in measures if m.group == EVERYONE}
    notes = []
    if unread := n_items - len(sheets.items):
        notes.append(f"{unread} of {n_items} items were answered by no reader and are left out.")
    if len(sheets.readers) < FEW_READERS:
        notes.append(
            f"{len(sheets.readers)} readers are too few to say how other readers would do: "
            "the intervals over readers are not to be relied on."
        )
    follows = [found.get((READERS, FOLLOWS, setting)) for setting in (ASSISTED, UNASSISTED)]
    with_help, alone = (None if one is None else one.value for one in follows)
    if with_help is not None:
        note = (
            f"Where the model errs ({int((~sheets.model_right).sum())} items), "
            f"{with_help:.0%} of the assisted answers are its wrong answer"
        )
        notes.append(note + ("." if alone is None else f", {alone:.0%} of the unassisted ones."))
    return notes
