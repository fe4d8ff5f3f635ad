"""Classification metrics with bootstrap replicates, and paired differences of them.

A replicate draws the units (patients or lesions) of the whole test half with replacement. The
draws depend on nothing but the units, their number and the seed, so two backbones, two methods or
two parts of the test half are compared replicate by replicate.

Interval: percentile (Efron & Tibshirani 1993, chapter 13). Test: the two-sided p-value at which
that interval just touches zero, with one replicate added on either side, so that it is never 0
(Davison & Hinkley 1997, chapter 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.auroc import auroc_of_draws
from dermino_core.evaluation.measure import EVERYONE, FloatArray, Measure, measured
from dermino_core.metrics import REPLICATES, bootstrap_weights, macro_auroc

Integers = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]

METRICS = ("auroc", "f1", "balanced_accuracy", "accuracy")

NO_IMAGES = "no test images"
ONE_CLASS = "every test image is of one class"
NOT_FINITE = "a score is not a finite number"

_CELLS = 4_000_000
"""Largest weight matrix held at once in float64 (replicates x images)."""


class PairedDifference(NamedTuple):
    """First minus second on the same test images, its 95 % interval, and a two-sided p-value.

    NaN where a number is undefined.
    """

    difference: float
    low: float
    high: float
    p_value: float


def classification_measures(
    labels: Integers,
    scores: Floats,
    units: Sequence[str],
    *,
    method: str,
    n_classes: int,
    predicted: Integers | None = None,
    rows: npt.NDArray[np.bool_] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    group: str = EVERYONE,
    setting: str = "",
) -> list[Measure]:
    """The measures of :data:`METRICS`, in this order, with their replicates.

    AUROC is one-vs-rest and macro, F1 is macro over the classes present or predicted, balanced
    accuracy is the mean recall of the classes present. A class that a replicate did not draw is
    left out of that replicate's means.

    Parameters
    ----------
    labels
        Class index of each image of the test half, [n].
    scores
        [n, C]; the larger, the more likely. For C = 2 only the last column counts for AUROC.
    units
        Patient or lesion of each image, drawn together.
    predicted
        Class index that the method says, [n]; default: the first of the highest scores.
    rows
        The part of the test half that is measured, [n]; default: all of it. The draws are those
        of the whole half either way, so two parts are paired.

    Raises
    ------
    ValueError
        If shapes do not fit, or a label or a prediction is no class index.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    finite = bool(np.isfinite(scores).all())
    called = np.asarray(scores.argmax(axis=1) if predicted is None else predicted)
    fitting = scores.shape == (len(labels), n_classes) and called.shape == labels.shape
    if not fitting or len(units) != len(labels):
        raise ValueError(
            f"{len(labels)} labels, {len(units)} units, scores {scores.shape}, "
            f"predictions {called.shape}, {n_classes} classes"
        )
    for indices in (labels, called):
        if len(indices) and not 0 <= indices.min() <= indices.max() < n_classes:
            raise ValueError(f"class indices beyond 0..{n_classes - 1}")
    weights = draw_units(units, rows=rows, replicates=replicates, seed=seed)
    if rows is not None:
        labels, scores, called = labels[rows], scores[rows], called[rows]
    why = NOT_FINITE if not finite else ONE_CLASS if len(labels) else NO_IMAGES
    values, draws = [np.nan] * 4, [None] * 4
    if finite and len(labels):
        once = np.ones((1, len(labels)), dtype=np.uint16)
        of_predictions = partial(_of_predictions, labels, called, n_classes)
        values = [macro_auroc(labels, scores)[0], *of_predictions(once)[:, 0]]
        draws = [auroc_of_draws(labels, scores, weights), *in_slices(of_predictions, weights)]
    return [
        measured(
            method,
            metric,
            value,
            replicated,
            n=len(labels),
            group=group,
            setting=setting,
            why_undefined=why,
        )
        for metric, value, replicated in zip(METRICS, values, draws, strict=True)
    ]


def _of_predictions(
    labels: Integers, called: Integers, n_classes: int, draws: npt.NDArray[np.number]
) -> FloatArray:
    """Macro F1, balanced accuracy and accuracy of every row of draws, [3, b].

    From three counts per class instead of a confusion matrix, whose C^2 cells a hundred classes
    make too many.
    """
    classes = np.arange(n_classes)
    members, calls = labels[:, None] == classes, called[:, None] == classes
    present = draws @ members.astype(np.float64)
    claimed = draws @ calls.astype(np.float64)
    hits = draws @ (members & calls).astype(np.float64)
    return np.stack(
        [
            _mean_ratio(2 * hits, present + claimed),
            _mean_ratio(hits, present),
            _ratio(hits.sum(axis=1), present.sum(axis=1)),
        ]
    )


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


def _mean_ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """Mean over the columns whose `bottom` is not 0, of every row."""
    ratio = np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)
    return _ratio(ratio.sum(axis=1), (bottom > 0).sum(axis=1).astype(np.float64))


def draw_units(
    units: Sequence[str],
    *,
    rows: npt.NDArray[np.bool_] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> npt.NDArray[np.uint16]:
    """How often each image was drawn, [replicates, n], or only the columns of `rows`.

    Raises
    ------
    ValueError
        If `rows` is not a mask over all images, or there is to be no replicate.
    """
    if replicates < 1:
        raise ValueError(f"{replicates} replicates")
    weights = bootstrap_weights(len(units), groups=units, replicates=replicates, seed=seed)
    if rows is None:
        return weights
    if rows.dtype != np.bool_ or rows.shape != (len(units),):
        raise ValueError(f"rows is {rows.dtype} {rows.shape}, not a mask over {len(units)} images")
    return weights[:, rows]


def in_slices(
    measure: Callable[[FloatArray], FloatArray], weights: npt.NDArray[np.number]
) -> FloatArray:
    """`measure` of all rows of weights, a few at a time, so that memory is bounded.

    Parameters
    ----------
    measure
        Float weights [b, n] to values [..., b].
    weights
        [B, n].

    Returns
    -------
    [..., B].
    """
    step = max(1, _CELLS // max(1, weights.shape[1]))
    parts = [weights[i : i + step].astype(np.float64) for i in range(0, len(weights), step)]
    return np.concatenate([measure(part) for part in parts], axis=-1)


def paired_difference(first: Measure, second: Measure) -> PairedDifference:
    """`first` minus `second`, from replicates of the same draws.

    Replicates in which either is undefined are left out. The smallest p-value is 2 / (B + 1): see
    :func:`dermino_core.evaluation.multiplicity.replicates_needed` before many are adjusted.

    Returns
    -------
    NaN where either is undefined or has no replicates, or fewer than two replicates define both.

    Raises
    ------
    ValueError
        If they are of different metrics or have different numbers of replicates.
    """
    if first.metric != second.metric:
        raise ValueError(f"{first.metric} and {second.metric} cannot be compared")
    nothing = PairedDifference(np.nan, np.nan, np.nan, np.nan)
    if first.value is None or second.value is None:
        return nothing
    if first.replicates is None or second.replicates is None:
        return nothing
    if first.replicates.shape != second.replicates.shape:
        raise ValueError(
            f"replicates {first.replicates.shape} and {second.replicates.shape} are not paired"
        )
    gaps = first.replicates - second.replicates
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) < 2:
        return nothing
    low, high = np.percentile(gaps, [2.5, 97.5])
    beyond = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    p_value = min(1.0, 2 * (1 + beyond) / (1 + len(gaps)))
    return PairedDifference(first.value - second.value, float(low), float(high), p_value)
