"""Adjusted p-values against worked examples and scipy; the paper's statistics against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, ttest_rel

from dermino_core.evaluation.measure import measured
from dermino_core.evaluation.multiplicity import benjamini_hochberg, holm, replicates_needed
from dermino_core.evaluation.paper_statistics import paper_interval, paper_t_test
from dermino_core.evaluation.statistics import paired_difference

P_VALUES = st.lists(st.floats(0, 1), max_size=30)


def test_holm_worked_by_hand() -> None:
    """0.005 x 4; 0.01 x 3; 0.03 x 2; 0.04 x 1, lifted to the 0.06 before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])


@settings(max_examples=50, deadline=None)
@given(P_VALUES, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_procedure_of_1979_rejects(p: list[float], level: float) -> None:
    """Step by step: the smallest at level / m, the next at level / (m - 1), until one fails."""
    rejected = np.zeros(len(p), dtype=bool)
    for step, place in enumerate(np.argsort(p, kind="stable")):
        if p[place] * (len(p) - step) > level:
            break
        rejected[place] = True
    assert ((holm(p) <= level) == rejected).all()


@settings(max_examples=50, deadline=None)
@given(P_VALUES.filter(len))
def test_benjamini_hochberg_is_scipys(p: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(P_VALUES)
def test_adjusting_never_lowers_and_keeps_the_order(p: list[float]) -> None:
    for adjusted in (holm(p), benjamini_hochberg(p)):
        assert ((adjusted >= p) & (adjusted <= 1)).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert (benjamini_hochberg(p) <= holm(p) + 1e-15).all()


@pytest.mark.parametrize("bad", [[0.5, 1.1], [-0.1], [float("nan")], [[0.1]]])
def test_what_is_no_p_value_is_refused(bad: list[float]) -> None:
    for adjust in (holm, benjamini_hochberg):
        with pytest.raises(ValueError, match="not p-values"):
            adjust(bad)


@pytest.mark.parametrize(("comparisons", "replicates"), [(1, 40), (25, 1000), (26, 1040)])
def test_replicates_needed_are_just_enough(comparisons: int, replicates: int) -> None:
    def smallest_adjusted(count: int) -> float:
        first, second = (measured("m", "f1", v, np.full(count, v), n=5) for v in (0.9, 0.1))
        p_value = paired_difference(first, second).p_value
        return holm([p_value] + [1.0] * (comparisons - 1))[0]

    assert replicates_needed(comparisons) == replicates
    assert smallest_adjusted(replicates) < 0.05 <= smallest_adjusted(replicates - 1)


def test_paper_interval_is_mean_and_variance() -> None:
    assert paper_interval(np.array([0.5, 0.7, np.nan, 0.9])) == pytest.approx((0.66, 0.74))
    assert paper_interval(np.array([0.5, np.nan])) == (None, None)


def test_paper_t_test_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0.8, 0.03, 1000)
    second = first + rng.normal(0.0005, 0.02, 1000)
    expected = ttest_rel(first, second).pvalue
    assert paper_t_test(first, second) == pytest.approx(expected, rel=1e-9)
    first[3] = np.nan
    expected = ttest_rel(first, second, nan_policy="omit").pvalue
    assert paper_t_test(first, second) == pytest.approx(expected, rel=1e-9)


def test_paper_t_test_shrinks_with_the_replicates_alone() -> None:
    """The same gaps a hundred times over: nothing new is known of the models."""
    rng = np.random.default_rng(1)
    few = rng.normal(0.01, 0.03, 100)
    many = np.tile(few, 100)
    assert paper_t_test(many, np.zeros(10_000)) < 1e-50 < paper_t_test(few, np.zeros(100))


def test_paper_t_test_of_edges() -> None:
    same = np.array([0.5, 0.6])
    assert paper_t_test(same, same) == 1
    assert 0 < paper_t_test(np.ones(5), np.zeros(5)) < 1e-300
    assert np.isnan(paper_t_test(np.ones(1), np.zeros(1)))
