"""Logistic regression against scikit-learn's, its folds against what folds must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dermino_core.evaluation.examples import Examples
from dermino_core.evaluation.logistic import (
    STRENGTHS,
    USUAL_STRENGTH,
    fit_logistic,
    stratified_folds,
    unit_classes,
)


def images(
    seed: int, n: int, width: int, n_classes: int, *, far: float = 0.6, per_unit: int = 1
) -> Examples:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(n_classes), rng.geometric(0.5, n - n_classes).clip(max=n_classes) - 1]
    labels = np.sort(labels)
    centres = rng.normal(size=(n_classes, width)) * far
    features = 3 + (centres[labels] + rng.normal(size=(n, width))) * rng.uniform(0.1, 5, width)
    units = tuple(f"{label}-{i // per_unit}" for i, label in enumerate(labels))
    return Examples(features.astype(np.float32), labels, units)


def reference(train: Examples, strength: float, *, balanced: bool = False) -> object:
    solver = LogisticRegression(
        C=strength,
        solver="newton-cholesky",
        tol=1e-10,
        class_weight="balanced" if balanced else None,
    )
    return make_pipeline(StandardScaler(), solver).fit(
        train.features.astype(np.float64), train.labels
    )


@pytest.mark.parametrize(
    ("n", "width", "n_classes"), [(60, 8, 2), (40, 90, 2), (80, 12, 4), (50, 120, 3)]
)
@pytest.mark.parametrize("balanced", [False, True])
def test_the_optimum_is_scikit_learns(
    n: int, width: int, n_classes: int, *, balanced: bool
) -> None:
    train, test = images(n, n, width, n_classes), images(n + 1, 30, width, n_classes)
    model = fit_logistic(train, n_classes, class_weights=balanced)
    assert model.converged
    expected = reference(train, model.strength, balanced=balanced).predict_proba(
        test.features.astype(np.float64)
    )
    np.testing.assert_allclose(model.probabilities(test.features), expected, atol=1e-6)


@pytest.mark.parametrize(("seed", "balanced"), [(0, False), (1, True), (2, False), (3, True)])
def test_the_penalty_is_the_one_of_least_held_out_loss(seed: int, *, balanced: bool) -> None:
    train = images(seed, 70, 30, 3, far=(0.05, 0.2, 0.5, 2)[seed], per_unit=2)
    losses = np.zeros(len(STRENGTHS))
    counts = np.bincount(train.labels)
    weights = 1 / counts[train.labels] if balanced else np.ones(len(train))
    for held_out in stratified_folds(train.labels, train.units, seed=7):
        rest = train.take(np.setdiff1d(np.arange(len(train)), held_out))
        for place, strength in enumerate(STRENGTHS):
            # Balanced by the whole training half, so not by scikit-learn's "balanced".
            shift, spread = rest.features.mean(axis=0), rest.features.std(axis=0)
            share = {c: (len(train) / 3 / counts[c] if balanced else 1.0) for c in range(3)}
            solver = LogisticRegression(C=strength, max_iter=5000, tol=1e-6, class_weight=share)
            solver.fit((rest.features - shift) / spread, rest.labels)
            losses[place] += log_loss(
                train.labels[held_out],
                solver.predict_proba((train.features[held_out] - shift) / spread),
                sample_weight=weights[held_out],
                normalize=False,
                labels=range(3),
            )
    model = fit_logistic(train, 3, class_weights=balanced, seed=7)
    assert model.strength == STRENGTHS[losses.argmin()]
    assert model.folds == 5
    assert "5-fold" in model.sentence


def test_the_penalties_above_are_not_all_the_same() -> None:
    far = [fit_logistic(images(s, 70, 30, 3, far=d, per_unit=2), 3, seed=7).strength
           for s, d in enumerate((0.05, 0.2, 0.5, 2))]  # fmt: skip
    assert len(set(far)) >= 3


def test_other_images_may_say_the_spread() -> None:
    train, others = images(1, 20, 6, 2), images(2, 200, 6, 2).features.astype(np.float64)
    model = fit_logistic(train, 2, unlabelled=others)
    scaler = StandardScaler().fit(others)
    solver = LogisticRegression(C=model.strength, solver="newton-cholesky", tol=1e-10)
    solver.fit(scaler.transform(train.features.astype(np.float64)), train.labels)
    np.testing.assert_allclose(
        model.probabilities(others), solver.predict_proba(scaler.transform(others)), atol=1e-5
    )


def test_a_feature_that_never_changes_is_ignored() -> None:
    train = images(3, 40, 5, 2)
    stuck = np.full((40, 1), 3.3, np.float32)
    with_it = Examples(np.hstack([train.features, stuck]), train.labels, train.units)
    np.testing.assert_allclose(
        fit_logistic(with_it, 2).probabilities(with_it.features),
        fit_logistic(train, 2).probabilities(train.features),
        atol=1e-5,
    )


def test_a_class_without_images_has_no_probability() -> None:
    train = images(4, 50, 5, 2)
    moved = Examples(train.features, np.array([1, 3])[train.labels], train.units)
    found = fit_logistic(moved, 5).probabilities(train.features)
    np.testing.assert_array_equal(found[:, [0, 2, 4]], 0.0)
    np.testing.assert_allclose(
        found[:, [1, 3]], fit_logistic(train, 2).probabilities(train.features), atol=1e-6
    )


def test_one_image_of_each_class() -> None:
    x = np.array([[0.0, 1.0], [2.0, 1.0]], np.float32)
    model = fit_logistic(Examples(x, np.array([0, 1]), ("a", "b")), 2)
    assert (model.strength, model.folds) == (USUAL_STRENGTH, 0)
    assert "too few" in model.sentence
    found = model.probabilities(x)
    assert found[0, 0] == pytest.approx(found[1, 1])
    assert found[0, 0] > 0.5


@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(2, 4), st.integers(1, 3))
def test_folds_hold_out_whole_units_once_and_evenly(
    seed: int, n: int, n_classes: int, per_unit: int
) -> None:
    rng = np.random.default_rng(seed)
    of_unit = rng.integers(0, n_classes, size=n)
    labels = np.repeat(of_unit, per_unit)
    units = [f"u{i}" for i in np.repeat(np.arange(n), per_unit)]
    order = rng.permutation(len(labels))
    labels, units = labels[order], [units[i] for i in order]
    folds = list(stratified_folds(labels, units, seed=seed))
    fewest = np.unique(of_unit, return_counts=True)[1].min()
    assert len(folds) == (min(5, fewest) if fewest > 1 else 0)
    if not folds:
        return
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(len(labels)))
    sides = [{units[i] for i in fold} for fold in folds]
    assert sum(map(len, sides)) == len(set().union(*sides)) == n
    for label in np.unique(labels):
        counts = [len({units[i] for i in fold if labels[i] == label}) for fold in folds]
        assert max(counts) - min(counts) <= 1


def test_folds_of_units_with_several_classes() -> None:
    """A patient with both: counted for the more frequent, and never divided."""
    labels = np.array([0, 0, 1, 1, 0, 1, 0, 1])
    units = ["a", "a", "a", "b", "c", "d", "e", "f"]
    unit_of, class_of = unit_classes(labels, units)
    assert unit_of.tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert class_of.tolist() == [0, 1, 0, 1, 0, 1]
    for fold in stratified_folds(labels, units, seed=0):
        assert len({0, 1, 2} & set(fold.tolist())) in (0, 3)
    only_beside_others = np.array([0, 0, 1, 0, 0, 0, 0])
    assert not list(stratified_folds(only_beside_others, list("aaabcde"), seed=0))
