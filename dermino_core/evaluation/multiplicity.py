"""p-values of many comparisons, adjusted for their number."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Holm's step-down adjustment (1979): bounds the chance of any false claim.

    The i-th smallest of m p-values is multiplied by m - i + 1; none falls below a smaller one's.

    Parameters
    ----------
    p_values
        [m], in 0..1; the tests may depend on each other in any way.

    Raises
    ------
    ValueError
        If a p-value is not in 0..1.
    """
    p, order = _sorted(p_values)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _unsorted(steps, order)


def benjamini_hochberg(p_values: npt.ArrayLike) -> FloatArray:
    """Benjamini and Hochberg's adjustment (1995): bounds the expected share of false claims.

    The i-th smallest of m p-values is multiplied by m / i; none exceeds a larger one's.

    Parameters
    ----------
    p_values
        [m], in 0..1; independent or positively dependent tests.

    Raises
    ------
    ValueError
        If a p-value is not in 0..1.
    """
    p, order = _sorted(p_values)
    steps = p[order] * (len(p) / np.arange(1, len(p) + 1))
    return _unsorted(np.minimum.accumulate(steps[::-1])[::-1], order)


def replicates_needed(comparisons: int, level: float = 0.05) -> int:
    """Bootstrap replicates with which Holm can find one of so many comparisons below `level`.

    The smallest p-value of B replicates is 2 / (B + 1), and Holm multiplies the smallest of m by
    m: with B = 1,000 and a level of 0.05 nothing can be found among 26 comparisons or more.
    """
    return math.floor(2 * comparisons / level)


def _sorted(p_values: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"not p-values: {p}")
    return p, np.argsort(p, kind="stable")


def _unsorted(steps: FloatArray, order: npt.NDArray[np.intp]) -> FloatArray:
    adjusted = np.empty_like(steps)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted
