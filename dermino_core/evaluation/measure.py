"""A measured number with its bootstrap replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dermino_core.results import Calibration, RocCurve

FloatArray = npt.NDArray[np.float64]

EVERYONE = "all"
"""The group of a measure that is not about a part of the test half."""


@dataclass(frozen=True)
class Measure:
    """One number of one task on one data set for one backbone.

    Attributes
    ----------
    method
        How it was got, e.g. `softmax` or `logistic regression`.
    metric
        `auroc`, `f1`, `dice`, ...
    value, low, high
        The number and its 95 % percentile interval. None where it is undefined.
    standard_error
        Standard deviation of the replicates.
    n
        Test images (or cases) it rests on.
    group
        The part of the test half it is about, e.g. `sex=female`.
    setting
        What was varied, e.g. `share=0.05`.
    replicates
        [B], on the same draws for every backbone, so that two of them are paired.
    """

    method: str
    metric: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    group: str = EVERYONE
    setting: str = ""
    undefined_because: str | None = None
    replicates: FloatArray | None = field(default=None, repr=False, compare=False)


def measured(
    method: str,
    metric: str,
    value: float,
    replicates: FloatArray | None,
    *,
    n: int,
    group: str = EVERYONE,
    setting: str = "",
    why_undefined: str = "undefined",
) -> Measure:
    """A measure with the percentile interval of its replicates.

    Parameters
    ----------
    value
        NaN where it is undefined; then `why_undefined` is said.
    replicates
        [B] or None: no interval. NaN replicates are left out of the interval.
    """
    if np.isnan(value):
        return Measure(
            method, metric, None, n, group=group, setting=setting, undefined_because=why_undefined
        )
    low = high = error = None
    if replicates is not None:
        defined = replicates[~np.isnan(replicates)]
        if len(defined) > 1:
            low, high = (float(edge) for edge in np.percentile(defined, [2.5, 97.5]))
            error = float(defined.std(ddof=1))
    return Measure(
        method, metric, float(value), n, low, high, error, group, setting, None, replicates
    )


@dataclass(frozen=True)
class Outcome:
    """What a task found.

    Attributes
    ----------
    measures
        In the order in which people read them.
    predictions
        Method -> class scores of the test images, [n_test, C].
    rocs, calibrations
        Method -> curve.
    notes
        Sentences a reader of the numbers must know.
    """

    measures: Sequence[Measure]
    predictions: Mapping[str, FloatArray] = field(default_factory=dict)
    rocs: Mapping[str, RocCurve] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    notes: Sequence[str] = ()
