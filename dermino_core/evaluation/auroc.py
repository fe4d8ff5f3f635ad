"""Macro AUROC of many bootstrap replicates, for many classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.measure import FloatArray

Integers = npt.NDArray[np.integer]

_CELLS = 250_000
"""Weights held at once (images x replicates): few enough for a processor's cache."""


@dataclass(frozen=True)
class _Contest:
    """One class against the others: what of it does not depend on the draws.

    Attributes
    ----------
    members
        [M] indices of its images.
    others
        [N] indices of the other images, by rising score.
    below, not_above
        [M] how many of the others score below each member, and below or the same.
    """

    members: Integers
    others: Integers
    below: Integers
    not_above: Integers

    def auroc(self, drawn: npt.NDArray[np.int32]) -> FloatArray:
        """Of draws [n, b], shape [b]; NaN where one side was not drawn."""
        lost = np.zeros((len(self.others) + 1, drawn.shape[1]), np.int32)
        np.cumsum(drawn[self.others], axis=0, dtype=np.int32, out=lost[1:])
        times = drawn[self.members]
        beaten = lost[self.below] + lost[self.not_above]
        wins = np.einsum("ib,ib->b", times, beaten, dtype=np.float64) / 2
        pairs = times.sum(axis=0, dtype=np.float64) * lost[-1]
        return np.divide(wins, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def auroc_of_draws(
    labels: Integers, scores: npt.NDArray[np.floating], weights: Integers
) -> FloatArray:
    """What :func:`dermino_core.metrics.macro_auroc` gives, several times faster.

    Scores are sorted once per class instead of once per class and slice of replicates, and every
    pass runs along the replicates, which lie side by side.

    Parameters
    ----------
    labels
        Class index of each image, [n].
    scores
        [n, C]; for C = 2 only the last column counts.
    weights
        How often each image was drawn, [B, n].

    Returns
    -------
    [B]; NaN where no class has both members and others. A class without both is left out.
    """
    n_classes = scores.shape[1]
    columns = [n_classes - 1] if n_classes == 2 else range(n_classes)
    contests = [_contest(labels == c, scores[:, c]) for c in columns]
    result = np.full(len(weights), np.nan)
    step = max(1, _CELLS // max(1, len(labels)))
    for start in range(0, len(weights), step):
        drawn = np.ascontiguousarray(weights[start : start + step].T, dtype=np.int32)
        total, defined = np.zeros(drawn.shape[1]), np.zeros(drawn.shape[1])
        for contest in contests:
            value = contest.auroc(drawn)
            known = ~np.isnan(value)
            total[known] += value[known]
            defined += known
        np.divide(total, defined, out=result[start : start + step], where=defined > 0)
    return result


def _contest(member: npt.NDArray[np.bool_], score: npt.NDArray[np.floating]) -> _Contest:
    members, others = np.flatnonzero(member), np.flatnonzero(~member)
    others = others[np.argsort(score[others], kind="stable")]
    below = np.searchsorted(score[others], score[members], side="left")
    not_above = np.searchsorted(score[others], score[members], side="right")
    return _Contest(members, others, below, not_above)
