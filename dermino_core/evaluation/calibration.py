"""Whether probabilities can be taken at their word: Brier score, log loss, calibration error.

The expected calibration error (ECE) of few images is mostly noise: the bins of a perfectly
calibrated model miss by chance, and a bootstrap replicate adds the same noise once more. Its
replicates lie too high, and their percentiles are no interval. So it is given three times:

- `ece`: the plain number of Guo et al. (2017), without an interval;
- `ece_corrected`: less the bias that the bootstrap finds (Efron & Tibshirani 1993, section 10.6),
  with the basic interval (Davison & Hinkley 1997, section 5.2), neither below 0. The interval is
  still too short where a model is nearly calibrated;
- `ece_by_chance`: what a model whose probabilities are right would show on these images, and the
  range of 95 % (Broecker & Smith 2007). An `ece` within it is no sign of miscalibration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.measure import EVERYONE, FloatArray, Measure, measured
from dermino_core.evaluation.statistics import NO_IMAGES, NOT_FINITE, draw_units, in_slices
from dermino_core.metrics import REPLICATES, calibration
from dermino_core.results import Calibration

Integers = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]

METRICS = ("brier", "log_loss", "ece", "ece_corrected", "ece_by_chance")

SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
"""Log loss takes smaller ones for this: a softmax in float32 reaches 0, whose loss is infinite."""

NO_DRAWS = "no replicate drew an image"

_BINS = 10
_SUM_TOLERANCE = 1e-3


def calibration_measures(
    labels: Integers,
    probabilities: Floats,
    units: Sequence[str],
    *,
    method: str,
    rows: npt.NDArray[np.bool_] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    group: str = EVERYONE,
    setting: str = "",
) -> tuple[list[Measure], Calibration]:
    """The measures of :data:`METRICS`, in this order, and the reliability curve.

    The Brier score is the mean squared error of the last class's probability for C = 2 (0..1), and
    of all classes' probabilities summed for more (0..2; Brier 1950). Log loss is in nats.

    Parameters
    ----------
    labels, units, rows, replicates, seed
        As for :func:`dermino_core.evaluation.statistics.classification_measures`.
    probabilities
        [n, C], rows summing to 1.

    Raises
    ------
    ValueError
        If shapes do not fit, or rows are no probabilities.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or not len(probabilities) == len(labels) == len(units):
        raise ValueError(
            f"{len(labels)} labels, {len(units)} units, probabilities {probabilities.shape}"
        )
    finite = bool(np.isfinite(probabilities).all())
    if finite and not _are_probabilities(probabilities):
        raise ValueError("rows of probabilities do not lie in 0..1 and sum to 1")
    weights = draw_units(units, rows=rows, replicates=replicates, seed=seed)
    if rows is not None:
        labels, probabilities = labels[rows], probabilities[rows]

    def of(metric: str, value: float, draws: FloatArray | None, why: str = NO_DRAWS) -> Measure:
        return measured(
            method,
            metric,
            value,
            draws,
            n=len(labels),
            group=group,
            setting=setting,
            why_undefined=why,
        )

    if not len(labels) or not finite:
        why = NO_IMAGES if finite else NOT_FINITE
        return [of(metric, np.nan, None, why) for metric in METRICS], _no_curve()
    losses = np.stack([_brier(labels, probabilities), _log_loss(labels, probabilities)])
    brier, log_loss = in_slices(lambda draws: _means(losses, draws), weights)
    confidence, outcome = _confidence(labels, probabilities)
    plain = float(_errors(confidence, outcome, np.ones((1, len(labels))))[0])
    drawn = in_slices(lambda draws: _errors(confidence, outcome, draws), weights)
    chance = _chance(confidence, replicates=replicates, seed=seed)
    measures = [
        of("brier", losses[0].mean(), brier),
        of("log_loss", losses[1].mean(), log_loss),
        of("ece", plain, None),
        of("ece_corrected", _less_bias(plain, drawn), np.maximum(2 * plain - drawn, 0)),
        of("ece_by_chance", chance.mean(), chance),
    ]
    return measures, calibration(labels, probabilities, bins=_BINS)


def _are_probabilities(rows: FloatArray) -> bool:
    in_range = (rows >= -_SUM_TOLERANCE) & (rows <= 1 + _SUM_TOLERANCE)
    return bool(in_range.all() and (abs(rows.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def _brier(labels: Integers, probabilities: FloatArray) -> FloatArray:
    """Squared error of each image, [n]."""
    n_classes = probabilities.shape[1]
    squared = (probabilities - np.eye(n_classes)[labels]) ** 2
    return squared[:, -1] if n_classes == 2 else squared.sum(axis=1)


def _log_loss(labels: Integers, probabilities: FloatArray) -> FloatArray:
    """Of each image, [n], in nats."""
    of_truth = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    return -np.log(np.maximum(of_truth, SMALLEST_PROBABILITY))


def _means(values: FloatArray, draws: FloatArray) -> FloatArray:
    """Weighted means of values [k, n] for draws [b, n], [k, b]; NaN where nothing was drawn."""
    drawn = draws.sum(axis=1)
    total = values @ draws.T
    return np.divide(total, drawn, out=np.full(total.shape, np.nan), where=drawn > 0)


def _confidence(
    labels: Integers, probabilities: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """What :func:`dermino_core.metrics.calibration` sets against each other, each [n]."""
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], labels == 1
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def _bins(confidence: FloatArray) -> FloatArray:
    """One-hot bin of each image, [n, bins]."""
    inner = np.linspace(0, 1, _BINS + 1)[1:-1]
    return np.eye(_BINS)[np.digitize(confidence, inner)]


def _errors(
    confidence: FloatArray, outcome: npt.NDArray[np.bool_], draws: FloatArray
) -> FloatArray:
    """ECE of every row of draws, [b]: the gaps of the bins, weighted by what was drawn of them."""
    gaps = np.abs(draws @ (_bins(confidence) * (confidence - outcome)[:, None])).sum(axis=1)
    drawn = draws.sum(axis=1)
    return np.divide(gaps, drawn, out=np.full(gaps.shape, np.nan), where=drawn > 0)


def _less_bias(plain: float, drawn: FloatArray) -> float:
    """NaN if no replicate is defined."""
    defined = drawn[~np.isnan(drawn)]
    return max(0.0, 2 * plain - float(defined.mean())) if len(defined) else float("nan")


def _chance(confidence: FloatArray, *, replicates: int, seed: int) -> FloatArray:
    """ECE of simulated outcomes that come as often as the confidence says, [replicates].

    Images are taken as independent; of several images per patient, chance alone does more.
    """
    rng = np.random.default_rng([seed, replicates])
    bins = _bins(confidence)

    def one_slice(blank: FloatArray) -> FloatArray:
        outcomes = rng.random(blank.shape) < confidence
        return np.abs((outcomes - confidence) @ bins).sum(axis=1) / len(confidence)

    return in_slices(one_slice, np.zeros((replicates, len(confidence)), dtype=np.uint8))


def _no_curve() -> Calibration:
    edges = [round(float(edge), 6) for edge in np.linspace(0, 1, _BINS + 1)]
    nothing: list[float | None] = [None] * _BINS
    return Calibration(
        edges=edges,
        predicted=nothing,
        observed=nothing,
        count=[0] * _BINS,
        expected_calibration_error=None,
    )
