"""Sensitivity and specificity at a target against scikit-learn's ROC curve and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from dermino_core.evaluation.measure import Measure
from dermino_core.evaluation.operating_points import Rate, choose_threshold, operating_points
from dermino_core.metrics import bootstrap_weights

TEST_95 = ("sensitivity", "specificity=0.95, threshold=test")


def found_in(labels: np.ndarray, score: np.ndarray, **options) -> dict[tuple[str, str], Measure]:
    options = {"units": [str(i) for i in range(len(labels))], "replicates": 40, **options}
    units = options.pop("units")
    scores = np.stack([1 - score, score], axis=1)
    measures = operating_points(labels, scores, units, method="m", **options)
    named = {(m.metric, m.setting): m for m in measures}
    assert len(named) == len(measures)
    return named


def by_loop(
    labels: np.ndarray, score: np.ndarray, kept: Rate, percent: int
) -> tuple[float, float, float]:
    """Threshold, sensitivity and specificity: every candidate in turn, counted in whole images."""
    positives, negatives = sum(labels == 1), sum(labels == 0)
    able = []
    for threshold in [*sorted(set(score)), np.inf]:
        hits = sum((score >= threshold) & (labels == 1))
        spared = sum((score < threshold) & (labels == 0))
        enough = spared >= percent * negatives / 100
        if kept == "sensitivity":
            enough = hits >= percent * positives / 100
        if enough:
            able.append((threshold, hits / positives, spared / negatives))
    if kept == "specificity":
        assert able[0][1] == max(rates[1] for rates in able)
        return able[0]
    assert able[-1][2] == max(rates[2] for rates in able)
    return able[-1]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 60),
    st.integers(0, 2),
    st.sampled_from([0, 50, 80, 90, 95, 100]),
)
def test_equals_trying_every_threshold(seed: int, n: int, digits: int, percent: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0, 1, rng.integers(0, 2, n - 2)])
    score = rng.random(n).round(digits)
    at = percent / 100
    found = found_in(
        labels, score, targets=(at,), replicates=2, train=(labels, np.c_[score, score])
    )
    for kept, other, place in (
        ("specificity", "sensitivity", 0),
        ("sensitivity", "specificity", 1),
    ):
        threshold, *rates = by_loop(labels, score, kept, percent)
        assert choose_threshold(labels, score, kept, at) == threshold
        assert found[other, f"{kept}={at:g}, threshold=test"].value == pytest.approx(rates[place])
        for metric, rate in zip(("sensitivity", "specificity"), rates, strict=True):
            same = found[metric, f"{kept}={at:g}, threshold=train"]
            assert same.value == pytest.approx(rate), "trained on the test images: the same point"


def test_is_a_point_of_scikit_learns_curve() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    score = rng.normal(size=300).round(1) + labels
    alarms, hits, _ = roc_curve(labels, score, drop_intermediate=False)
    found = found_in(labels, score)
    for at in (0.95, 0.9):
        sensitivity = found["sensitivity", f"specificity={at}, threshold=test"].value
        specificity = found["specificity", f"sensitivity={at}, threshold=test"].value
        assert sensitivity == pytest.approx(hits[alarms <= 1 - at].max())
        assert specificity == pytest.approx(1 - alarms[hits >= at].min())


def test_worked_by_hand_with_ties() -> None:
    """Twenty negatives: one alarm is allowed at 0.95. The tie at 0.8 would make two."""
    labels = np.r_[np.ones(4, int), np.zeros(20, int)]
    score = np.r_[0.9, 0.8, 0.8, 0.1, 0.85, 0.8, np.linspace(0.2, 0.7, 18)]
    found = found_in(labels, score)
    assert found[TEST_95].value == 0.25
    assert found["sensitivity", "specificity=0.9, threshold=test"].value == 0.75
    assert choose_threshold(labels, score, "specificity", 0.95) == 0.85
    assert choose_threshold(labels, score, "specificity", 0.99) == 0.9
    assert choose_threshold(labels, score, "sensitivity", 0.75) == 0.8
    assert found["specificity", "sensitivity=0.95, threshold=test"].value == 0


def test_if_a_negative_scores_highest_nothing_may_be_called() -> None:
    labels, score = np.array([0, 1, 0, 1]), np.array([0.9, 0.8, 0.1, 0.2])
    assert choose_threshold(labels, score, "specificity", 0.95) == np.inf
    found = found_in(labels, score, train=(labels, np.c_[score, score]))
    assert found[TEST_95].value == 0
    train = "specificity=0.95, threshold=train"
    assert (found["sensitivity", train].value, found["specificity", train].value) == (0, 1)


def test_replicates_choose_again_on_test_and_keep_the_training_threshold() -> None:
    rng = np.random.default_rng(2)
    labels, known = rng.integers(0, 2, 60), rng.integers(0, 2, 80)
    score = (rng.random(60) + 0.3 * labels).round(1)
    training = rng.random(80) + 0.5 * known
    units = [f"patient {i // 3}" for i in range(60)]
    rows = np.arange(60) % 5 != 0
    found = found_in(
        labels, score, units=units, rows=rows, seed=4, train=(known, np.c_[training, training])
    )
    threshold = by_loop(known, training, "sensitivity", 90)[0]
    weights = bootstrap_weights(60, groups=units, replicates=40, seed=4) * rows
    for b, weight in enumerate(weights):
        drawn = np.repeat(np.arange(60), weight)
        truth, said = labels[drawn], score[drawn]
        expected = {
            ("sensitivity", "specificity=0.95, threshold=test"): by_loop(
                truth, said, "specificity", 95
            )[1],
            ("specificity", "sensitivity=0.9, threshold=test"): by_loop(
                truth, said, "sensitivity", 90
            )[2],
            ("sensitivity", "sensitivity=0.9, threshold=train"): np.mean(
                said[truth == 1] >= threshold
            ),
            ("specificity", "sensitivity=0.9, threshold=train"): np.mean(
                said[truth == 0] < threshold
            ),
        }
        for key, value in expected.items():
            replicates = found[key].replicates
            assert replicates is not None
            assert replicates[b] == pytest.approx(value)
    assert {m.n for m in found.values()} == {int(rows.sum())}


def test_all_ties_and_perfect_scores() -> None:
    labels = np.arange(40) % 2
    tied = found_in(labels, np.full(40, 0.5))
    assert [m.value for m in tied.values()] == [0, 0, 0, 0]
    perfect = found_in(labels, labels + 0.0)
    assert [(m.value, m.low, m.high) for m in perfect.values()] == [(1, 1, 1)] * 4


def test_what_is_undefined_says_why() -> None:
    score = np.random.default_rng(0).random(20)
    labels = np.arange(20) % 2
    train = (np.ones(20, dtype=int), np.c_[score, score])
    one_class = found_in(np.ones(20, dtype=int), score, train=(labels, np.c_[score, score]))
    for (metric, setting), measure in one_class.items():
        known = metric == "sensitivity" and "train" in setting
        assert (measure.value is not None) == known
        assert known or "one class" in str(measure.undefined_because)
    no_threshold = found_in(labels, score, train=train)
    for (_, setting), measure in no_threshold.items():
        assert (measure.value is None) == ("train" in setting)
        assert ("training images" in str(measure.undefined_because)) == ("train" in setting)
    nothing = found_in(labels, score, rows=np.zeros(20, dtype=bool))
    assert {(m.value, m.undefined_because) for m in nothing.values()} == {(None, "no test images")}
    empty = found_in(np.zeros(0, dtype=int), np.zeros(0))
    assert {m.undefined_because for m in empty.values()} == {"no test images"}
    broken = found_in(labels, np.where(labels, score, np.nan))
    assert all("finite" in str(m.undefined_because) for m in broken.values())
    single = found_in(np.array([1]), np.array([0.7]))
    assert single[TEST_95].value is None


def test_settings_and_groups_are_passed_on() -> None:
    labels, score = np.arange(20) % 2, np.arange(20) / 20
    found = found_in(labels, score, group="sex=male", setting="share=0.1")
    assert ("sensitivity", "share=0.1, specificity=0.95, threshold=test") in found
    assert {m.group for m in found.values()} == {"sex=male"}


def test_what_does_not_fit_is_refused() -> None:
    labels, units = np.array([0, 1, 2]), ["a", "b", "c"]
    with pytest.raises(ValueError, match="not 0 and 1"):
        operating_points(labels, np.zeros((3, 2)), units, method="m")
    with pytest.raises(ValueError, match=r"not \[n, 2\]"):
        operating_points(labels, np.zeros((3, 3)), units, method="m")
    with pytest.raises(ValueError, match="2 units"):
        operating_points(labels % 2, np.zeros((3, 2)), units[:2], method="m")
