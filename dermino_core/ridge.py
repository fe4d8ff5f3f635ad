"""Ridge regression onto the classes, from moments alone: solve, choose the penalty, calibrate.

The targets are 1 for an image's class and 0 for the others. With the moments of all images
(:mod:`dermino_core.moments`) the optimum is a linear system (Hoerl & Kennard 1970), so one sum
over the hospitals gives what training on the pooled images would. Ridge heads of frozen features
in federations: Fani et al. 2024, "Accelerating Heterogeneous Federated Learning with Closed-form
Classifiers".

The objective: the weighted mean over the images of |y - W z - b|^2, plus `penalty` * |W|^2, of
features z that are standardised to mean 0 and variance 1, or all divided by one number so that
their mean variance is 1. As scikit-learn's `Ridge` with alpha = penalty * sum of the weights; the
intercept is not penalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dermino_core.blas_threads import threads_for
from dermino_core.heads import LinearHead
from dermino_core.moments import Float64, Moments

Weighting = Literal["none", "balanced"]
Prior = Literal["observed", "equal"]

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-6, 5))
"""To choose from: 0.001 to 100, two to a power of ten."""

ABSENT = -30.0
"""Logit of a class that no image has, below those of the others."""

CONSTANT = 1e-5
"""A feature whose standard deviation is below this share of its root mean square counts as
constant: it is centred and not scaled. Above it, its variance is exact to 2e-16 / CONSTANT^2."""

_DECOMPOSITION = 9.0
"""Multiplications of a symmetric eigendecomposition, about, per D^3."""

_LARGEST_SLOPE, _SMALLEST_SLOPE = 1e3, 1e-2


@dataclass(frozen=True)
class Scores:
    """`x W^T + b` of raw features x [n, D]: weight [C, D] and bias [C], float64."""

    weight: Float64
    bias: Float64

    def of(self, features: npt.NDArray) -> Float64:
        """Scores [n, C] of features [n, D]: near 1 for the class of an image, 0 for others."""
        return features.astype(np.float64) @ self.weight.T + self.bias


@dataclass(frozen=True)
class ScoreMoments:
    """What calibration needs to know of scores on images that did not take part in the fit.

    `means` [C, C]: mean scores (columns) of the images of each class (rows, 0 without images);
    `spread`: mean over the images of the squared distance from the mean of their class.
    """

    counts: Float64
    means: Float64
    spread: float


@dataclass(frozen=True)
class CrossValidation:
    """`errors` [P]: the held-out weighted mean squared error of each of `penalties` [P]."""

    penalties: Float64
    errors: Float64
    penalty: float
    held_out: ScoreMoments


def class_weights(counts: Float64, how: Weighting) -> Float64:
    """Weight of an image of each class, [C]: 1, or N / (K n_c) for all K classes present alike."""
    present = counts > 0
    if how == "none":
        return present.astype(np.float64)
    total, classes = counts.sum(), max(1, np.count_nonzero(present))
    return np.divide(total / classes, counts, out=np.zeros_like(counts), where=present)


def spread_of_features(
    moments: Moments, *, standardise: bool, products: Float64 | None = None
) -> Float64:
    """What to divide each feature by, [D]: its standard deviation, or one number for all.

    Parameters
    ----------
    products
        `moments.matrix()`, if it is known already.
    """
    images = moments.images
    if images <= 0:
        return np.ones(moments.width)
    matrix = moments.matrix() if products is None else products
    square = np.diag(matrix) / images
    mean = moments.sums.sum(axis=0) / images
    variance = square - mean**2
    constant = variance <= CONSTANT**2 * square
    if not standardise:
        common = float(np.where(constant, 0.0, variance).mean())
        return np.full(moments.width, np.sqrt(common) if common > 0 else 1.0)
    return np.sqrt(np.where(constant, 1.0, variance))


def solve_path(
    moments: Moments,
    penalties: Sequence[float] | Float64,
    *,
    weights: Float64 | None = None,
    standardise: bool = False,
) -> list[Scores]:
    """The optimum for each penalty, by one eigendecomposition.

    Parameters
    ----------
    moments
        Of the training images; with the products of each class if there are `weights`.
    weights
        Of an image of each class, [C]; default: 1.
    """
    each = np.ones(moments.n_classes) if weights is None else weights
    counts = each * moments.counts
    total = float(counts.sum())
    if total <= 0:
        flat = np.full(moments.n_classes, 1 / moments.n_classes)
        return [Scores(np.zeros_like(moments.sums), flat) for _ in penalties]
    products = moments.matrix()
    scale = spread_of_features(moments, standardise=standardise, products=products)
    weighted = products if weights is None else moments.matrix(weights)
    sums = each[:, None] * moments.sums
    mean, share = sums.sum(axis=0) / total, counts / total
    covariance = (weighted / total - np.outer(mean, mean)) / np.outer(scale, scale)
    cross = (sums / total - np.outer(share, mean)) / scale
    with threads_for(_DECOMPOSITION * len(covariance) ** 3):
        spectrum = np.linalg.eigh(covariance)
    values, vectors = np.maximum(spectrum.eigenvalues, 0.0), spectrum.eigenvectors
    rotated = cross @ vectors
    found: list[Scores] = []
    for penalty in penalties:
        shrunk = (rotated / (values + penalty)) @ vectors.T
        weight = np.asarray(shrunk / scale, np.float64)
        found.append(Scores(weight, share - weight @ mean))
    return found


def solve(
    moments: Moments,
    penalty: float,
    *,
    weights: Float64 | None = None,
    standardise: bool = False,
) -> Scores:
    """The optimum for one penalty; see :func:`solve_path`."""
    return solve_path(moments, [penalty], weights=weights, standardise=standardise)[0]


def squared_errors(
    path: Sequence[Scores], moments: Moments, weights: Float64 | None = None
) -> list[float]:
    """Of each of the scores: weighted sum over images and classes of (y - score)^2."""
    each = np.ones(moments.n_classes) if weights is None else weights
    counts, sums = each * moments.counts, each[:, None] * moments.sums
    matrix = moments.matrix() if weights is None else moments.matrix(weights)
    errors: list[float] = []
    for scores in path:
        w, b = scores.weight, scores.bias
        of_own_class = (w * sums).sum() + b @ counts
        squares = ((w @ matrix) * w).sum() + 2 * b @ (w @ sums.sum(axis=0)) + counts.sum() * (b @ b)
        errors.append(float(counts.sum() - 2 * of_own_class + squares))
    return errors


def cross_validate(
    folds: Sequence[Moments],
    penalties: Sequence[float],
    *,
    weighting: Weighting = "none",
    standardise: bool = False,
) -> CrossValidation:
    """Hold every fold out in turn, from the folds' moments: no image is needed.

    A fold's squared error is a quadratic form of its moments. Each fit standardises by the images
    it is fitted to; the classes are weighted as in all images. Of equal errors the larger penalty
    wins. Without two folds that hold images nothing can be held out: the largest penalty is
    chosen, and the scores' moments are those of the fit itself.
    """
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    weights = class_weights(total.counts, weighting) if weighting == "balanced" else None
    grid = np.array(sorted(penalties), dtype=np.float64)
    filled = [fold for fold in folds if fold.images > 0]
    if len(filled) < 2:
        path = solve_path(total, grid, weights=weights, standardise=standardise)
        seen = _score_moments([(path[-1], total)], total)
        return CrossValidation(grid, np.zeros(len(grid)), float(grid[-1]), seen)
    paths = [
        solve_path(total - fold, grid, weights=weights, standardise=standardise) for fold in filled
    ]
    each = [squared_errors(path, fold, weights) for path, fold in zip(paths, filled, strict=True)]
    errors = np.sum(each, axis=0)
    weight = total.images if weights is None else float(weights @ total.counts)
    best = len(grid) - 1 - int(np.argmin(errors[::-1]))
    held_out = [(path[best], fold) for path, fold in zip(paths, filled, strict=True)]
    return CrossValidation(
        grid, errors / weight, float(grid[best]), _score_moments(held_out, total)
    )


def _score_moments(parts: Sequence[tuple[Scores, Moments]], total: Moments) -> ScoreMoments:
    """Of scores on images, given the moments of the images' features."""
    n_classes = total.n_classes
    sums, squares = np.zeros((n_classes, n_classes)), 0.0
    for scores, moments in parts:
        w, b = scores.weight, scores.bias
        sums += moments.sums @ w.T + np.outer(moments.counts, b)
        squares += float(((w @ moments.matrix()) * w).sum())
        squares += float(2 * b @ (w @ moments.sums.sum(axis=0)) + moments.images * (b @ b))
    counts = total.counts
    means = np.divide(sums, counts[:, None], out=np.zeros_like(sums), where=counts[:, None] > 0)
    within = squares - float((counts[:, None] * means**2).sum())
    return ScoreMoments(counts, means, max(within, 0.0) / max(total.images, 1.0))


def calibrate(scores: Scores, held_out: ScoreMoments, *, prior: Prior = "observed") -> LinearHead:
    """A head whose softmax is a probability: scores times a slope, plus an offset per class.

    Linear discriminant analysis of the held-out scores with one variance for all directions
    (Fisher 1936; after a penalised regression: Hastie, Buja & Tibshirani 1995): held-out scores of
    a class are taken as normal around their mean. For two classes that is exactly LDA of the one
    score there is, since both scores sum to 1; for more, one slope for all classes keeps their
    order. Scores without skill on held-out images get a slope near 0, not a negative one.

    Parameters
    ----------
    prior
        The shares of the classes that the probabilities stand for: those among the training
        images of all sites, or the same for every class.
    """
    counts = held_out.counts
    present = counts > 0
    k = int(np.count_nonzero(present))
    bias = np.full(len(counts), ABSENT)
    if k < 2:
        bias[present] = 0.0
        return LinearHead(np.zeros(scores.weight.shape, np.float32), bias.astype(np.float32))
    means = held_out.means[np.ix_(present, present)]
    own = np.diag(means)
    others = (means.sum(axis=0) - own) / (k - 1)
    variance = max(held_out.spread, 1e-12)
    slope = float((own - others).mean()) * (k - 1) / variance
    slope = float(np.clip(slope, _SMALLEST_SLOPE, _LARGEST_SLOPE))
    share = counts[present] / counts.sum() if prior == "observed" else np.full(k, 1 / k)
    bias[present] = slope * (scores.bias[present] - means.mean(axis=0)) + np.log(share)
    weight = np.where(present[:, None], slope * scores.weight, 0.0)
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))
