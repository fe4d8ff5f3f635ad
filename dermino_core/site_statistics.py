"""What a hospital may tell of its images beside the first round, and what follows from it.

A site tells how many training images it has, how many of each class, and the mean and variance of
each feature. Counts below a minimum are not told, nor what would give them away by subtraction;
means of few images are not told at all. From this the coordinator learns how alike the sites are:

- drift: how far a site's mean feature is from that of the other sites together, in standard
  deviations, root mean square over the features (the standardised mean difference of Cohen 1988;
  over many features, the statistic of Bai & Saranadasa 1996, scaled as in Srivastava & Du 2008).
  Beside it what chance alone would give sites of these sizes, because a small hospital's mean lies
  farther off without being different.
- class shares: total variation distance between a site's shares and those of the others, and its
  chance level; tested by Pearson's chi-square.
- whether the classes differ in the same direction as elsewhere: `dermino_core.moments`.

Images of one patient are alike, so that many of them count for fewer: variances of means are
inflated by a design effect (Kish 1965; Rao & Scott 1981 for the counts), which the site computes.
Scores are standard-normal deviates of scaled chi-squares (Box 1954) by Wilson & Hilferty 1931; the
features' correlation enters as their effective number, tr(R)^2 / tr(R^2) of the correlation matrix
R, with the correction for few images of Srivastava 2005.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

ASK_STATISTICS = True
"""Whether a run without privacy or secure aggregation asks for them unless told otherwise."""

FEWEST_COUNT = 5
"""Smallest count that is told unless somebody asks for more."""

FEWEST_FOR_MEANS = 20
"""Fewest images whose mean is told."""

_TINY = 1e-12


@dataclass(frozen=True)
class ToldCounts:
    """Images of each class, as far as they are told.

    `counts` holds None where a count is not told. `few` are those of the classes that are below
    the minimum, where even that is told.
    """

    counts: dict[str, int | None]
    few: tuple[str, ...] = ()


def told_counts(counts: Mapping[str, int], minimum: int) -> ToldCounts:
    """What may be told of these counts to somebody who knows their total.

    If all are at least `minimum`, all of them. Else the small ones are told as "few", and the
    first class that is not small is left out, so that no subtraction gives a small one: every
    combination of 0 to `minimum` - 1 stays possible for them. Where that takes more than this one
    class, nothing is told but the total.
    """
    few = tuple(name for name, count in counts.items() if count < minimum)
    if not few:
        return ToldCounts(dict(counts))
    hidden = {*few, *[name for name in counts if name not in few][:1]}
    total = sum(counts[name] for name in hidden)
    if len(hidden) == len(few) or total - len(few) * (minimum - 1) < minimum:
        return ToldCounts(dict.fromkeys(counts))
    return ToldCounts({n: None if n in hidden else c for n, c in counts.items()}, few)


@dataclass(frozen=True)
class FeatureSummary:
    """Mean and variance (n - 1) of each feature [D], and what the chance of the mean depends on.

    `design_effect`: by how much the images of one patient being alike inflates the variance of
    the mean; 1 for independent images. `effective_features`: how many independent features these
    correlated ones are worth. `class_means` [C, D]: None where they are not told.
    """

    mean: Float32
    variance: Float32
    design_effect: float
    effective_features: float
    class_means: Float32 | None = None


def summarise_features(
    features: npt.NDArray, labels: npt.NDArray, groups: Sequence[str], n_classes: int, minimum: int
) -> FeatureSummary | None:
    """The summary of images with features [n, D], or None if they are too few to tell a mean of.

    Class means are told only if every class has enough images: else the mean of a small class
    would follow from the others.

    Parameters
    ----------
    groups
        Patient or lesion of each image.
    minimum
        Smallest count that is told; means take at least 20 images.

    Raises
    ------
    ValueError
        If a feature is not finite.
    """
    enough = max(FEWEST_FOR_MEANS, minimum)
    if len(features) < enough:
        return None
    x = features.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinite values")
    mean, variance = x.mean(axis=0), x.var(axis=0, ddof=1)
    counts = np.bincount(labels, minlength=n_classes)
    class_means = None
    if counts.min() >= enough:
        class_means = np.stack([x[labels == c].mean(axis=0) for c in range(n_classes)])
    return FeatureSummary(
        mean=mean.astype(np.float32),
        variance=variance.astype(np.float32),
        design_effect=_design_effect(x - mean, variance, groups),
        effective_features=_effective_features(x - mean, variance),
        class_means=None if class_means is None else class_means.astype(np.float32),
    )


def _design_effect(deviations: Float64, variance: Float64, groups: Sequence[str]) -> float:
    """Variance of the mean by whole groups, over that by images; the mean over the features."""
    used = variance > _TINY
    _, places = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count, images = int(places.max()) + 1, len(deviations)
    if count < 2 or not used.any():
        return 1.0
    sums = np.zeros((count, deviations.shape[1]))
    np.add.at(sums, places, deviations)
    robust = count / (count - 1) * (sums**2).sum(axis=0) / images**2
    return float((robust[used] / (variance[used] / images)).mean())


def _effective_features(deviations: Float64, variance: Float64) -> float:
    """tr(R)^2 / tr(R^2) of the correlation matrix R, between 1 and the number of features."""
    used = variance > _TINY
    if not used.any():
        return 1.0
    z = deviations[:, used] / np.sqrt(variance[used])
    n, width = len(z) - 1, z.shape[1]
    gram = z @ z.T if len(z) < width else z.T @ z
    squares = float((gram**2).sum()) / n**2
    squares = n**2 / ((n - 1) * (n + 2)) * (squares - width**2 / n)
    return float(np.clip(width**2 / max(squares, _TINY), 1.0, width))


@dataclass(frozen=True)
class SiteStatistics:
    """What one site told. `features` is None where its images are too few to tell a mean of."""

    images: int
    counts: ToldCounts
    features: FeatureSummary | None = None
    images_per_group: float = 1.0


def images_per_group(groups: Sequence[str]) -> float:
    """How many images the patient of a random image has, itself included."""
    _, counts = np.unique(np.asarray(groups, dtype=str), return_counts=True)
    return float((counts.astype(float) ** 2).sum() / counts.sum())


@dataclass(frozen=True)
class Distance:
    """How far a site is from the others, what chance alone gives on average, and a z-score."""

    value: float
    chance: float
    score: float


def pooled(sites: Sequence[SiteStatistics]) -> tuple[Float64, Float64]:
    """Mean and variance (n - 1) of all these sites' images in one place, [D] each.

    Raises
    ------
    ValueError
        If one of them told no features, or there is none.
    """
    told = [(site.images, site.features) for site in sites if site.features is not None]
    if not told or len(told) < len(sites):
        raise ValueError("not every site told its features")
    images = np.array([n for n, _ in told], np.float64)
    means = np.stack([summary.mean.astype(np.float64) for _, summary in told])
    within = np.stack([summary.variance.astype(np.float64) for _, summary in told])
    mean = images @ means / images.sum()
    squares = (images - 1) @ within + images @ (means - mean) ** 2
    return mean, squares / (images.sum() - 1)


def drift(sites: Mapping[str, SiteStatistics]) -> dict[str, Distance]:
    """Each site's mean feature beside the others', in standard deviations within sites.

    Sites that told no features are left out; nothing with fewer than two.
    """
    told = {name: (site.images, site.features) for name, site in sites.items() if site.features}
    if len(told) < 2:
        return {}
    names = sorted(told)
    images = np.array([told[name][0] for name in names], np.float64)
    means = np.stack([told[name][1].mean.astype(np.float64) for name in names])
    variances = np.stack([told[name][1].variance.astype(np.float64) for name in names])
    effects = np.array([told[name][1].design_effect for name in names])
    effective = images @ np.array([told[name][1].effective_features for name in names])
    degrees = float(effective / images.sum())
    spread = (images - 1) @ variances / (images - 1).sum()
    used = spread > _TINY * max(1.0, float(spread.max()))
    if not used.any():
        return {}
    z = means[:, used] / np.sqrt(spread[used])
    total = images @ z
    # Of each site's mean: its variance, in units of the spread and as a mean over the features.
    noise = (variances[:, used] / spread[used]).mean(axis=1) * effects / images
    noise_of_all = images**2 @ noise
    found = {}
    for k, name in enumerate(names):
        rest = images.sum() - images[k]
        gap = z[k] - (total - images[k] * z[k]) / rest
        chance = noise[k] + (noise_of_all - images[k] ** 2 * noise[k]) / rest**2
        square = float((gap**2).mean())
        score = _deviate(square / max(chance, _TINY) * degrees, degrees)
        found[name] = Distance(float(np.sqrt(square)), float(np.sqrt(max(chance, 0.0))), score)
    return found


def class_shares(sites: Mapping[str, SiteStatistics]) -> dict[str, Distance]:
    """Total variation distance between each site's class shares and those of the others together.

    Half the sum of the absolute differences: the share of images that would have to change class.
    Sites that left out a count are not compared; nothing with fewer than two that did not.
    """
    told = {}
    for name, site in sites.items():
        counts = [count for count in site.counts.counts.values() if count is not None]
        if len(counts) == len(site.counts.counts) and sum(counts) > 0:
            told[name] = (np.array(counts, np.float64), site.images_per_group)
    if len(told) < 2:
        return {}
    total = np.sum([counts for counts, _ in told.values()], axis=0)
    inflated = sum(float(counts.sum()) * effect for counts, effect in told.values())
    return {
        name: _shares_apart(counts, effect, total, inflated)
        for name, (counts, effect) in sorted(told.items())
    }


def _shares_apart(counts: Float64, effect: float, total: Float64, inflated: float) -> Distance:
    """One site's counts [C] against the others', who have the rest of `total`.

    `effect` is the site's images per group, `inflated` the sum of it over all sites' images.
    """
    n = float(counts.sum())
    m = float(total.sum()) - n
    variance = effect / n + (inflated - n * effect) / m**2
    shares = (total / total.sum())[total > 0]
    gap = (counts / n - (total - counts) / m)[total > 0]
    value = float(np.abs(gap).sum() / 2)
    # Of a normal deviate, the mean absolute value is sqrt(2 / pi).
    chance = float(np.sqrt(2 / np.pi * shares * (1 - shares) * variance).sum() / 2)
    degrees = len(shares) - 1
    if degrees == 0:
        return Distance(value, chance, 0.0)
    return Distance(value, chance, _deviate(float((gap**2 / shares).sum()) / variance, degrees))


def _deviate(chi_square: float, degrees: float) -> float:
    """Wilson & Hilferty 1931: the standard-normal deviate of a chi-square."""
    part = 2 / (9 * degrees)
    return float(((chi_square / degrees) ** (1 / 3) - (1 - part)) / np.sqrt(part))
