"""Of two people, did the one at higher risk have the event first? Harrell's and Uno's index.

All bootstrap replicates are computed at once: with weights w, both indices are a ratio of
quadratic forms in w.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

_CELLS = 4_000_000
"""Largest pair matrix held at once."""


@dataclass(frozen=True)
class StepFunction:
    """Right-continuous: `values[k]` from `times[k]` on, 1 before the first."""

    times: FloatArray
    values: FloatArray

    def __call__(self, at: FloatArray) -> FloatArray:
        """The values at these times."""
        steps = np.r_[1.0, self.values]
        return steps[np.searchsorted(self.times, at, side="right")]


def censoring(time: FloatArray, event: Booleans) -> StepFunction:
    """Probability of being followed beyond a time (Kaplan-Meier with the roles exchanged).

    Where a censored and an observed time are equal, the event came first.
    """
    times = np.unique(time)
    at_risk = (time >= times[:, None]).sum(axis=1) - ((time == times[:, None]) & event).sum(axis=1)
    lost = ((time == times[:, None]) & ~event).sum(axis=1)
    stays = np.where(at_risk > 0, 1.0 - lost / np.maximum(at_risk, 1), 1.0)
    return StepFunction(times, np.cumprod(stays, dtype=np.float64))


def harrell(
    time: FloatArray, event: Booleans, risk: FloatArray, draws: npt.NDArray | None = None
) -> FloatArray:
    """Share of comparable pairs in which the higher risk had the event first (Harrell 1982).

    A pair is comparable if the earlier time is an event; of equal times, if only one is. Equal
    risks count half.

    Parameters
    ----------
    time, event, risk
        [n].
    draws
        How often each was drawn, [B, n]; default: once each, B = 1.

    Returns
    -------
    [B]; NaN without comparable pairs.
    """
    return _concordance(time, event, risk, np.ones(len(time)), draws)


def uno(
    time: FloatArray,
    event: Booleans,
    risk: FloatArray,
    followed: StepFunction,
    draws: npt.NDArray | None = None,
) -> FloatArray:
    """Harrell's index with pairs weighted by 1 / G(earlier time)^2 (Uno et al. 2011).

    It does not depend on how people were lost to follow-up.

    Parameters
    ----------
    followed
        G, :func:`censoring` of the training half. Pairs whose earlier time it does not reach (it
        is 0 there, or the last training time is before) do not count.
    """
    reached = followed(time)
    reached = np.where(time <= followed.times[-1], reached, 0.0)
    weights = np.divide(1.0, reached**2, out=np.zeros(len(time)), where=reached > 0)
    return _concordance(time, event, risk, weights, draws)


def _concordance(
    time: FloatArray,
    event: Booleans,
    risk: FloatArray,
    weights: FloatArray,
    draws: npt.NDArray | None,
) -> FloatArray:
    drawn = np.ones((1, len(time))) if draws is None else draws.astype(np.float64)
    first = np.flatnonzero(event)
    wins, pairs = np.zeros(len(drawn)), np.zeros(len(drawn))
    step = max(1, _CELLS // max(1, len(time)))
    for start in range(0, len(first), step):
        rows = first[start : start + step]
        mine, my_risk = time[rows, None], risk[rows, None]
        comparable = (mine < time) | ((mine == time) & ~event)
        better = (my_risk > risk) + 0.5 * (my_risk == risk)
        mass = drawn[:, rows] * weights[rows]
        wins += ((mass @ (comparable * better)) * drawn).sum(axis=1)
        pairs += ((mass @ comparable.astype(np.float64)) * drawn).sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)
