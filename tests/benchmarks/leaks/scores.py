"""How good an attack is: AUC, true positives at 1 % false ones, balanced accuracy, intervals.

An attack scores every image of every attacked run. Scores of one image in several runs, and of
several images in one run, are not independent; a bootstrap over runs and patients at once (Owen
2007, "The pigeonhole bootstrap") draws both, and is rather too wide than too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.metrics import bootstrap_weights

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]
Draws = npt.NDArray[np.unsignedinteger]

FALSE_ALARMS = 0.01
"""False-positive rate at which true positives are counted (Carlini et al. 2022)."""


@dataclass(frozen=True)
class Measured:
    """A number and its replicates [B]."""

    value: float
    replicates: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the replicates."""
        low, high = np.nanpercentile(self.replicates, [2.5, 97.5])
        return float(low), float(high)

    def show(self, digits: int = 2) -> str:
        """`0.71 [0.69, 0.73]`."""
        low, high = self.interval
        return f"{self.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


@dataclass(frozen=True)
class Figures:
    """One attack on one hospital, or its mean over several."""

    auc: Measured
    hits: Measured
    accuracy: Measured


def measure(
    scores: Floats,
    member: Flags,
    groups: npt.NDArray[np.str_],
    *,
    replicates: int = 200,
    seed: int = 0,
) -> Figures:
    """Figures of an attack's scores [T, n] (above 0: a member) against the truth [T, n].

    `seed` decides which runs are drawn, so that hospitals of the same runs share the draw.
    """
    runs, images = scores.shape
    of_run = bootstrap_weights(runs, replicates=replicates, seed=seed)
    unit = [str(group) for group in groups]
    of_image = bootstrap_weights(images, groups=unit, replicates=replicates, seed=seed + 1)
    drawn = (of_run[:, :, None] * of_image[:, None, :]).reshape(replicates, -1)
    weights = np.concatenate([np.ones((1, runs * images), np.uint16), drawn])
    truth, score = member.ravel(), scores.ravel().astype(np.float64)
    auc, hits = _from_curve(score, truth, weights)
    found = auc, hits, _accuracy(score, truth, weights)
    return Figures(*(Measured(float(values[0]), values[1:]) for values in found))


def _from_curve(score: Floats, truth: Flags, weights: Draws) -> tuple[Floats, Floats]:
    """Area under the ROC curve, and its height at 1 % false positives, [B] each.

    Ties count half in the area; the height is that of the lowest threshold that is allowed.
    """
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    areas, heights = [], []
    for start in range(0, len(weights), 25):
        drawn = weights[start : start + 25, order].astype(np.float64)
        none = np.zeros((len(drawn), 1))
        true, false = (
            np.concatenate([none, np.cumsum(drawn * which, axis=1)[:, last_of_tie]], axis=1)
            for which in (truth[order], ~truth[order])
        )
        area = (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1])).sum(axis=1) / 2
        areas.append(_share(area, true[:, -1] * false[:, -1]))
        allowed = (false <= FALSE_ALARMS * false[:, -1:]).sum(axis=1) - 1
        heights.append(_share(true[np.arange(len(true)), allowed], true[:, -1]))
    return np.concatenate(areas), np.concatenate(heights)


def _accuracy(score: Floats, truth: Flags, weights: Draws) -> Floats:
    """Mean of the shares of members above 0 and of others not above 0, [B]."""
    said, drawn = score > 0, weights.astype(np.float32)
    members, others = drawn @ truth, drawn @ ~truth
    right = drawn @ (said & truth), drawn @ (~said & ~truth)
    return 0.5 * (_share(right[0], members) + _share(right[1], others))


def _share(part: Floats, whole: Floats) -> Floats:
    """NaN where a replicate drew none."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def mean_of(figures: Sequence[Figures]) -> Figures:
    """Unweighted mean over hospitals, replicate by replicate."""

    def mean(parts: Sequence[Measured]) -> Measured:
        value = float(np.mean([part.value for part in parts]))
        return Measured(value, np.mean([part.replicates for part in parts], axis=0))

    return Figures(
        mean([one.auc for one in figures]),
        mean([one.hits for one in figures]),
        mean([one.accuracy for one in figures]),
    )


def resampled(values: Floats, *, replicates: int = 1000, seed: int = 0) -> Measured:
    """The mean of values of independent trials [T], with its bootstrap replicates."""
    weights = bootstrap_weights(len(values), replicates=replicates, seed=seed)
    return Measured(float(np.mean(values)), weights @ values / len(values))


@dataclass(frozen=True)
class Bound:
    """What no attack on a single unit can exceed under (epsilon, delta)-differential privacy."""

    auc: float
    hits: float
    accuracy: float


def bound(epsilon: float, delta: float) -> Bound:
    """From the smallest false-negative rate f at a false-positive rate a.

    f(a) = max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a)) (Wasserman & Zhou 2010;
    Dong, Roth & Su 2022, equation 5). The area is exact, because f is made of straight lines.
    """
    grow = np.exp(epsilon)
    corner = (1 - delta) / (1 + grow)

    def missed(alarms: float) -> float:
        return max(0.0, 1 - delta - grow * alarms, (1 - delta - alarms) / grow)

    under = corner * (missed(0) + corner) / 2 + corner * (1 - delta - corner) / 2
    return Bound(1 - under, 1 - missed(FALSE_ALARMS), 1 - corner)
