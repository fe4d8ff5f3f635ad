"""The hospital's half of `ridge` with differential privacy: noisy sums in few dimensions.

Wang 2018, "Revisiting Differentially Private Linear Regression: Optimal and Adaptive Prediction &
Estimation in Unbounded Domain" (UAI), Algorithm 2 (AdaSSP): sufficient statistics of rows of
bounded length, Gaussian noise, and a ridge whose penalty is the size of the noise. Two changes.
Counts, sums and products are released together, by one Gaussian mechanism, and the penalty takes no
part of the budget: in the dimensions used here the smallest eigenvalue, which AdaSSP asks for,
is far below the noise.

The noise on a D x D matrix has the norm sqrt(D), whatever the images say. So features are first
projected on few random directions, which every site derives from the run's seed.

A row: the feature vector less the public centre, projected, divided by sqrt(k) and shortened to
length 1 at most. A patient is the mean of the rows, one-hot classes and outer products of its
images (of `images_per_patient`, drawn anew), so that it adds at most length 1 to each of the three.
With the three weighted by :data:`PARTS`, whose squares sum to 1, adding or removing a patient
changes what is released by at most 1: the noise's standard deviation is the noise multiplier.

What leaves the building: the noisy sums, moved back to all D dimensions, which adds nothing; the
size of the noise, which depends on the request only; and one example, whatever the site's size.
"""

from __future__ import annotations

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.moments import Float64, Moments, triangle_of
from dermino_core.privacy.accounting import noise_multiplier
from dermino_core.privacy.noise import SecureGenerator
from dermino_core.privacy.plan import Mechanism, PrivacyPlan, PrivacyRequest
from dermino_core.privacy.units import choose_images, number_units
from dermino_core.ridge import ScoreMoments, spread_of_features
from dermino_strategies.base import SiteData

FEWEST_UNITS = 2
"""One patient alone cannot hide among others."""

PARTS = tuple(np.array([0.3, 1.0, 0.5]) / np.linalg.norm([0.3, 1.0, 0.5]))
"""Weights of counts, sums and products in what is released: few numbers need little of the budget.
Found on three real sites with epsilon from 0.5 to 8."""

FEW_DIMENSIONS, MANY_DIMENSIONS, WEAK_EPSILON = 16, 64, 8.0
"""Directions that features are projected on, below and from this epsilon. The noise grows with
their number, what they can tell apart as well. Found on three real sites of 100 to 400 images."""


def usual_dimensions(epsilon: float) -> int:
    """How many directions, where the run does not say."""
    return FEW_DIMENSIONS if epsilon < WEAK_EPSILON else MANY_DIMENSIONS


def plan_private_ridge(
    data: SiteData, centre: tuple[float, ...], request: PrivacyRequest, rounds: int
) -> PrivacyPlan:
    """One Gaussian mechanism over all patients.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` with fewer than :data:`FEWEST_UNITS` units; `CONFIG_INVALID` for more than
        one round, a centre that does not fit the features, or if no noise is enough.
    """
    units = number_units(data.groups, len(data.labels), request.unit)
    count = len(np.unique(units))
    if count < FEWEST_UNITS:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"The site's training half has {count} {request.unit}s: too few for a private run.",
            fix="Add data, or take part in runs without privacy only.",
        )
    if rounds != 1:
        raise DerminoError(
            "CONFIG_INVALID",
            f"A private ridge takes one round, not {rounds}: more would cost and bring nothing.",
            fix="Set the number of rounds to 1.",
        )
    width = data.features.shape[1]
    if len(centre) not in (0, width):
        raise DerminoError(
            "CONFIG_INVALID",
            f"The run's centre has {len(centre)} numbers, the features {width}.",
            fix="Make it from features of the run's backbone, or leave it out.",
        )
    noise = noise_multiplier(request.epsilon, request.delta, 1.0, 1)
    return PrivacyPlan(request, 1, Mechanism(noise, 1.0, 1), count)


def directions(width: int, dimensions: int, seed: int) -> Float64:
    """Orthonormal columns [D, k], uniformly random: the same at every site of a run."""
    rng = np.random.default_rng([seed, width, dimensions])
    drawn = np.linalg.qr(rng.normal(size=(width, min(width, dimensions))))
    return np.asarray(drawn.Q, np.float64)


def private_moments(
    data: SiteData,
    plan: PrivacyPlan,
    *,
    centre: tuple[float, ...],
    dimensions: int,
    seed: int,
    per_class: bool,
    generator: SecureGenerator | None = None,
) -> tuple[Moments, float]:
    """Noisy moments in the coordinates of the raw features, and the noise's square.

    The second is the sum over the projected dimensions of the variance that the noise gives an
    entry of the outer products; its root is half the noise's largest eigenvalue. Over sites it adds
    up.

    Raises
    ------
    ValueError
        If features are not finite.
    """
    if not np.isfinite(data.features).all():
        raise ValueError("features hold NaN or infinite values")
    source = generator or SecureGenerator()
    request, width = plan.request, data.features.shape[1]
    basis = directions(width, dimensions, seed)
    k = basis.shape[1]
    middle = np.array(centre) if len(centre) else np.zeros(width)
    rows = (data.features.astype(np.float64) - middle) @ basis / np.sqrt(k)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    units = number_units(data.groups, len(data.labels), request.unit)
    chosen = choose_images(units, request.images_per_patient, source.uniform(len(units)))
    used = chosen.shares > 0
    picked, shares = chosen.rows[used], chosen.shares[used]
    weighted = np.eye(data.n_classes)[data.labels[picked]] * shares[:, None]
    z = rows[picked]
    each = weighted if per_class else shares[:, None]
    counts, sums = weighted.sum(axis=0), weighted.T @ z
    products = np.einsum("nc,ni,nj->cij", each, z, z, optimize=True)
    sigma = plan.per_round.noise_multiplier
    on_counts, on_sums, on_products = (sigma / part for part in PARTS)
    counts = counts + on_counts * source.normal(counts.shape)
    sums = sums + on_sums * source.normal(sums.shape)
    upper = np.triu(on_products * source.normal(products.shape))
    products = products + upper + np.triu(upper, 1).swapaxes(1, 2)
    moments = _moved_back(counts, sums, products, basis * np.sqrt(k), middle, per_class=per_class)
    return moments, float(k * (k * on_products) ** 2)


def _moved_back(
    counts: Float64,
    sums: Float64,
    products: Float64,
    basis: Float64,
    middle: Float64,
    *,
    per_class: bool,
) -> Moments:
    """Moments of `middle + basis z`, [D], from those of z, [k]."""
    long = sums @ basis.T
    triangles = []
    for block, matrix in enumerate(products):
        mine = slice(block, block + 1) if per_class else slice(None)
        crossed = np.outer(long[mine].sum(axis=0), middle)
        square = counts[mine].sum() * np.outer(middle, middle)
        triangles.append(triangle_of(basis @ matrix @ basis.T + crossed + crossed.T + square))
    return Moments(counts, long + counts[:, None] * middle, np.stack(triangles))


def private_penalty(moments: Moments, noise: float) -> float:
    """The size of the noise, per image and in the unit of the penalty.

    `sqrt(noise)` is half of the norm that a symmetric matrix of such noise has (Wigner 1958).
    """
    scale = spread_of_features(moments, standardise=False)
    return float(np.sqrt(noise)) / max(moments.images, 1.0) / float(scale[0] ** 2)


def believable(moments: Moments) -> Moments:
    """With no count below 0, which the noise may have made of few images."""
    return Moments(np.maximum(moments.counts, 0.0), moments.sums, moments.products)


def unheld_scores(moments: Moments) -> ScoreMoments:
    """Moments to calibrate by where nothing was held out: the scores taken at their word.

    A ridge's score estimates the probability of its class. The logistic curve that agrees with it
    around the classes' shares p has the slope 1 / (p (1 - p)); for two classes half of it on each.
    A ridge shrinks its scores towards the shares, so the probabilities are on the careful side.
    """
    present = moments.counts > 0
    k = max(1, int(np.count_nonzero(present)))
    share = np.where(present, moments.counts, 0.0) / max(moments.images, 1e-9)
    slope = float(np.mean(1 / (share[present] * (1 - share[present]) + 0.01)) / k) if k > 1 else 1.0
    means = share + np.eye(len(share)) - 1 / k
    return ScoreMoments(moments.counts, means, (k - 1) / slope)
