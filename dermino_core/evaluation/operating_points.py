"""Sensitivity at a wanted specificity, and the other way round, of a binary task.

An image is called positive if its score reaches the threshold. Candidates are the scores that
occur and infinity (nothing is called positive), so equal scores are always called alike and
nothing is interpolated. At a wanted specificity the lowest candidate that keeps it is taken, at a
wanted sensitivity the highest.

- `threshold=test` chooses on the images that are measured, again in every replicate. This is the
  point on the test ROC curve that papers print; it flatters, because nobody has that threshold
  beforehand.
- `threshold=train` chooses once on other images and applies it as it is: what a clinic would get.
  Neither rate is held then, so both are given. The intervals are those of this one threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.measure import EVERYONE, FloatArray, Measure, measured
from dermino_core.evaluation.statistics import (
    NO_IMAGES,
    NOT_FINITE,
    ONE_CLASS,
    draw_units,
    in_slices,
)
from dermino_core.metrics import REPLICATES

Integers = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]
Rate = Literal["sensitivity", "specificity"]

TARGETS = (0.95, 0.90)

_NO_THRESHOLD = "the training images are of one class, or a score of theirs is not a finite number"

_KEPT: tuple[Rate, Rate] = ("specificity", "sensitivity")

_ROUNDING = 1e-9
"""In images: nine of ten are to be a share of 0.9."""


def operating_points(
    labels: Integers,
    scores: Floats,
    units: Sequence[str],
    *,
    method: str,
    train: tuple[Integers, Floats] | None = None,
    targets: Sequence[float] = TARGETS,
    rows: npt.NDArray[np.bool_] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    group: str = EVERYONE,
    setting: str = "",
) -> list[Measure]:
    """The measures `sensitivity` and `specificity` at every target.

    The wanted rate and where its threshold comes from are the measure's setting, e.g.
    `specificity=0.95, threshold=test`, after the `setting` that was given. `threshold=test` gives
    the other rate, `threshold=train` both.

    Parameters
    ----------
    labels
        0 or 1, [n].
    scores
        [n, 2]; the last column counts.
    units, rows, replicates, seed
        As for :func:`dermino_core.evaluation.statistics.classification_measures`. With `rows`,
        `threshold=test` chooses on that part alone, `threshold=train` still on all of `train`.
    train
        Labels [m] and scores [m, 2] to choose thresholds on; default: no `threshold=train`. Where
        the method was fitted on these images, give cross-validated scores: those of a fit on
        itself are too good, and the threshold misses its target.

    Raises
    ------
    ValueError
        If the task is not binary or shapes do not fit.
    """
    labels, score = _binary(labels, scores)
    if len(units) != len(labels):
        raise ValueError(f"{len(labels)} labels and {len(units)} units")
    finite = bool(np.isfinite(score).all())
    weights = draw_units(units, rows=rows, replicates=replicates, seed=seed)
    if rows is not None:
        labels, score = labels[rows], score[rows]
    blocked = NOT_FINITE if not finite else "" if len(labels) else NO_IMAGES

    def measure(
        metric: Rate, where: str, rates: Callable[[FloatArray], FloatArray], why: str
    ) -> Measure:
        value, draws = np.nan, None
        if not blocked:
            value = float(rates(np.ones((1, len(labels))))[0])
            draws = in_slices(rates, weights)
        return measured(
            method,
            metric,
            value,
            draws,
            n=len(labels),
            group=group,
            setting=", ".join(part for part in (setting, where) if part),
            why_undefined=blocked or why,
        )

    found = []
    for at, kept in product(targets, _KEPT):
        other: Rate = "sensitivity" if kept == "specificity" else "specificity"
        rates = partial(_other_rate, labels, score, kept, at)
        found.append(measure(other, f"{kept}={at:g}, threshold=test", rates, ONE_CLASS))
    if train is None:
        return found
    known = _binary(*train)
    for at, kept in product(targets, _KEPT):
        threshold = choose_threshold(*known, kept, at)
        why = _NO_THRESHOLD if np.isnan(threshold) else ONE_CLASS
        for metric in ("sensitivity", "specificity"):
            rates = partial(_rate, labels, score, metric, threshold)
            found.append(measure(metric, f"{kept}={at:g}, threshold=train", rates, why))
    return found


def choose_threshold(labels: Integers, score: Floats, kept: Rate, at: float) -> float:
    """The score from which images are called positive so that the `kept` rate is at least `at`.

    Parameters
    ----------
    labels
        0 or 1, [n].
    score
        Of the positive class, [n].

    Returns
    -------
    A score that occurs, or infinity; NaN if a class is missing or a score is not finite.
    """
    if len(np.unique(labels)) < 2 or not np.isfinite(score).all():
        return float("nan")
    candidates, hits, alarms = _roc(labels, score, np.ones((1, len(labels))))
    return float(candidates[_place(hits, alarms, kept, at)[0]])


def _binary(labels: Integers, scores: Floats) -> tuple[Integers, Floats]:
    """Labels [n] and the last column of the scores [n, 2]."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if scores.shape != (len(labels), 2):
        raise ValueError(f"{len(labels)} labels and scores {scores.shape}, not [n, 2]")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels are not 0 and 1")
    return labels, scores[:, 1]


def _roc(
    labels: Integers, score: Floats, draws: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Candidates [T], falling from infinity, and what each calls positive.

    Returns
    -------
    Candidates, and the drawn positive and negative images that reach them, [b, T].
    """
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    positive = labels[order] == 1
    drawn = draws[:, order]
    nobody = np.zeros((len(draws), 1))
    hits = np.cumsum(drawn * positive, axis=1)[:, last_of_tie]
    alarms = np.cumsum(drawn * ~positive, axis=1)[:, last_of_tie]
    candidates = np.r_[np.inf, score[order][last_of_tie]]
    return candidates, np.hstack([nobody, hits]), np.hstack([nobody, alarms])


def _place(hits: FloatArray, alarms: FloatArray, kept: Rate, at: float) -> npt.NDArray[np.intp]:
    """Which candidate is taken in every row of counts, [b]."""
    if kept == "specificity":
        allowed = (1 - at) * alarms[:, -1:] + _ROUNDING
        return (alarms <= allowed).sum(axis=1) - 1
    return (hits < at * hits[:, -1:] - _ROUNDING).sum(axis=1)


def _other_rate(
    labels: Integers, score: Floats, kept: Rate, at: float, draws: FloatArray
) -> FloatArray:
    """The rate that is not kept, at the threshold chosen on the same draws, [b].

    NaN where a class was not drawn.
    """
    _, hits, alarms = _roc(labels, score, draws)
    place = _place(hits, alarms, kept, at)[:, None]
    positives, negatives = hits[:, -1], alarms[:, -1]
    if kept == "specificity":
        reached = np.take_along_axis(hits, place, axis=1)[:, 0]
        share = np.divide(reached, positives, out=np.full(len(draws), np.nan), where=positives > 0)
    else:
        reached = negatives - np.take_along_axis(alarms, place, axis=1)[:, 0]
        share = np.divide(reached, negatives, out=np.full(len(draws), np.nan), where=negatives > 0)
    share[(positives == 0) | (negatives == 0)] = np.nan
    return share


def _rate(
    labels: Integers, score: Floats, metric: Rate, threshold: float, draws: FloatArray
) -> FloatArray:
    """Sensitivity or specificity at one threshold, [b]; NaN where its class was not drawn."""
    positive = labels == 1
    if metric == "sensitivity":
        members, right = positive, score >= threshold
    else:
        members, right = ~positive, score < threshold
    drawn, correct = draws @ members, draws @ (members & right)
    known = (drawn > 0) & (not np.isnan(threshold))
    return np.divide(correct, drawn, out=np.full(len(draws), np.nan), where=known)
