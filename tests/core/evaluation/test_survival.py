"""Concordance, Cox, Kaplan-Meier and log-rank against loops, closed forms and other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dermino_core.errors import DerminoError
from dermino_core.evaluation.concordance import censoring, harrell, uno
from dermino_core.evaluation.follow_up import FollowUp, read_follow_up
from dermino_core.evaluation.measure import Measure, Outcome
from dermino_core.evaluation.survival import fit_cox, kaplan_meier, survival
from dermino_core.metrics import bootstrap_weights


def followed(n: int, seed: int = 0, *, ties: bool = True) -> tuple[np.ndarray, ...]:
    """Time, event and a risk that says something; with ties in times and in risks."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    event_time, lost = rng.exponential(20 * np.exp(-risk)), rng.exponential(30, n)
    time = np.minimum(event_time, lost)
    risk = risk + rng.normal(size=n)
    if ties:
        time, risk = np.ceil(time), np.round(risk, 1)
    return time, event_time <= lost, risk


def double_loop(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    wins = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            earlier = time[i] < time[j] or (time[i] == time[j] and not event[j])
            if event[i] and earlier:
                pairs += 1
                wins += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return wins / pairs


def test_concordance_is_that_of_a_double_loop_and_of_the_libraries() -> None:
    theirs = pytest.importorskip("lifelines.utils")
    time, event, risk = followed(120)
    ours = harrell(time, event, risk)[0]
    assert ours == pytest.approx(double_loop(time, event, risk), abs=1e-12)
    assert ours == pytest.approx(theirs.concordance_index(time, -risk, event), abs=1e-12)


def test_replicates_of_concordance_are_those_of_repeated_rows() -> None:
    time, event, risk = followed(50, seed=1)
    groups = [f"p{i // 2}" for i in range(50)]
    draws = bootstrap_weights(50, groups=groups, replicates=10, seed=2)
    slow = []
    for draw in draws:
        rows = np.repeat(np.arange(50), draw)
        slow.append(double_loop(time[rows], event[rows], risk[rows]))
    np.testing.assert_allclose(harrell(time, event, risk, draws), slow, atol=1e-12)


def test_concordance_in_slices_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    time, event, risk = followed(60)
    draws = bootstrap_weights(60, replicates=5)
    whole = harrell(time, event, risk, draws)
    monkeypatch.setattr("dermino_core.evaluation.concordance._CELLS", 200)
    np.testing.assert_allclose(harrell(time, event, risk, draws), whole, atol=1e-12)


@pytest.mark.parametrize("ties", [True, False])
def test_unos_index_is_that_of_scikit_survival(ties: bool) -> None:
    metrics = pytest.importorskip("sksurv.metrics")
    surv = pytest.importorskip("sksurv.util").Surv
    train_time, train_event, _ = followed(150, seed=3, ties=ties)
    time, event, risk = followed(100, seed=4, ties=ties)
    tau = float(train_time.max()) if not train_event[train_time.argmax()] else np.inf
    inside = time < tau
    theirs = metrics.concordance_index_ipcw(
        surv.from_arrays(train_event, train_time),
        surv.from_arrays(event, time),
        risk,
        tau=min(tau, float(train_time.max())),
    )[0]
    ours = uno(time, event & inside, risk, censoring(train_time, train_event))[0]
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert ours != pytest.approx(harrell(time, event, risk)[0], abs=1e-4)


@pytest.mark.parametrize("events", [[True, False], [False, True]])
def test_unos_index_leaves_out_what_training_never_saw(events: list[bool]) -> None:
    # The last training time is a loss (then G is 0), or an event (then G just ends).
    followed_by_training = censoring(np.array([1.0, 2.0]), np.array(events))
    time, event = np.array([1.0, 1.5, 5.0, 6.0]), np.ones(4, np.bool_)
    # Of the earlier times 1 and 1.5 count, 5 does not: its pair (5, 6) is the only wrong one.
    risk = np.array([4.0, 3.0, 1.0, 2.0])
    assert uno(time, event, risk, followed_by_training)[0] == 1.0
    assert harrell(time, event, risk)[0] == pytest.approx(5 / 6)


def test_nothing_to_compare_is_undefined() -> None:
    time, nobody = np.array([1.0, 2.0]), np.zeros(2, np.bool_)
    assert np.isnan(harrell(time, nobody, time)).all()
    assert np.isnan(uno(time, nobody, time, censoring(time, nobody))).all()


def test_cox_solves_a_case_by_hand() -> None:
    pytest.importorskip("lifelines")
    # Events of x = 1, 0, 1, scaled by its standard deviation s: with u = exp(b),
    # 1 / (2u + 1) = u / (u + 1), so u = 1 / sqrt(2).
    x = np.array([[1.0], [0.0], [1.0]])
    weights = fit_cox(x, np.array([1.0, 2.0, 3.0]), np.ones(3, np.bool_), penalty=0.0)
    assert weights == pytest.approx([-np.log(2) / 2], abs=1e-5)


def penalised_likelihood(
    weights: np.ndarray, x: np.ndarray, time: np.ndarray, event: np.ndarray, penalty: float
) -> float:
    """Minus Efron's log partial likelihood over n, and the penalty: a plain loop."""
    risk = np.exp(x @ weights)
    total = 0.0
    for moment in np.unique(time[event]):
        tied = event & (time == moment)
        at_risk, of_tied = risk[time >= moment].sum(), risk[tied].sum()
        total += np.log(risk[tied]).sum()
        count = int(tied.sum())
        total -= sum(np.log(at_risk - k / count * of_tied) for k in range(count))
    return -total / len(time) + penalty / 2 * float(weights @ weights)


def test_cox_is_the_optimum_of_its_likelihood_and_that_of_scikit_survival() -> None:
    pytest.importorskip("lifelines")
    from scipy.optimize import minimize

    time, event, risk = followed(150, seed=5)
    x = np.stack([risk, np.random.default_rng(6).normal(size=150)], axis=1)
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    weights = fit_cox(x, time, event, penalty=0.2)
    best = minimize(penalised_likelihood, np.zeros(2), (x, time, event, 0.2), tol=1e-10)
    assert weights == pytest.approx(best.x, abs=1e-4)
    cox = pytest.importorskip("sksurv.linear_model").CoxPHSurvivalAnalysis
    surv = pytest.importorskip("sksurv.util").Surv
    theirs = cox(alpha=0.2 * 150, ties="efron").fit(x, surv.from_arrays(event, time))
    assert weights == pytest.approx(theirs.coef_, abs=1e-4)


def test_a_fit_without_end_is_named() -> None:
    pytest.importorskip("lifelines")
    time = np.arange(1.0, 41.0)
    x = (-time[:, None] - time.mean()) / time.std()
    with pytest.raises(DerminoError, match="does not converge on 40 cases with 40 events"):
        fit_cox(x, time, np.ones(40, np.bool_), penalty=0.0)


def test_kaplan_meier_is_that_of_lifelines_and_of_repeated_rows() -> None:
    lifelines = pytest.importorskip("lifelines")
    time, event, _ = followed(80, seed=7)
    at = np.array([0.0, 1.0, 3.0, 3.5, 12.0])
    draws = bootstrap_weights(80, replicates=5).astype(np.float64)
    ours = np.concatenate([kaplan_meier(time, event, at), kaplan_meier(time, event, at, draws)])
    for curve, draw in zip(ours, [np.ones(80), *draws], strict=True):
        theirs = lifelines.KaplanMeierFitter().fit(time, event, weights=draw)
        np.testing.assert_allclose(curve, theirs.survival_function_at_times(at), atol=1e-12)


def test_kaplan_meier_says_nothing_beyond_its_last_time() -> None:
    time, at = np.array([1.0, 2.0]), np.array([1.5, 2.5])
    assert kaplan_meier(time, np.array([True, False]), at)[0] == pytest.approx(
        [0.5, np.nan], nan_ok=True
    )
    assert kaplan_meier(time, np.array([True, True]), at)[0] == pytest.approx([0.5, 0.0])


def cohort(n: int, seed: int, *, strength: float = 1.0) -> FollowUp:
    """Two images of each of n patients; what the first six features share is the risk."""
    rng = np.random.default_rng(seed)
    features = 0.5 * rng.normal(size=(n, 12))
    features[:, :6] += (shared := rng.normal(size=(n, 1)))
    hazard = strength * shared[:, 0]
    event_time, lost = rng.exponential(10 * np.exp(-hazard)), rng.exponential(20, n)
    noisy = np.repeat(features, 2, axis=0) + 0.1 * rng.normal(size=(2 * n, 12))
    return FollowUp(
        noisy.astype(np.float32),
        np.repeat(np.minimum(event_time, lost), 2),
        np.repeat(event_time <= lost, 2),
        tuple(f"{seed}-{i // 2}" for i in range(2 * n)),
    )


def find(outcome: Outcome, metric: str, group: str = "all") -> list[Measure]:
    return [m for m in outcome.measures if (m.metric, m.group) == (metric, group)]


def test_a_risk_that_is_in_the_features_is_found() -> None:
    pytest.importorskip("lifelines")
    train, test = cohort(150, 1), cohort(150, 2)
    outcome = survival(train, test, components=6, replicates=50)
    cases = test.cases()
    oracle = double_loop(cases.time, cases.event, cases.features[:, :6].sum(axis=1))
    (index,) = find(outcome, "concordance")
    assert oracle > 0.7
    assert index.value == pytest.approx(oracle, abs=0.04)
    assert index.n == 150
    assert index.low is not None
    assert index.high is not None
    assert index.low < oracle < index.high
    assert find(outcome, "concordance (Uno)")[0].value == pytest.approx(oracle, abs=0.06)
    high, low = find(outcome, "survival", "risk=high"), find(outcome, "survival", "risk=low")
    assert [m.setting for m in high] == [m.setting for m in low]
    assert all((a.value or 0) < (b.value or 0) for a, b in zip(high, low, strict=True))
    assert high[0].n + low[0].n == 150
    assert (find(outcome, "log-rank p", "risk: high - low")[0].value or 1) < 1e-6
    events = int(train.cases().event.sum()), int(cases.event.sum())
    assert outcome.notes == [
        f"600 images are 150 training cases with {events[0]} events and 150 test cases with "
        f"{events[1]}; 6 principal components."
    ]


def test_log_rank_is_the_textbooks_and_replicates_draw_units() -> None:
    pytest.importorskip("lifelines")
    from scipy.stats import chi2

    train, test = cohort(60, 3, strength=0.3), cohort(60, 4, strength=0.3)
    outcome = survival(train, test, replicates=5, horizons=[5.0])
    cases = test.cases()
    sizes = {m.group: m.n for m in outcome.measures if m.metric == "survival"}
    # Which cases are above the median follows from the sizes and from the fitted risk.
    from dermino_core.evaluation.survival import _components

    inputs, tested = _components(train.cases(), cases, 16, 0)
    weights = fit_cox(inputs, train.cases().time, train.cases().event, penalty=0.1)
    risk = tested @ weights
    draws = bootstrap_weights(60, groups=cases.units, replicates=5)
    (index,) = find(outcome, "concordance")
    assert index.replicates is not None
    np.testing.assert_allclose(
        index.replicates, harrell(cases.time, cases.event, risk, draws), atol=1e-9
    )
    high = risk > np.median(inputs @ weights)
    assert sizes == {"risk=high": high.sum(), "risk=low": (~high).sum()}
    excess = variance = 0.0
    for moment in np.unique(cases.time[cases.event]):
        at_risk = cases.time >= moment
        failed = cases.event & (cases.time == moment)
        n, d, share = at_risk.sum(), failed.sum(), (at_risk & high).sum() / at_risk.sum()
        excess += (failed & high).sum() - d * share
        variance += d * share * (1 - share) * (n - d) / max(1, n - 1)
    (p_value,) = find(outcome, "log-rank p", "risk: high - low")
    assert p_value.value == pytest.approx(chi2.sf(excess**2 / variance, 1), rel=1e-9)


def test_images_of_one_course_are_one_case() -> None:
    data = FollowUp(
        np.array([[1.0], [3.0], [5.0], [7.0]]),
        np.array([2.0, 2.0, 2.0, 9.0]),
        np.array([True, True, False, False]),
        ("p", "p", "q", "q"),
    ).cases()
    assert data.features.tolist() == [[2.0], [5.0], [7.0]]
    assert data.time.tolist() == [2.0, 2.0, 9.0]
    assert data.event.tolist() == [True, False, False]
    assert data.units == ("p", "q", "q")


def test_patients_in_both_halves_and_with_two_outcomes_are_told() -> None:
    pytest.importorskip("lifelines")
    train, test = cohort(20, 1), cohort(20, 2)
    assert survival(train, train, replicates=5).notes[1:] == [
        "20 patients or lesions are in both halves: the numbers flatter."
    ]
    units = tuple(f"p{i // 4}" for i in range(40))
    twice = FollowUp(test.features, test.time, test.event, units)
    assert (
        survival(train, twice, replicates=5)
        .notes[1]
        .startswith("Some patients or lesions have several outcomes")
    )


def test_what_cannot_be_analysed_is_named() -> None:
    train, test = cohort(20, 1), cohort(20, 2)
    quiet = FollowUp(test.features, test.time, np.zeros(40, np.bool_), test.units)
    with pytest.raises(DerminoError, match="None of the 40 images of the test half had the event"):
        survival(train, quiet)
    with pytest.raises(DerminoError, match="None of the 40 images of the training half had"):
        survival(quiet, train)
    same = FollowUp(np.ones((40, 12)), train.time, train.event, train.units)
    with pytest.raises(DerminoError, match="20 cases of the training half do not differ"):
        survival(same, test)
    with pytest.raises(DerminoError, match="The follow-up of 'b' lasts -1: a time must be 0 or"):
        FollowUp(np.ones((2, 1)), np.array([1.0, -1.0]), np.ones(2, np.bool_), ("a", "b"))
    with pytest.raises(ValueError, match="2 features, 1 times, 2 events, 2 units"):
        FollowUp(np.ones((2, 1)), np.ones(1), np.ones(2, np.bool_), ("a", "b"))
    with pytest.raises(ValueError, match="event must be bool"):
        FollowUp(np.ones((1, 1)), np.ones(1), np.ones(1), ("a",))


def test_follow_up_is_read_with_its_manifest(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("image,group,Time,event\na.png,p,12.5,yes\n\nb.png,q,0,0\n")
    records, time, event = read_follow_up(file)
    assert [(r.image, r.group) for r in records] == [("a.png", "p"), ("b.png", "q")]
    assert time.tolist() == [12.5, 0.0]
    assert event.tolist() == [True, False]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a.png,-3,1", "Row 2: time is -3, below 0."),
        ("a.png,soon,1", "Row 2: time is 'soon', not a number."),
        ("a.png,,1", "Row 2: time is empty."),
        ("a.png,3,", "Row 2: event is empty."),
        ("a.png,3,dead", "Row 2: event is 'dead', not yes or no."),
    ],
)
def test_a_wrong_follow_up_is_named_with_its_row(tmp_path: Path, row: str, sentence: str) -> None:
    file = tmp_path / "m.csv"
    file.write_text(f"image,time,event\n{row}\n")
    with pytest.raises(DerminoError) as caught:
        read_follow_up(file)
    assert caught.value.what == sentence
