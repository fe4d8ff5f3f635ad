"""Risk of progression from frozen features: Cox's proportional hazards (PanDerm's prognosis task).

Features are standardised and reduced by principal components of the training half, a Cox model
with an L2 penalty is fitted to them, and its risk is tested on the other half: concordance, and
the survival of those above and below the training half's median risk.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.evaluation.concordance import censoring, harrell, uno
from dermino_core.evaluation.follow_up import FollowUp
from dermino_core.evaluation.measure import FloatArray, Measure, Outcome, measured
from dermino_core.evaluation.statistics import draw_units

METHOD = "Cox"
COMPONENTS = 16
PENALTY = 0.1
HORIZONS = (0.25, 0.5, 0.75)
"""Quantiles of the training half's event times at which survival is told."""

_FIT_TO_THE_END = {"precision": 1e-10}
"""By default lifelines stops at three digits of a weight."""


def survival(
    train: FollowUp,
    test: FollowUp,
    *,
    components: int = COMPONENTS,
    penalty: float = PENALTY,
    horizons: Sequence[float] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Fit on one half, test on the other.

    Parameters
    ----------
    train, test
        Images of one unit with one outcome become one case.
    components
        Principal components; fewer where there are fewer training cases or events.
    penalty
        Of :func:`fit_cox`.
    horizons
        Times at which survival is told; default: :data:`HORIZONS`.

    Returns
    -------
    Outcome
        `concordance` (Harrell) and `concordance (Uno)`; `survival` of `risk=high` and `risk=low`
        at each `time=...` (Kaplan-Meier); `log-rank p` of these two halves, without an interval.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if a half has no event, or the training cases do not differ;
        `DEPENDENCY_MISSING` without lifelines.
    ValueError
        If `components`, `penalty` or features do not fit.
    """
    _check(train, test, components, penalty)
    images = len(train) + len(test)
    train, test = train.cases(), test.cases()
    train_inputs, test_inputs = _components(train, test, components, seed)
    weights = fit_cox(train_inputs, train.time, train.event, penalty=penalty)
    risk = test_inputs @ weights
    draws = draw_units(test.units, replicates=replicates, seed=seed).astype(np.float64)
    followed = censoring(train.time, train.event)
    measures = [
        measured(
            METHOD,
            metric,
            float(index(None)[0]),
            index(draws),
            n=len(test),
            why_undefined="no two cases of the test half can be compared",
        )
        for metric, index in (
            ("concordance", lambda drawn: harrell(test.time, test.event, risk, drawn)),
            ("concordance (Uno)", lambda drawn: uno(test.time, test.event, risk, followed, drawn)),
        )
    ]
    high = risk > np.median(train_inputs @ weights)
    if horizons is None:
        horizons = np.quantile(train.time[train.event], HORIZONS).tolist()
    measures += _curves(test, high, np.array(horizons, dtype=np.float64), draws)
    measures.append(_log_rank(test, high))
    notes = [
        f"{images} images are {len(train)} training cases with {int(train.event.sum())} events and "
        f"{len(test)} test cases with {int(test.event.sum())}; "
        f"{train_inputs.shape[1]} principal components."
    ]
    if torn := set(train.units) & set(test.units):
        notes.append(f"{len(torn)} patients or lesions are in both halves: the numbers flatter.")
    if len(set(test.units)) < len(test):
        notes.append(
            "Some patients or lesions have several outcomes: the log-rank test takes them for "
            "independent, its p is too small."
        )
    return Outcome(measures, notes=notes)


def fit_cox(
    inputs: FloatArray, time: FloatArray, event: npt.NDArray[np.bool_], *, penalty: float
) -> FloatArray:
    """Log hazard ratio of each input, [K].

    Maximises log partial likelihood / n - penalty / 2 * |weights|^2 (Cox 1972), tied events as
    Efron has them, on inputs [n, K] scaled to standard deviation 1.

    Raises
    ------
    DerminoError
        `DEPENDENCY_MISSING` without lifelines; `DATA_TOO_FEW` if the fit does not converge.
    """
    try:
        import pandas as pd
        from lifelines import CoxPHFitter
        from lifelines.exceptions import ConvergenceError, ConvergenceWarning
    except ImportError as error:
        raise _no_lifelines() from error
    table = pd.DataFrame({f"x{k}": column for k, column in enumerate(inputs.T)})
    fitter = CoxPHFitter(penalizer=penalty, l1_ratio=0.0)
    table = table.assign(time=time, event=event)
    try:
        with warnings.catch_warnings():
            # lifelines also warns beforehand, of columns that may do harm.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("error", ".*failed to converge", ConvergenceWarning)
            fitter.fit(table, "time", "event", fit_options=_FIT_TO_THE_END)
    except (ConvergenceError, ConvergenceWarning) as error:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"Cox's model does not converge on {len(time)} cases with {int(event.sum())} events.",
            fix="Ask for fewer components or a larger penalty.",
        ) from error
    return np.asarray(fitter.params_, dtype=np.float64)


def kaplan_meier(
    time: FloatArray,
    event: npt.NDArray[np.bool_],
    at: FloatArray,
    draws: FloatArray | None = None,
) -> FloatArray:
    """Share that is free of the event at the times `at` [T], of every row of draws: [B, T].

    Kaplan & Meier 1958. NaN beyond the last time of anyone drawn, unless all had the event.
    """
    drawn = np.ones((1, len(time))) if draws is None else draws
    times = np.unique(time[event])
    at_risk = drawn @ (time[:, None] >= times).astype(np.float64)
    failed = drawn @ ((time[:, None] == times) & event[:, None]).astype(np.float64)
    stays = 1.0 - np.divide(failed, at_risk, out=np.zeros(failed.shape), where=at_risk > 0)
    steps = np.concatenate([np.ones((len(drawn), 1)), np.cumprod(stays, axis=1)], axis=1)
    curve = steps[:, np.searchsorted(times, at, side="right")]
    followed = drawn @ (time[:, None] >= at).astype(np.float64) > 0
    return np.where(followed | (curve == 0), curve, np.nan)


def _check(train: FollowUp, test: FollowUp, components: int, penalty: float) -> None:
    if components < 1 or not penalty >= 0:
        raise ValueError(f"components {components} and penalty {penalty} must be above 0")
    if train.features.shape[1:] != test.features.shape[1:]:
        raise ValueError(
            f"features {train.features.shape} and {test.features.shape} do not fit together"
        )
    for half, data in (("training", train), ("test", test)):
        if not data.event.any():
            raise DerminoError(
                "DATA_TOO_FEW",
                f"None of the {len(data)} images of the {half} half had the event.",
                fix="Divide the data so that both halves have events.",
            )


def _components(
    train: FollowUp, test: FollowUp, components: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Principal components of both halves, of variance 1 in the training half."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.features)
    scaled = np.asarray(scaler.transform(train.features))
    rank = int(np.linalg.matrix_rank(scaled))
    if rank < 1:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"The {len(train)} cases of the training half do not differ in their features.",
            fix="Give more cases.",
        )
    kept = min(components, rank, int(train.event.sum()))
    pca = PCA(kept, whiten=True, svd_solver="full", random_state=seed).fit(scaled)
    return pca.transform(scaled), pca.transform(scaler.transform(test.features))


def _curves(
    test: FollowUp, high: npt.NDArray[np.bool_], horizons: FloatArray, draws: FloatArray
) -> Iterator[Measure]:
    for name, these in (("high", high), ("low", ~high)):
        time, event = test.time[these], test.event[these]
        points = kaplan_meier(time, event, horizons)[0]
        replicates = kaplan_meier(time, event, horizons, draws[:, these])
        for place, horizon in enumerate(horizons):
            yield measured(
                METHOD,
                "survival",
                float(points[place]),
                replicates[:, place],
                n=int(these.sum()),
                group=f"risk={name}",
                setting=f"time={horizon:g}",
                why_undefined="nobody in this part was followed so long",
            )


def _log_rank(test: FollowUp, high: npt.NDArray[np.bool_]) -> Measure:
    """Whether the two halves by risk differ in survival (Mantel 1966)."""
    from lifelines.statistics import logrank_test

    p_value = np.nan
    if high.any() and not high.all():
        p_value = logrank_test(
            test.time[high], test.time[~high], test.event[high], test.event[~high]
        ).p_value
    return measured(
        METHOD,
        "log-rank p",
        float(p_value),
        None,
        n=len(test),
        group="risk: high - low",
        why_undefined="every test case is on one side of the median risk",
    )


def _no_lifelines() -> DerminoError:
    return DerminoError(
        "DEPENDENCY_MISSING",
        "Survival analysis needs the package lifelines.",
        fix="pip install 'dermino[survival]'",
    )
