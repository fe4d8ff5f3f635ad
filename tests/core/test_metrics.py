"""Metrics against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, roc_curve

from dermino_core.metrics import (
    balanced_accuracy,
    bootstrap_weights,
    calibration,
    evaluate,
    macro_auroc,
    macro_f1,
    mean_over_sites,
    paired_difference,
)
from dermino_core.results import Estimate


def probabilities(rng: np.random.Generator, n: int, n_classes: int, *, ties: bool) -> np.ndarray:
    raw = rng.random((n, n_classes))
    if ties:
        raw = np.round(raw * 3) + 1
    return raw / raw.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_auroc_and_f1_equal_scikit_learn(n_classes: int, ties: bool) -> None:
    rng = np.random.default_rng(n_classes)
    for _ in range(20):
        labels = np.r_[np.arange(n_classes), rng.integers(0, n_classes, 60)]
        scores = probabilities(rng, len(labels), n_classes, ties=ties)
        expected = (
            roc_auc_score(labels, scores[:, 1])
            if n_classes == 2
            else roc_auc_score(labels, scores, multi_class="ovr", average="macro")
        )
        assert macro_auroc(labels, scores)[0] == pytest.approx(expected, abs=1e-12)
        predicted = scores.argmax(axis=1)
        assert macro_f1(labels, predicted, n_classes)[0] == pytest.approx(
            f1_score(labels, predicted, average="macro"), abs=1e-12
        )
        assert balanced_accuracy(labels, predicted, n_classes)[0] == pytest.approx(
            balanced_accuracy_score(labels, predicted), abs=1e-12
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40))
def test_weighted_replicates_equal_repeating_the_images(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = probabilities(rng, n, 2, ties=True)
    weights = bootstrap_weights(n, replicates=5, seed=seed)
    auroc, f1 = (
        macro_auroc(labels, scores, weights),
        macro_f1(labels, scores.argmax(1), 2, weights),
    )
    for b, weight in enumerate(weights):
        drawn = np.repeat(np.arange(n), weight)
        if len(set(labels[drawn])) == 2:
            assert auroc[b] == pytest.approx(roc_auc_score(labels[drawn], scores[drawn, 1]))
        else:
            assert np.isnan(auroc[b])
        expected = f1_score(labels[drawn], scores[drawn].argmax(1), average="macro")
        assert f1[b] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_of_every_replicate_equals_scikit_learn() -> None:
    """Eight classes, two of them never there but predicted, as at a centre of Fed-ISIC2019."""
    rng = np.random.default_rng(5)
    labels, predicted = rng.integers(0, 6, 40), rng.integers(0, 8, 40)
    weights = bootstrap_weights(40, replicates=25, seed=2)
    found = balanced_accuracy(labels, predicted, 8, weights)
    for value, weight in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(40), weight)
        expected = balanced_accuracy_score(labels[drawn], predicted[drawn])
        assert value == pytest.approx(expected, abs=1e-12)


def test_balanced_accuracy_by_hand_and_in_an_evaluation() -> None:
    """Of a 3 of 4 are found, of b 1 of 2; c has no image, though one is called c."""
    labels = np.array([0, 0, 0, 0, 1, 1])
    scores = np.eye(3)[[0, 0, 0, 2, 1, 0]]
    by_hand = (3 / 4 + 1 / 2) / 2
    assert balanced_accuracy(labels, scores.argmax(1), 3)[0] == pytest.approx(by_hand)
    found = evaluate(labels, scores, ["a", "b", "c"]).balanced_accuracy
    assert found is not None
    assert found.value == pytest.approx(by_hand)
    assert found.low is not None
    assert found.high is not None
    assert found.low < by_hand < found.high
    nothing = evaluate(labels[:0], scores[:0], ["a", "b", "c"]).balanced_accuracy
    assert nothing is not None
    assert nothing.value is None


def test_difference_in_balanced_accuracy_is_paired() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, 200)
    first, second = (probabilities(rng, 200, 4, ties=False) for _ in range(2))
    same = paired_difference(labels, first, first).balanced_accuracy
    assert same is not None
    assert (same.value, same.low, same.high) == (0, 0, 0)
    found = paired_difference(labels, first, second).balanced_accuracy
    assert found is not None
    expected = balanced_accuracy_score(labels, first.argmax(1)) - balanced_accuracy_score(
        labels, second.argmax(1)
    )
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_single_class_is_undefined_and_says_why() -> None:
    labels = np.ones(10, dtype=int)
    result = evaluate(
        labels, probabilities(np.random.default_rng(0), 10, 2, ties=False), ["a", "b"]
    )
    assert result.auroc.value is None
    assert "one class (b)" in str(result.auroc.undefined_because)
    assert result.f1.value is not None
    assert result.roc is None


def test_no_images_are_undefined() -> None:
    result = evaluate(np.zeros(0, dtype=int), np.zeros((0, 2)), ["a", "b"])
    assert result.n == 0
    assert result.auroc.value is None
    assert result.f1.value is None


def test_bootstrap_draws_n_images_or_whole_groups() -> None:
    weights = bootstrap_weights(50, replicates=200, seed=1)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.mean() == pytest.approx(1, abs=0.05)
    groups = [str(i // 5) for i in range(50)]
    grouped = bootstrap_weights(50, groups=groups, replicates=200, seed=1).reshape(200, 10, 5)
    assert (grouped == grouped[:, :, :1]).all()
    assert (grouped[:, :, 0].sum(axis=1) == 10).all()


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Binormal scores one standard deviation apart: AUROC = Phi(1/sqrt 2) = 0.7602."""
    truth, covered = 0.76025, 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        labels = np.r_[np.zeros(60, int), np.ones(60, int)]
        score = 1 / (1 + np.exp(-(rng.normal(size=120) + labels)))
        result = evaluate(
            labels, np.c_[1 - score, score], ["a", "b"], replicates=300, seed=trial, curves=False
        )
        assert result.auroc.low is not None
        assert result.auroc.high is not None
        covered += result.auroc.low <= truth <= result.auroc.high
    assert 0.88 <= covered / 200 <= 0.99


def test_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, 80), probabilities(rng, 80, 2, ties=False)
    first = evaluate(labels, scores, ["a", "b"], seed=7)
    assert first == evaluate(labels, scores, ["a", "b"], seed=7)
    assert first.auroc != evaluate(labels, scores, ["a", "b"], seed=8).auroc


def test_paired_difference_of_equal_models_is_exactly_zero() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), probabilities(rng, 60, 2, ties=False)
    difference = paired_difference(labels, scores, scores).auroc
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    better = np.c_[1.0 - labels, labels + 0.0]
    assert paired_difference(labels, better, scores).auroc.low > 0  # type: ignore[operator]


def test_roc_curve_goes_through_scikit_learns_points() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 400)
    scores = probabilities(rng, 400, 2, ties=False)
    curve = evaluate(labels, scores, ["a", "b"]).roc
    assert curve is not None
    x, y, _ = roc_curve(labels, scores[:, 1], drop_intermediate=False)
    expected = np.interp(curve.false_positive_rate, x, y)
    # np.interp picks one end of a vertical step; the curve may pick the other.
    assert np.abs(np.array(curve.true_positive_rate) - expected).max() < 0.03
    assert (np.array(curve.low) <= np.array(curve.high)).all()


def test_calibration_of_a_perfect_forecast_is_zero() -> None:
    labels = np.r_[np.zeros(10, int), np.ones(10, int)]
    result = calibration(labels, np.c_[1.0 - labels, labels + 0.0])
    assert result.expected_calibration_error == 0
    assert sum(result.count) == 20
    wrong = calibration(labels, np.c_[labels + 0.0, 1.0 - labels])
    assert wrong.expected_calibration_error == 1


def test_small_calibration_bins_show_no_score() -> None:
    """A bin of one image would be the score of a single patient."""
    labels = np.array([0] * 9 + [1])
    positive = np.r_[np.full(9, 0.12), 0.973]
    result = calibration(labels, np.c_[1 - positive, positive])
    assert result.count[9] == 1
    assert result.predicted[9] is None
    assert result.observed[9] is None
    assert result.predicted[1] == 0.12


def test_mean_over_sites_stays_a_share() -> None:
    sure = Estimate(value=0.998, low=0.99, high=1.0, standard_error=0.004)
    mean = mean_over_sites([sure, sure])
    assert mean.high == 1.0
    low = Estimate(value=-0.9, low=-1.0, high=-0.8, standard_error=0.2)
    assert mean_over_sites([low], lowest=-1).low == -1


def test_mean_over_sites_adds_variances_and_keeps_undefined() -> None:
    a = Estimate(value=0.8, low=0.7, high=0.9, standard_error=0.03)
    b = Estimate(value=0.6, low=0.5, high=0.7, standard_error=0.04)
    mean = mean_over_sites([a, b])
    assert mean.value == pytest.approx(0.7)
    assert mean.standard_error == pytest.approx(0.025)
    assert mean_over_sites([a, Estimate(value=None, undefined_because="x")]).value is None
