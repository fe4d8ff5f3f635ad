"""DeLong's variance against published values, a loop over pairs, and Obuchowski's own sums."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dermino_core.evaluation.delong import delong, delong_interval, delong_test

WFNS = {1: (37, 2), 2: (20, 12), 3: (3, 1), 4: (8, 8), 5: (4, 18)}
"""Grade of a haemorrhage -> number with good and with poor outcome (Turck et al. 2010)."""


def won(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def by_pairs(labels: np.ndarray, scores: np.ndarray, units: list[str]) -> tuple[np.ndarray, ...]:
    """AUROC and covariance by the sums of Obuchowski (1997), one pair and one unit at a time."""
    k = len(scores)
    pos, neg = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    x = [{i: np.mean([won(s[i], s[j]) for j in neg]) for i in pos} for s in scores]
    y = [{j: np.mean([won(s[i], s[j]) for i in pos]) for j in neg} for s in scores]
    theta = np.array([np.mean(list(placed.values())) for placed in x])
    names = sorted(set(units))
    with_pos = {units[i] for i in pos}
    with_neg = {units[j] for j in neg}
    s10, s01, s11 = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, k))
    for name in names:
        a = [sum(x[r][i] - theta[r] for i in pos if units[i] == name) for r in range(k)]
        b = [sum(y[r][j] - theta[r] for j in neg if units[j] == name) for r in range(k)]
        s10 += np.outer(a, a)
        s01 += np.outer(b, b)
        s11 += np.outer(a, b)
    m, n = len(pos), len(neg)
    s10 *= len(with_pos) / ((len(with_pos) - 1) * m)
    s01 *= len(with_neg) / ((len(with_neg) - 1) * n)
    s11 *= len(names) / (len(names) - 1)
    return theta, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def test_published_auroc_and_variance() -> None:
    """Reference values of the R package pROC (Robin et al. 2011) for the grade."""
    labels, grade = [], []
    for value, counts in WFNS.items():
        for label, count in enumerate(counts):
            labels += [label] * count
            grade += [value] * count
    aurocs, covariance = delong(np.array(labels), np.array(grade, dtype=float)[None])
    assert aurocs[0] == pytest.approx(0.823678861788618, abs=1e-14)
    assert covariance[0, 0] == pytest.approx(0.00146991470882363, abs=1e-16)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(6, 24), st.integers(0, 2), st.integers(2, 24))
def test_equals_a_loop_over_pairs_with_ties_and_units(
    seed: int, n: int, digits: int, patients: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[[0, 0, 1, 1], rng.integers(0, 2, n - 4)])
    scores = rng.random((3, n)).round(digits)
    units = [f"patient {u}" for u in rng.integers(0, patients, n)]
    aurocs, covariance = delong(labels, scores, units)
    assert aurocs == pytest.approx([roc_auc_score(labels, s) for s in scores])
    if min(len({u for u, y in zip(units, labels, strict=True) if y == c}) for c in (0, 1)) < 2:
        assert np.isnan(covariance).all()
        return
    expected = by_pairs(labels, scores, units)
    np.testing.assert_allclose(aurocs, expected[0], atol=1e-12)
    np.testing.assert_allclose(covariance, expected[1], atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > -1e-12
    plain = delong(labels, scores)[1]
    np.testing.assert_allclose(plain, delong(labels, scores, [str(i) for i in range(n)])[1])


def test_without_units_it_is_the_sample_covariance_of_placements() -> None:
    """DeLong's own formula: S10 / m + S01 / n."""
    rng = np.random.default_rng(4)
    labels, scores = rng.integers(0, 2, 50), rng.normal(size=(2, 50)).round(1)
    pos, neg = scores[:, labels == 1], scores[:, labels == 0]
    pairs = np.vectorize(won)(pos[:, :, None], neg[:, None, :])
    expected = np.cov(pairs.mean(axis=2)) / pos.shape[1] + np.cov(pairs.mean(axis=1)) / neg.shape[1]
    np.testing.assert_allclose(delong(labels, scores)[1], expected, atol=1e-14)


def test_copies_of_an_image_within_its_unit_say_nothing_new() -> None:
    rng = np.random.default_rng(5)
    labels, score = rng.integers(0, 2, 40), rng.normal(size=(2, 40))
    once = delong(labels, score)
    units = [str(i) for i in np.repeat(np.arange(40), 3)]
    thrice = delong(np.repeat(labels, 3), np.repeat(score, 3, axis=1), units)
    np.testing.assert_allclose(thrice[0], once[0])
    np.testing.assert_allclose(thrice[1], once[1], atol=1e-15)
    naive = delong(np.repeat(labels, 3), np.repeat(score, 3, axis=1))
    assert naive[1][0, 0] < once[1][0, 0] / 2


def test_interval_is_normal_on_the_logit_scale() -> None:
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 2, 90)
    score = rng.normal(size=90) + labels
    aurocs, covariance = delong(labels, score[None])
    found = delong_interval(labels, score)
    a, error = aurocs[0], math.sqrt(covariance[0, 0])
    assert found.value == a
    assert found.standard_error == error
    assert found.low is not None
    assert found.high is not None
    reach = 1.959963984540054 * error / (a * (1 - a))
    edges = [math.log(p / (1 - p)) - math.log(a / (1 - a)) for p in (found.low, found.high)]
    assert edges == pytest.approx([-reach, reach])
    wider = delong_interval(labels, score, level=0.99)
    assert wider.low is not None
    assert wider.low < found.low


def test_test_is_normal_on_the_plain_scale() -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 80)
    first, second = rng.normal(size=80) + labels, rng.normal(size=80)
    units = [str(i // 2) for i in range(80)]
    aurocs, s = delong(labels, np.stack([first, second]), units)
    error = math.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    z = (aurocs[0] - aurocs[1]) / error
    found = delong_test(labels, first, second, units)
    assert found.difference == pytest.approx(aurocs[0] - aurocs[1])
    assert found.p_value == pytest.approx(2 * NormalDist().cdf(-abs(z)))
    assert (found.low, found.high) == pytest.approx(
        (found.difference - 1.959964 * error, found.difference + 1.959964 * error), abs=1e-6
    )
    other = delong_test(labels, second, first, units)
    assert (other.difference, other.p_value) == (-found.difference, found.p_value)


def test_equal_scores_give_1_and_a_p_value_is_never_0() -> None:
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, 60)
    score = rng.random(60)
    assert delong_test(labels, score, 3 * score + 1) == (0, 0, 0, 1)
    labels = np.arange(40_000) % 2
    good = labels + 0.01 * rng.normal(size=40_000).round(1)
    good[:2] = [1.0, 0.0]
    sure = delong_test(labels, good, rng.random(40_000))
    assert 0 < sure.p_value < 1e-300


def test_what_is_undefined() -> None:
    score = np.arange(6.0)
    for labels in (np.zeros(6, dtype=int), np.ones(6, dtype=int)):
        assert np.isnan(delong(labels, score[None])[0]).all()
        assert np.isnan(delong_test(labels, score, -score)).all()
        assert "one class" in str(delong_interval(labels, score).undefined_because)
    nothing = np.zeros(0)
    assert delong_interval(nothing, nothing).undefined_because == "no test images"
    assert np.isnan(delong_test(nothing, nothing, nothing)).all()
    labels = np.array([0, 0, 0, 1, 1, 1])
    broken = np.where(labels, np.nan, score)
    assert "finite" in str(delong_interval(labels, broken).undefined_because)
    assert np.isnan(delong_test(labels, broken, score)).all()


@pytest.mark.parametrize(
    ("labels", "score", "units"),
    [
        ([0, 0, 1, 1], [1, 2, 3, 4], None),
        ([0, 0, 1, 1], [5, 5, 5, 5], None),
        ([0, 0, 1], [1, 3, 2], None),
        ([0, 0, 1, 1], [1, 3, 2, 4], ["a", "b", "c", "c"]),
    ],
    ids=["separated", "tied", "one positive", "positives of one patient"],
)
def test_no_interval_without_a_variance(
    labels: list[int], score: list[float], units: list[str] | None
) -> None:
    found = delong_interval(np.array(labels), np.array(score, dtype=float), units)
    assert found.value == roc_auc_score(labels, score)
    assert (found.low, found.high, found.standard_error) == (None, None, None)


def test_a_difference_without_variance_has_no_p_value() -> None:
    """A perfect score against a constant one: DeLong's formula cannot say anything."""
    labels = np.arange(20) % 2
    found = delong_test(labels, labels + 0.0, np.zeros(20))
    assert found.difference == 0.5
    assert np.isnan(found[1:]).all()


def test_a_nearly_perfect_score_stays_below_1() -> None:
    labels = np.r_[np.zeros(50, int), np.ones(50, int)]
    score = np.arange(100.0)
    score[49], score[50] = 50, 49
    found = delong_interval(labels, score)
    assert found.low is not None
    assert found.high is not None
    assert 0.9 < found.low < 0.9996 == found.value < found.high < 1


def test_what_does_not_fit_is_refused() -> None:
    labels = np.array([0, 1, 1])
    with pytest.raises(ValueError, match="not \\[k, n\\]"):
        delong(labels, np.zeros(3))
    with pytest.raises(ValueError, match="not 0 and 1"):
        delong(np.array([0, 1, 2]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="2 units"):
        delong(labels, np.zeros((1, 3)), ["a", "b"])
