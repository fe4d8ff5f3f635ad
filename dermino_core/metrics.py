"""AUROC, F1 and balanced accuracy with bootstrap intervals, on all replicates at once.

A bootstrap replicate is a row of integer weights: how often each test image was drawn. All
metrics are written for a matrix of such weights, so 1,000 replicates cost a few array operations
instead of 1,000 calls; the point estimate is the row of ones. Images of one group (patient or
lesion) are drawn together, because they are not independent.

AUROC is the probability that an image of the class scores above one that is not, ties counting
half (Hanley & McNeil 1982); F1 is van Rijsbergen's. "Macro" is the unweighted mean over classes.
Balanced accuracy is the macro recall (Brodersen et al. 2010), the metric of Fed-ISIC2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dermino_core.results import Calibration, Difference, Estimate, Evaluation, RocCurve

REPLICATES = 1000
"""Bootstrap replicates, as in the paper (section 4.2)."""

SMALLEST_BIN = 5
"""Fewest test images whose mean score is shown."""

_CELLS = 4_000_000
"""Largest weight matrix held at once (replicates x images)."""

FloatArray = npt.NDArray[np.float64]


def macro_auroc(
    labels: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    weights: npt.NDArray[np.integer] | None = None,
) -> FloatArray:
    """One-vs-rest macro AUROC of every row of weights.

    Parameters
    ----------
    labels
        Class index of each image, shape [n].
    scores
        Class probabilities, shape [n, C]. For C = 2 only the last column counts.
    weights
        How often each image was drawn, shape [B, n]; default: once each, B = 1.

    Returns
    -------
    Shape [B]. NaN where no class has both members and non-members; a class without both is left
    out of the mean.
    """
    draws = _draws(labels, weights)
    columns = [scores.shape[1] - 1] if scores.shape[1] == 2 else range(scores.shape[1])
    per_class = np.stack([_auroc(labels == c, scores[:, c], draws) for c in columns])
    return _mean_of_defined(per_class)


def _auroc(
    positive: npt.NDArray[np.bool_], score: npt.NDArray[np.floating], draws: FloatArray
) -> FloatArray:
    order = np.argsort(score, kind="stable")
    ties = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    drawn = draws[:, order]
    is_positive = positive[order]
    pos = np.add.reduceat(drawn * is_positive, ties, axis=1)
    neg = np.add.reduceat(drawn * ~is_positive, ties, axis=1)
    below = np.cumsum(neg, axis=1) - neg
    wins = (pos * (below + 0.5 * neg)).sum(axis=1)
    pairs = pos.sum(axis=1) * neg.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)


def macro_f1(
    labels: npt.NDArray[np.integer],
    predicted: npt.NDArray[np.integer],
    n_classes: int,
    weights: npt.NDArray[np.integer] | None = None,
) -> FloatArray:
    """Macro F1 of every row of weights, over the classes that are present or predicted.

    Parameters
    ----------
    labels, predicted
        Class indices, shape [n].
    n_classes
        C.
    weights
        As for :func:`macro_auroc`.

    Returns
    -------
    Shape [B].
    """
    return _f1_of(_confusion(labels, predicted, n_classes, weights))


def balanced_accuracy(
    labels: npt.NDArray[np.integer],
    predicted: npt.NDArray[np.integer],
    n_classes: int,
    weights: npt.NDArray[np.integer] | None = None,
) -> FloatArray:
    """Mean recall over the classes that are present, of every row of weights.

    Parameters and shape as for :func:`macro_f1`. A class without images is left out of the mean,
    also where it was predicted.
    """
    return _recall_of(_confusion(labels, predicted, n_classes, weights))


def _confusion(
    labels: npt.NDArray[np.integer],
    predicted: npt.NDArray[np.integer],
    n_classes: int,
    weights: npt.NDArray[np.integer] | None,
) -> FloatArray:
    """Images of each class (rows) that were called each class (columns), shape [B, C, C]."""
    draws = _draws(labels, weights)
    cell = np.eye(n_classes * n_classes)[labels * n_classes + predicted]
    return (draws @ cell).reshape(len(draws), n_classes, n_classes)


def _f1_of(confusion: FloatArray) -> FloatArray:
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    union = confusion.sum(axis=1) + confusion.sum(axis=2)
    f1 = np.divide(2 * hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
    return _mean_of_defined(f1.T)


def _recall_of(confusion: FloatArray) -> FloatArray:
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    present = confusion.sum(axis=2)
    recall = np.divide(hits, present, out=np.full(hits.shape, np.nan), where=present > 0)
    return _mean_of_defined(recall.T)


def _draws(labels: npt.NDArray[np.integer], weights: npt.NDArray[np.integer] | None) -> FloatArray:
    return np.ones((1, len(labels))) if weights is None else weights.astype(np.float64)


def _mean_of_defined(per_class: FloatArray) -> FloatArray:
    """Mean over axis 0 that leaves NaN out; NaN where nothing is defined."""
    defined = ~np.isnan(per_class)
    count = defined.sum(axis=0)
    total = np.where(defined, per_class, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def bootstrap_weights(
    n: int,
    *,
    groups: Sequence[str] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> npt.NDArray[np.uint16]:
    """Draw bootstrap replicates, shape [replicates, n]; a group is drawn as a whole.

    The same arguments give the same replicates, so two models evaluated with one seed are
    compared pair by pair.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        unit = np.arange(n)
    else:
        _, unit = np.unique(np.asarray(groups), return_inverse=True)
    units = int(unit.max()) + 1 if n else 0
    weights = np.empty((replicates, n), dtype=np.uint16)
    for start in range(0, replicates, step := max(1, _CELLS // max(1, units))):
        stop = min(start + step, replicates)
        picks = rng.integers(0, max(1, units), size=(stop - start, units))
        picks += units * np.arange(stop - start)[:, None]
        counts = np.bincount(picks.ravel(), minlength=units * (stop - start))
        weights[start:stop] = counts.reshape(stop - start, units)[:, unit]
    return weights


def _replicate(
    labels: npt.NDArray[np.integer],
    probabilities: npt.NDArray[np.floating],
    weights: npt.NDArray[np.integer],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """AUROC, F1 and balanced accuracy of every replicate, in slices that bound memory."""
    predicted = probabilities.argmax(axis=1)
    step = max(1, _CELLS // max(1, len(labels)))
    slices = [weights[i : i + step] for i in range(0, len(weights), step)]
    n_classes = probabilities.shape[1]
    confusion = np.concatenate([_confusion(labels, predicted, n_classes, w) for w in slices])
    return (
        np.concatenate([macro_auroc(labels, probabilities, part) for part in slices]),
        _f1_of(confusion),
        _recall_of(confusion),
    )


def _estimate(value: float, replicates: FloatArray, why_undefined: str) -> Estimate:
    if np.isnan(value):
        return Estimate(value=None, undefined_because=why_undefined)
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < 2:
        return Estimate(value=float(value))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(
        value=float(value),
        low=float(low),
        high=float(high),
        standard_error=float(defined.std(ddof=1)),
    )


def evaluate(
    labels: npt.NDArray[np.integer],
    probabilities: npt.NDArray[np.floating],
    classes: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    curves: bool = True,
) -> Evaluation:
    """Evaluate one model on one test set.

    Parameters
    ----------
    labels
        Class indices, shape [n].
    probabilities
        Shape [n, C], rows summing to 1.
    classes
        C names; the last is the positive class of a binary task.
    groups
        Patient or lesion of each image, drawn together by the bootstrap.
    curves
        Whether to add the ROC curve and the calibration.
    """
    n_classes = len(classes)
    counts = dict(zip(classes, map(int, np.bincount(labels, minlength=n_classes)), strict=True))
    if not len(labels):
        nothing = Estimate(value=None, undefined_because="no test images")
        return Evaluation(
            n=0, class_counts=counts, auroc=nothing, f1=nothing, balanced_accuracy=nothing
        )
    weights = bootstrap_weights(len(labels), groups=groups, replicates=replicates, seed=seed)
    auroc, f1, recall = _replicate(labels, probabilities, weights)
    point_auroc = macro_auroc(labels, probabilities)[0]
    confusion = _confusion(labels, probabilities.argmax(axis=1), n_classes, None)
    only = next(name for name, count in counts.items() if count)
    draw_roc = curves and not np.isnan(point_auroc)
    return Evaluation(
        n=len(labels),
        class_counts=counts,
        auroc=_estimate(point_auroc, auroc, f"every test image is of one class ({only})"),
        f1=_estimate(_f1_of(confusion)[0], f1, "undefined"),
        balanced_accuracy=_estimate(_recall_of(confusion)[0], recall, "undefined"),
        f1_of_largest_class=_f1_of_largest_class(labels, n_classes),
        roc=roc_curve(labels, probabilities, weights) if draw_roc else None,
        calibration=calibration(labels, probabilities) if curves else None,
    )


def _f1_of_largest_class(labels: npt.NDArray[np.integer], n_classes: int) -> float:
    """Macro F1 of the most careless model: every image is called the largest class."""
    largest = np.bincount(labels, minlength=n_classes).argmax()
    return float(macro_f1(labels, np.full(len(labels), largest), n_classes)[0])


def paired_difference(
    labels: npt.NDArray[np.integer],
    first: npt.NDArray[np.floating],
    second: npt.NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Difference:
    """Every metric of `first` minus that of `second`, on the same replicates of the same images."""
    n_classes = first.shape[1]
    if not len(labels):
        nothing = Estimate(value=None, undefined_because="no test images")
        return Difference(auroc=nothing, f1=nothing, balanced_accuracy=nothing)
    weights = bootstrap_weights(len(labels), groups=groups, replicates=replicates, seed=seed)
    auroc_1, f1_1, recall_1 = _replicate(labels, first, weights)
    auroc_2, f1_2, recall_2 = _replicate(labels, second, weights)
    auroc = macro_auroc(labels, first)[0] - macro_auroc(labels, second)[0]
    one, other = (
        _confusion(labels, model.argmax(axis=1), n_classes, None) for model in (first, second)
    )
    f1 = _f1_of(one)[0] - _f1_of(other)[0]
    recall = _recall_of(one)[0] - _recall_of(other)[0]
    return Difference(
        auroc=_estimate(auroc, auroc_1 - auroc_2, "every test image is of one class"),
        f1=_estimate(f1, f1_1 - f1_2, "undefined"),
        balanced_accuracy=_estimate(recall, recall_1 - recall_2, "undefined"),
    )


def roc_curve(
    labels: npt.NDArray[np.integer],
    probabilities: npt.NDArray[np.floating],
    weights: npt.NDArray[np.integer],
    *,
    points: int = 51,
) -> RocCurve:
    """ROC curve and its pointwise 95 % band on an even grid of false-positive rates.

    For more than two classes the curve is the mean of the one-vs-rest curves.
    """
    grid = np.linspace(0, 1, points)
    n_classes = probabilities.shape[1]
    columns = [n_classes - 1] if n_classes == 2 else list(range(n_classes))
    curve = _roc_at(grid, labels, probabilities, columns, np.ones((1, len(labels))))[0]
    replicates = _roc_at(grid, labels, probabilities, columns, weights[:REPLICATES])
    low, high = np.nanpercentile(replicates, [2.5, 97.5], axis=0)
    return RocCurve(
        false_positive_rate=_rounded(grid),
        true_positive_rate=_rounded(curve),
        low=_rounded(low),
        high=_rounded(high),
    )


def _roc_at(
    grid: FloatArray,
    labels: npt.NDArray[np.integer],
    probabilities: npt.NDArray[np.floating],
    columns: Sequence[int],
    weights: npt.NDArray[np.number],
) -> FloatArray:
    """True-positive rates at `grid`, shape [B, points]; NaN where a replicate has one class."""
    result = np.full((len(columns), len(weights), len(grid)), np.nan)
    for k, c in enumerate(columns):
        score = probabilities[:, c]
        order = np.argsort(-score, kind="stable")
        last_of_tie = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
        positive = labels[order] == c
        drawn = weights[:, order].astype(np.float64)
        hits = np.cumsum(drawn * positive, axis=1)[:, last_of_tie]
        alarms = np.cumsum(drawn * ~positive, axis=1)[:, last_of_tie]
        for b in range(len(weights)):
            if hits[b, -1] and alarms[b, -1]:
                x = np.r_[0.0, alarms[b] / alarms[b, -1]]
                y = np.r_[0.0, hits[b] / hits[b, -1]]
                result[k, b] = np.interp(grid, x, y)
    return _mean_of_defined(result)


def calibration(
    labels: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating], *, bins: int = 10
) -> Calibration:
    """Reliability in equal-width bins, and the expected calibration error (Guo et al. 2017).

    Binary: probability of the last class against its share. More classes: confidence of the
    predicted class against accuracy. A bin with fewer than :data:`SMALLEST_BIN` images shows its
    count only: a bin of one would be the score of a single patient.
    """
    if probabilities.shape[1] == 2:
        confidence, outcome = probabilities[:, 1], labels == 1
    else:
        confidence, outcome = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(confidence, edges[1:-1]), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    predicted = np.bincount(place, weights=confidence, minlength=bins)
    observed = np.bincount(place, weights=outcome, minlength=bins)
    error = float(np.abs(predicted - observed).sum() / max(1, len(labels)))
    return Calibration(
        edges=_rounded(edges),
        predicted=_per_image(predicted, count),
        observed=_per_image(observed, count),
        count=[int(c) for c in count],
        expected_calibration_error=error,
    )


def _per_image(total: npt.NDArray[np.number], count: npt.NDArray[np.integer]) -> list[float | None]:
    return [
        round(float(t / c), 3) if c >= SMALLEST_BIN else None
        for t, c in zip(total, count, strict=True)
    ]


def mean_over_sites(estimates: Sequence[Estimate], *, lowest: float = 0.0) -> Estimate:
    """Unweighted mean of independent sites, with a normal 95 % interval cut at `lowest` and 1.

    The sites' test sets are disjoint, so the variance of the mean is the sum of the sites'
    squared standard errors over their number squared; no replicate has to leave a site. Patients
    seen at two hospitals would make it too narrow. Undefined if one site is. For differences
    `lowest` is -1.
    """
    undefined = [e for e in estimates if e.value is None]
    if undefined or not estimates:
        why = undefined[0].undefined_because if undefined else "no sites"
        return Estimate(value=None, undefined_because=f"undefined at a site: {why}")
    value = float(np.mean([e.value for e in estimates if e.value is not None]))
    errors = [e.standard_error for e in estimates if e.standard_error is not None]
    if len(errors) < len(estimates):
        return Estimate(value=value)
    error = float(np.sqrt(np.sum(np.square(errors))) / len(errors))
    return Estimate(
        value=value,
        low=max(value - 1.96 * error, lowest),
        high=min(value + 1.96 * error, 1.0),
        standard_error=error,
    )


def _rounded(values: FloatArray) -> list[float]:
    return [round(float(v), 6) for v in values]
