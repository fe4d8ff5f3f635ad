"""The statistics of the DermINO paper (section 4.2), to set our numbers beside its tables.

Neither is what its name says. The bounds "mean +- variance" are called a 95 % confidence interval
there; a variance is a squared quantity: at a standard error of 0.03 it is 0.0009, and the bounds
hold the truth in a few per cent of studies instead of 95. The t-test takes the replicates for
independent observations, though all of them are drawn from one test half: its p-value falls as far
as one likes by drawing more replicates, and two equally good models differ "significantly" nearly
always. `python -m tests.benchmarks.coverage` measures both. For inference, use
:func:`dermino_core.evaluation.statistics.paired_difference` and
:func:`dermino_core.evaluation.delong.delong_test`.
"""

from __future__ import annotations

import numpy as np

from dermino_core.evaluation.measure import FloatArray

_SMALLEST_P = float(np.finfo(np.float64).tiny)


def paper_interval(replicates: FloatArray) -> tuple[float, float] | tuple[None, None]:
    """Mean minus and plus the variance (ddof 1) of the replicates: no confidence interval.

    Parameters
    ----------
    replicates
        [B]; NaN replicates are left out.

    Returns
    -------
    None twice where fewer than two are defined.
    """
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < 2:
        return None, None
    mean, variance = float(defined.mean()), float(defined.var(ddof=1))
    return mean - variance, mean + variance


def paper_t_test(first: FloatArray, second: FloatArray) -> float:
    """Two-sided p-value of a paired t-test over replicates: no test of the models.

    Parameters
    ----------
    first, second
        [B], of the same draws; pairs with a NaN are left out.

    Returns
    -------
    Above 0, for it underflows; 1 if every pair is equal; NaN with fewer than two pairs.
    """
    from scipy.stats import t

    gaps = first - second
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) < 2:
        return float("nan")
    mean, error = gaps.mean(), gaps.std(ddof=1) / np.sqrt(len(gaps))
    if mean == 0:
        return 1.0
    if error == 0:
        return _SMALLEST_P
    return max(_SMALLEST_P, float(2 * t.sf(abs(mean) / error, len(gaps) - 1)))
