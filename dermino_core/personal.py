"""A hospital's own model: its own images in full, all others' at a discount it chooses itself.

Computed at the site, from its training images and the moments of the others (all sites' moments
less its own), and never sent. The ridge of :mod:`dermino_core.ridge` on own and others' images,
where the others together count as much as m own images (a power prior, Ibrahim & Chen 2000,
"Power Prior Distributions for Regression Models"). m = 0 is the hospital alone, m = the number of
the others' images the pooled model, all with the penalty of the federated model: in sum, not per
image, as it stands for what was believed before any image. The intercept is the hospital's own:
how sites differ on average says nothing of a lesion.

Which m is right differs from hospital to hospital, and few labels cannot tell. So all m of a grid
are fitted and averaged, weighted by how well each predicts own patients left out (pseudo Bayesian
model averaging, Yao et al. 2018, "Using Stacking to Average Bayesian Predictive Distributions"),
times a prior of m around :data:`USUAL`. With few labels the prior decides, with many the
hospital's own patients do. An average of linear scores is linear: the result is one head.

Leaving a patient out takes no fit: for a ridge with the hat matrix H, the residuals of images G
that took no part are (I - H_GG)^-1 e_G (Cook & Weisberg 1982, section 3.6), H and e from all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.blas_threads import threads_for
from dermino_core.heads import LinearHead
from dermino_core.moments import Float64, Integers, Moments
from dermino_core.ridge import Prior, ScoreMoments, Scores, calibrate, spread_of_features

COUNTS_AS = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0)
"""m to average over, as far as there are as many images elsewhere, and all of those."""

USUAL = 75.0
"""m in the middle of the prior: about what was best in the mean on three real sites with 10 to 400
labels, where 20 to 160 were within 0.01 AUROC of each other."""

_WIDTH = 1.0
_AT_ZERO = 3.0
"""The prior: log(m + 3) is normal around log(75 + 3) with standard deviation 1."""

PSEUDO_IMAGES = 20.0
"""How many own images the federation's calibration counts as."""

_PSEUDO_SHARE = 2.0


@dataclass(frozen=True)
class Personal:
    """A hospital's own model.

    Attributes
    ----------
    head
        Calibrated, for the shares of the classes among the hospital's own training images.
    scores
        The same before calibration, float64.
    counts_as, shares
        Grid of m, and the share of each in the average; both empty where the own labels could
        not take part (:func:`can_learn`) and the model is the federation's.
    """

    head: LinearHead
    scores: Scores
    counts_as: Float64
    shares: Float64

    @property
    def others_count_as(self) -> float | None:
        """Mean m: how many own images those of all other sites together count as."""
        return float(self.counts_as @ self.shares) if len(self.shares) else None


def can_learn(labels: Integers, groups: Sequence[str]) -> bool:
    """Whether there are two classes and two patients: something to learn, one to leave out."""
    return len(np.unique(labels)) > 1 and len(np.unique(_units(labels, groups))) > 1


def personal_model(
    features: npt.NDArray,
    labels: Integers,
    groups: Sequence[str],
    total: Moments,
    *,
    own: Moments,
    penalty: float,
    federated: Scores,
    held_out: ScoreMoments,
    noise: float = 0.0,
    standardise: bool = False,
    prior: Prior = "observed",
) -> Personal:
    """The hospital's own model from its labelled training images and the federation's moments.

    Parameters
    ----------
    features, labels, groups
        Of the hospital's training images that may take part: [n, D], [n], and patients or lesions
        (empty: every image stands alone).
    total, own
        Moments of all sites, and what this site contributed to them: the difference is what the
        other sites know.
    penalty, standardise
        Of the federated ridge.
    noise
        Of a private run: the size of the noise in the others' outer products. The more the others
        count, the more of it is added to the penalty.
    federated, held_out
        The federated scores, for a hospital without enough labels, and their moments on images
        held out, for calibrating with few.
    prior
        Whether probabilities stand for the classes' shares among the hospital's own training
        images, or for equal ones.
    """
    others = total - own
    if not can_learn(labels, groups):
        head = calibrate(federated, held_out, prior=prior)
        return Personal(head, federated, np.zeros(0), np.zeros(0))
    # Noisy moments say little of the features' spread; few images enough of their mean spread.
    whose = Moments.of(features, labels, total.n_classes, per_class=False) if noise else total
    scale = spread_of_features(whose, standardise=standardise)
    site = _Site(features, labels, groups, total.n_classes, scale)
    images = max(others.images, 0.0)
    noisy = noise / max(images, 1.0) / float(np.mean(scale**2))
    grid = np.array([m for m in COUNTS_AS if m < images] + ([images] if images >= 1 else []))
    grid = grid if len(grid) else np.zeros(1)
    fits = [site.fit(penalty * total.images + noisy * m, others, m) for m in grid]
    errors = np.array([float((fit.left_out**2).sum()) for fit in fits])
    evidence = -site.units / 2 * errors / max(errors.min(), 1e-300)
    evidence -= (np.log((grid + _AT_ZERO) / (USUAL + _AT_ZERO)) / _WIDTH) ** 2 / 2
    shares = np.exp(evidence - evidence.max())
    shares /= shares.sum()
    weight = np.tensordot(shares, np.stack([fit.scores.weight for fit in fits]), 1)
    bias = np.tensordot(shares, np.stack([fit.scores.bias for fit in fits]), 1)
    scores = Scores(weight, bias)
    left_out = site.targets - np.tensordot(shares, np.stack([f.left_out for f in fits]), 1)
    moments = _with_pseudo_images(_moments_of(left_out, labels, total.n_classes), held_out)
    return Personal(calibrate(scores, moments, prior=prior), scores, grid, shares)


@dataclass(frozen=True)
class _Fit:
    """Scores, and the residual [n, C] of every image when its patient is left out."""

    scores: Scores
    left_out: Float64


class _Site:
    """A hospital's images in the coordinates that the fits share."""

    def __init__(
        self,
        features: npt.NDArray,
        labels: Integers,
        groups: Sequence[str],
        n_classes: int,
        scale: Float64,
    ) -> None:
        exact = features.astype(np.float64)
        self.scale = scale
        self.mean = exact.mean(axis=0)
        self.z = (exact - self.mean) / scale
        self.targets = np.eye(n_classes)[labels]
        self.share = self.targets.mean(axis=0)
        self.square, self.cross = self.z.T @ self.z, self.z.T @ (self.targets - self.share)
        self.rows = _rows_of_units(_units(labels, groups))
        self.units = len(self.rows)
        self._others: tuple[Float64, Float64] | None = None

    def fit(self, penalty: float, others: Moments, counts_as: float) -> _Fit:
        """The ridge where the others count as that many own images; the penalty is the sum's."""
        n, width = self.z.shape
        matrix = self.square + penalty * np.eye(width)
        right = self.cross
        if counts_as > 0:
            if self._others is None:
                self._others = _covariance(others, self.scale)
            matrix = matrix + counts_as * self._others[0]
            right = right + counts_as * self._others[1]
        with threads_for((2 * width + n) * width**2):
            inverse = np.linalg.inv(matrix)
            solved = inverse @ right
            residuals = self.targets - self.share - self.z @ solved
            half = self.z @ inverse
            left_out = np.empty_like(residuals)
            for rows in self.rows:
                hat = half[rows] @ self.z[rows].T + 1 / n
                kept = np.eye(len(rows)) - hat
                left_out[rows] = np.linalg.lstsq(kept, residuals[rows], rcond=1e-12)[0]
        weight = solved.T / self.scale
        return _Fit(Scores(weight, self.share - weight @ self.mean), left_out)


def _covariance(others: Moments, scale: Float64) -> tuple[Float64, Float64]:
    """Covariance of features [D, D], and of features and classes [D, C], per image."""
    images = others.images
    mean, share = others.sums.sum(axis=0) / images, others.counts / images
    square = (others.matrix() / images - np.outer(mean, mean)) / np.outer(scale, scale)
    cross = (others.sums / images - share[:, None] * mean) / scale
    return square, cross.T


def _units(labels: Integers, groups: Sequence[str]) -> npt.NDArray:
    """Number of each image's patient."""
    if not len(groups):
        return np.arange(len(labels))
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _rows_of_units(unit: npt.NDArray) -> list[npt.NDArray[np.intp]]:
    order = np.argsort(unit, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(unit[order])) + 1)


def _moments_of(scores: Float64, labels: Integers, n_classes: int) -> ScoreMoments:
    """Of scores [n, C] on images that did not take part."""
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    sums = np.zeros((n_classes, n_classes))
    np.add.at(sums, labels, scores)
    means = sums / np.maximum(counts, 1)[:, None]
    spread = float(((scores - means[labels]) ** 2).sum()) / max(len(labels), 1)
    return ScoreMoments(counts, means, spread)


def _with_pseudo_images(own: ScoreMoments, federation: ScoreMoments) -> ScoreMoments:
    """Own moments, and the federation's as if of a few own images around the own mean."""
    n, each = own.counts.sum(), PSEUDO_IMAGES / max(1, np.count_nonzero(federation.counts))
    shift = own.counts @ (own.means - federation.means) / n
    known = own.counts[:, None] * own.means + each * (federation.means + shift)
    means = np.where(
        federation.counts[:, None] > 0, known / (own.counts[:, None] + each), own.means
    )
    # Around means of few images the spread looks small: a class takes one degree of freedom.
    free = max(n - np.count_nonzero(own.counts), 0.0)
    spread = (n * own.spread + PSEUDO_IMAGES * federation.spread) / (free + PSEUDO_IMAGES)
    shares = federation.counts / max(federation.counts.sum(), 1.0)
    return ScoreMoments(own.counts + _PSEUDO_SHARE * shares, means, spread)
