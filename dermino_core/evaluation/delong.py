"""AUROC of a binary task with its variance in closed form, also for images of the same patient.

DeLong, DeLong & Clarke-Pearson (1988): the variance of an AUROC, and the covariance of two on the
same images, from every image's placement, its share of won comparisons with the other class. The
placements come from sorting, O(n log n), as in Sun & Xu (2014). Where several images belong to one
unit, placements are summed within units before they are squared (Obuchowski 1997); with one image
per unit that is DeLong's formula again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.measure import FloatArray
from dermino_core.evaluation.statistics import NO_IMAGES, NOT_FINITE, ONE_CLASS, PairedDifference
from dermino_core.results import Estimate

_SMALLEST_P = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class _Placements:
    """Of k scores: [k, M] of the positive and [k, N] of the negative images, and their units."""

    positive: FloatArray
    negative: FloatArray
    positive_unit: npt.NDArray[np.intp]
    negative_unit: npt.NDArray[np.intp]

    @property
    def auroc(self) -> FloatArray:
        """[k]; NaN if a class is missing."""
        if not self.positive.size or not self.negative.size:
            return np.full(len(self.positive), np.nan)
        return self.positive.mean(axis=1)

    def covariance(self) -> FloatArray:
        """[k, k]; NaN if a class is missing, or all its images belong to one unit.

        Sums over units of what their images deviate, each of the three with I / (I - 1)
        (Obuchowski 1997).
        """
        k, m, n = len(self.positive), self.positive.shape[1], self.negative.shape[1]
        of_positive, of_negative = np.unique(self.positive_unit), np.unique(self.negative_unit)
        if min(len(of_positive), len(of_negative)) < 2:
            return np.full((k, k), np.nan)
        units = len(np.union1d(of_positive, of_negative))
        size = int(max(of_positive[-1], of_negative[-1])) + 1
        won = _sums(self.positive - self.auroc[:, None], self.positive_unit, size) / m
        lost = _sums(self.negative - self.auroc[:, None], self.negative_unit, size) / n
        cross = won @ lost.T
        return (
            _unbiased(len(of_positive)) * won @ won.T
            + _unbiased(len(of_negative)) * lost @ lost.T
            + _unbiased(units) * (cross + cross.T)
        )


def _unbiased(count: int) -> float:
    return count / (count - 1)


def _sums(values: FloatArray, unit: npt.NDArray[np.intp], size: int) -> FloatArray:
    """Sum of each row's values in every unit, [k, size]."""
    sums = [np.bincount(unit, weights=row, minlength=size) for row in values]
    return np.array(sums, dtype=np.float64)


def _placements(
    labels: npt.NDArray, scores: npt.NDArray[np.floating], units: Sequence[str] | None
) -> _Placements:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1:] != labels.shape:
        raise ValueError(f"{labels.shape} labels and scores {scores.shape}, not [k, n]")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels are not 0 and 1")
    if units is not None and len(units) != len(labels):
        raise ValueError(f"{len(labels)} labels and {len(units)} units")
    if units is None:
        unit = np.arange(len(labels))
    else:
        unit = np.unique(np.asarray(units), return_inverse=True)[1]
    positive = labels.astype(bool)
    return _Placements(
        np.stack([_share_below(row[~positive], row[positive]) for row in scores]),
        np.stack([1 - _share_below(row[positive], row[~positive]) for row in scores]),
        unit[positive],
        unit[~positive],
    )


def _share_below(others: FloatArray, values: FloatArray) -> FloatArray:
    """Share of `others` below each value, ties counting half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return (below + not_above) / max(1, 2 * len(others))


def delong(
    labels: npt.NDArray, scores: npt.NDArray[np.floating], units: Sequence[str] | None = None
) -> tuple[FloatArray, FloatArray]:
    """AUROC of several scores on the same images, and their covariance.

    Parameters
    ----------
    labels
        0 or 1, [n].
    scores
        Of the positive class, [k, n], finite.
    units
        Patient or lesion of each image, [n]; default: every image by itself.

    Returns
    -------
    AUROC [k] and covariance [k, k]. NaN where undefined: AUROC without both classes, covariance
    where a class has fewer than two units.

    Raises
    ------
    ValueError
        If shapes do not fit or a label is not 0 or 1.
    """
    placements = _placements(labels, scores, units)
    return placements.auroc, placements.covariance()


def delong_interval(
    labels: npt.NDArray,
    score: npt.NDArray[np.floating],
    units: Sequence[str] | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """AUROC with its normal interval on the logit scale (Pepe 2003, chapter 5).

    On the plain scale the interval leaves 0..1 and covers too seldom for good models with few
    positives: `python -m tests.benchmarks.coverage`.

    Parameters
    ----------
    labels, units
        As for :func:`delong`.
    score
        Of the positive class, [n].

    Returns
    -------
    Without an interval where the variance is undefined or 0: at perfect separation the formula
    gives 0, which says nothing about the next patient.
    """
    if not len(labels):
        return Estimate(value=None, undefined_because=NO_IMAGES)
    if not np.isfinite(score).all():
        return Estimate(value=None, undefined_because=NOT_FINITE)
    aurocs, covariance = delong(labels, np.asarray(score)[None], units)
    value, variance = float(aurocs[0]), float(covariance[0, 0])
    if np.isnan(value):
        return Estimate(value=None, undefined_because=ONE_CLASS)
    if not variance > 0:
        return Estimate(value=value)
    error = math.sqrt(variance)
    half = NormalDist().inv_cdf((1 + level) / 2) * error / (value * (1 - value))
    centre = math.log(value / (1 - value))
    low, high = (0.5 + 0.5 * math.tanh(edge / 2) for edge in (centre - half, centre + half))
    return Estimate(value=value, low=low, high=high, standard_error=error)


def delong_test(
    labels: npt.NDArray,
    first: npt.NDArray[np.floating],
    second: npt.NDArray[np.floating],
    units: Sequence[str] | None = None,
) -> PairedDifference:
    """AUROC of `first` minus AUROC of `second`, with a normal interval and test.

    Parameters
    ----------
    labels, units
        As for :func:`delong`.
    first, second
        Scores of the positive class, [n].

    Returns
    -------
    p-value 1 where every placement is equal; NaN for interval and p-value where the variance of
    an actual difference is undefined or 0; all NaN without both classes or with scores that are
    not finite.
    """
    scores = np.stack([np.asarray(first), np.asarray(second)])
    nan = float("nan")
    if not len(labels) or not np.isfinite(scores).all():
        return PairedDifference(nan, nan, nan, nan)
    both = _placements(labels, scores, units)
    gap = _Placements(
        both.positive[:1] - both.positive[1:],
        both.negative[:1] - both.negative[1:],
        both.positive_unit,
        both.negative_unit,
    )
    difference, variance = float(gap.auroc[0]), float(gap.covariance()[0, 0])
    if difference == 0 and variance == 0:
        return PairedDifference(0.0, 0.0, 0.0, 1.0)
    if not variance > 0:
        return PairedDifference(difference, nan, nan, nan)
    error = math.sqrt(variance)
    half = NormalDist().inv_cdf(0.975) * error
    p_value = max(_SMALLEST_P, math.erfc(abs(difference) / error / math.sqrt(2)))
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return PairedDifference(difference, low, high, p_value)
