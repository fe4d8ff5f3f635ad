"""Bootstrap measures and paired differences against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from dermino_core.evaluation.auroc import auroc_of_draws
from dermino_core.evaluation.measure import Measure, measured
from dermino_core.evaluation.statistics import (
    METRICS,
    NOT_FINITE,
    classification_measures,
    draw_units,
    in_slices,
    paired_difference,
)
from dermino_core.metrics import bootstrap_weights, macro_auroc, macro_f1
from tests.benchmarks.coverage import SCENARIOS, simulate


def halves(seed: int, n: int, n_classes: int, *, ties: bool = True) -> tuple[np.ndarray, ...]:
    """Labels, scores and units of a test half in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)]
    scores = rng.random((n, n_classes))
    if ties:
        scores = np.round(scores, 1)
    return labels, scores, np.array([f"patient {i}" for i in rng.integers(0, n // 2, n)])


def measures_of(labels: np.ndarray, scores: np.ndarray, units: object, **options) -> list[Measure]:
    options = {"method": "m", "n_classes": scores.shape[1], "replicates": 50, **options}
    return classification_measures(labels, scores, list(units), **options)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_values_equal_scikit_learn(n_classes: int) -> None:
    for seed in range(10):
        labels, scores, units = halves(seed, 80, n_classes)
        scores = scores + 0.01
        scores /= scores.sum(axis=1, keepdims=True)
        called = scores.argmax(axis=1)
        found = measures_of(labels, scores, units)
        expected = [
            roc_auc_score(labels, scores[:, 1])
            if n_classes == 2
            else roc_auc_score(labels, scores, multi_class="ovr"),
            f1_score(labels, called, average="macro"),
            recall_score(labels, called, average="macro"),
            accuracy_score(labels, called),
        ]
        assert [m.metric for m in found] == list(METRICS)
        assert [m.value for m in found] == pytest.approx(expected, abs=1e-12)
        assert {m.n for m in found} == {80}


def test_replicates_equal_measuring_the_images_that_were_drawn() -> None:
    """The slow way: repeat every image as often as its unit was drawn, and ask scikit-learn."""
    labels, scores, units = halves(3, 40, 3)
    found = measures_of(labels, scores, units, replicates=30, seed=5)
    weights = bootstrap_weights(40, groups=list(units), replicates=30, seed=5)
    for b, weight in enumerate(weights):
        rows = np.repeat(np.arange(40), weight)
        truth, called = labels[rows], scores[rows].argmax(axis=1)
        per_class = [roc_auc_score(truth == c, scores[rows, c]) for c in np.unique(truth)]
        recalls = [np.mean(called[truth == c] == c) for c in np.unique(truth)]
        expected = [
            np.mean(per_class),
            f1_score(truth, called, average="macro"),
            np.mean(recalls),
            np.mean(truth == called),
        ]
        drawn = [m.replicates[b] for m in found if m.replicates is not None]
        assert drawn == pytest.approx(expected, abs=1e-12)
    low, high = np.percentile(found[0].replicates, [2.5, 97.5])  # type: ignore[arg-type]
    assert (found[0].low, found[0].high) == (low, high)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 5), st.integers(0, 2))
def test_fast_auroc_is_that_of_the_metrics(seed: int, n: int, n_classes: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, n_classes, n), rng.random((n, n_classes)).round(digits)
    weights = bootstrap_weights(n, replicates=40, seed=seed)
    expected = macro_auroc(labels, scores, weights)
    np.testing.assert_allclose(auroc_of_draws(labels, scores, weights), expected, atol=1e-12)


def test_fast_auroc_of_more_replicates_than_a_slice_holds() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 2000), rng.random((2000, 2))
    weights = bootstrap_weights(2000, replicates=300)
    found = auroc_of_draws(labels, scores, weights)
    np.testing.assert_allclose(found, macro_auroc(labels, scores, weights), atol=1e-12)


def test_f1_is_that_of_the_metrics_also_where_a_class_is_missing() -> None:
    rng = np.random.default_rng(1)
    labels, called = rng.integers(0, 3, 25), rng.integers(0, 5, 25)
    found = measures_of(labels, rng.random((25, 6)), range(25), predicted=called)[1]
    weights = draw_units([str(i) for i in range(25)], replicates=50)
    assert found.value == pytest.approx(macro_f1(labels, called, 6)[0], abs=1e-12)
    by_name = bootstrap_weights(25, groups=[str(i) for i in range(25)], replicates=50)
    assert (weights == by_name).all()


def test_predictions_of_a_vote_replace_the_highest_score() -> None:
    labels, scores, units = halves(0, 30, 3)
    found = {m.metric: m.value for m in measures_of(labels, scores, units, predicted=labels)}
    assert (found["f1"], found["balanced_accuracy"], found["accuracy"]) == (1, 1, 1)
    assert found["auroc"] < 0.9


def test_a_part_is_measured_on_the_draws_of_the_whole() -> None:
    labels, scores, units = halves(7, 60, 2)
    rows = np.arange(60) % 3 == 0
    part = measures_of(labels, scores, units, rows=rows, group="sex=female")[0]
    weights = bootstrap_weights(60, groups=list(units), replicates=50)[:, rows]
    expected = macro_auroc(labels[rows], scores[rows], weights)
    np.testing.assert_allclose(part.replicates, expected, atol=1e-12)
    assert (part.n, part.group) == (int(rows.sum()), "sex=female")
    whole = measures_of(labels, scores, units, rows=np.ones(60, dtype=bool))[0]
    assert whole == measures_of(labels, scores, units)[0]


def test_what_is_undefined_says_why() -> None:
    one_class = measures_of(
        np.zeros(8, dtype=int), np.random.default_rng(0).random((8, 2)), "abcdefgh"
    )
    assert one_class[0].value is None
    assert "one class" in str(one_class[0].undefined_because)
    assert one_class[3].value is not None
    labels, scores, units = halves(0, 20, 2)
    nothing = measures_of(labels, scores, units, rows=np.zeros(20, dtype=bool))
    assert {(m.value, m.n, m.undefined_because) for m in nothing} == {(None, 0, "no test images")}
    empty = measures_of(np.zeros(0, dtype=int), np.zeros((0, 2)), [])
    assert {m.undefined_because for m in empty} == {"no test images"}
    scores[3, 1] = np.nan
    assert {m.undefined_because for m in measures_of(labels, scores, units)} == {NOT_FINITE}


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_single_image_and_all_ties(n_classes: int) -> None:
    single = measures_of(np.array([1]), np.eye(n_classes)[[1]], ["a"])
    assert [m.value for m in single] == [None, 1, 1, 1]
    assert (single[3].low, single[3].high) == (1, 1)
    labels = np.arange(20) % n_classes
    tied = measures_of(labels, np.ones((20, n_classes)), range(20))
    assert tied[0].value == 0.5
    defined = tied[0].replicates[~np.isnan(tied[0].replicates)]  # type: ignore[index]
    assert (defined == 0.5).all()


@pytest.mark.parametrize(
    "change",
    [
        {"n_classes": 3},
        {"predicted": np.full(20, 2)},
        {"predicted": np.zeros(19, dtype=int)},
        {"rows": np.arange(20)},
        {"rows": np.ones(19, dtype=bool)},
        {"replicates": 0},
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object]) -> None:
    labels, scores, units = halves(0, 20, 2)
    with pytest.raises(ValueError, match=r"\d|mask"):
        measures_of(labels, scores, units, **change)
    with pytest.raises(ValueError, match="19 units"):
        measures_of(labels, scores, units[:19])


def test_slices_give_what_one_piece_gives() -> None:
    weights = np.random.default_rng(0).integers(0, 9, (9000, 1000)).astype(np.uint8)
    seen: list[int] = []

    def total(part: np.ndarray) -> np.ndarray:
        seen.append(len(part))
        return np.stack([part.sum(axis=1), part.max(axis=1)])

    found = in_slices(total, weights)
    assert (found == [weights.sum(axis=1), weights.max(axis=1)]).all()
    assert len(seen) > 1


def gap(first: list[float], second: list[float]) -> tuple[float, ...]:
    return paired_difference(
        measured("m", "f1", 0.8, np.array(first), n=9),
        measured("m", "f1", 0.5, np.array(second), n=9),
    )


def test_paired_difference_by_hand() -> None:
    """99 replicates, 2 of them at or below 0: p = 2 (2 + 1) / (99 + 1)."""
    gaps = np.r_[-0.1, 0.0, np.linspace(0.01, 0.5, 97)]
    found = gap(list(0.3 + gaps), [0.3] * 99)
    assert found[0] == pytest.approx(0.3)
    assert found[1:3] == pytest.approx(np.percentile(gaps, [2.5, 97.5]))
    assert found[3] == pytest.approx(0.06)
    flipped = gap([0.3] * 99, list(0.3 + gaps))
    assert flipped[3] == found[3]
    assert (flipped[1], flipped[2]) == pytest.approx((-found[2], -found[1]))


def test_p_value_is_never_0_and_equal_measures_give_1() -> None:
    assert gap([0.9] * 999, [0.1] * 999)[3] == pytest.approx(2 / 1000)
    same = list(np.random.default_rng(0).random(50))
    assert gap(same, same)[1:] == (0, 0, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([-0.2, -0.1, 0.0, 0.1, 0.3]), min_size=2, max_size=200))
def test_p_value_agrees_with_the_interval(gaps: list[float]) -> None:
    """Up to the one replicate that is added, and the one between which percentiles interpolate."""
    _, low, high, p_value = gap(gaps, [0.0] * len(gaps))
    beyond = low > 0 or high < 0
    assert 0 < p_value <= 1
    assert beyond or p_value >= 0.05
    assert not beyond or p_value <= 2 * (2 + 0.025 * (len(gaps) - 1)) / (1 + len(gaps))


def test_undefined_replicates_are_left_out_in_pairs() -> None:
    nan = float("nan")
    found = gap([0.9, nan, 0.8, 0.7], [0.5, 0.5, nan, 0.6])
    assert found[1:3] == pytest.approx(np.percentile([0.4, 0.1], [2.5, 97.5]))
    assert np.isnan(gap([0.9, nan], [nan, 0.5])).all()
    undefined = measured("m", "f1", nan, None, n=0)
    assert np.isnan(paired_difference(undefined, undefined)).all()


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        gap([0.1, 0.2], [0.1, 0.2, 0.3])
    first, other = (measured("m", name, 0.5, np.ones(3), n=3) for name in ("f1", "auroc"))
    with pytest.raises(ValueError, match="f1 and auroc"):
        paired_difference(first, other)


def test_difference_of_two_parts_is_that_of_their_replicates() -> None:
    labels, scores, units = halves(11, 80, 2, ties=False)
    rows = np.arange(80) < 40
    first = measures_of(labels, scores, units, rows=rows)[0]
    second = measures_of(labels, scores, units, rows=~rows)[0]
    weights = bootstrap_weights(80, groups=list(units), replicates=50)
    one, two = (macro_auroc(labels[r], scores[r], weights[:, r]) for r in (rows, ~rows))
    found = paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx(tuple(np.nanpercentile(one - two, [2.5, 97.5])))


def within(share: float, low: float, high: float, trials: int) -> bool:
    """Whether a true rate between `low` and `high` explains so many hits (at 1 in 1,000)."""
    hits = round(share * trials)
    return binom.ppf(0.001, trials, low) <= hits <= binom.ppf(0.999, trials, high)


@pytest.mark.slow
def test_intervals_and_tests_hold_what_they_promise() -> None:
    """400 test halves each; the whole table is `python -m tests.benchmarks.coverage`."""
    trials = 400
    size = {"trials": trials, "replicates": 400}
    alone, patients = simulate(SCENARIOS[0], **size), simulate(SCENARIOS[3], **size)
    for rates in (alone, patients):
        for name in ("percentile", "DeLong"):
            assert within(rates.held[name], 0.93, 0.97, trials), (name, rates)
        for name in ("bootstrap", "DeLong"):
            assert within(rates.found[name], 0.03, 0.07, trials), (name, rates)
        assert rates.held["paper"] < 0.2
        assert rates.found["paper"] > 0.7
    naive = simulate(SCENARIOS[3], by_patient=False, **size)
    assert max(naive.held.values()) < 0.9
    assert min(naive.found.values()) > 0.1
