"""Ridge from moments against scikit-learn on the pooled images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from dermino_core.moments import Moments
from dermino_core.ridge import (
    ABSENT,
    CrossValidation,
    Weighting,
    calibrate,
    class_weights,
    cross_validate,
    solve,
    solve_path,
    squared_errors,
)


def peer_scores(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    penalty: float,
    *,
    weights: np.ndarray | None = None,
    standardise: bool,
    at: np.ndarray | None = None,
) -> np.ndarray:
    """Scores of scikit-learn's ridge at `at` (default x)."""
    exact = x.astype(float)
    scaler = StandardScaler(with_std=standardise).fit(exact)
    z, where = scaler.transform(exact), scaler.transform(exact if at is None else at.astype(float))
    if not standardise:
        common = np.sqrt(z.var(axis=0).mean()) or 1.0
        z, where = z / common, where / common
    each = np.ones(len(y)) if weights is None else weights[y]
    model = Ridge(alpha=penalty * each.sum(), solver="svd")
    return model.fit(z, np.eye(classes)[y], sample_weight=each).predict(where)


@st.composite
def federations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Features, labels and site of each image, sites and classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, width = draw(st.integers(1, 60)), draw(st.integers(1, 12))
    classes, sites = draw(st.integers(2, 4)), draw(st.integers(1, 50))
    x = rng.normal(size=(n, width)) * 10.0 ** rng.uniform(-1, 1, width)
    x += rng.normal(size=width) * draw(st.sampled_from([0.0, 1.0, 30.0]))
    kind = draw(st.sampled_from(["plain", "duplicates", "constant", "rank"]))
    if kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 3), n)]
    elif kind == "constant":
        x[:, 0] = 3.25
    elif kind == "rank" and width > 2:
        x[:, 2:] = x[:, :1] * rng.normal(size=width - 2)
    y = rng.integers(0, draw(st.integers(1, classes)), n)
    place = rng.integers(0, sites, n)
    if draw(st.booleans()):
        place = y % sites  # sites with a single class
    return x.astype(np.float32), y, place, sites, classes


@settings(max_examples=60, deadline=None)
@given(
    federations(),
    st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    st.booleans(),
    st.sampled_from(["none", "balanced"]),
)
def test_any_split_over_sites_gives_the_pooled_ridge(
    federation: tuple[np.ndarray, np.ndarray, np.ndarray, int, int],
    penalty: float,
    standardise: bool,
    weighting: Weighting,
) -> None:
    x, y, place, sites, classes = federation
    per_class = weighting == "balanced"
    total = Moments.zeros(classes, x.shape[1], per_class=per_class)
    for site in range(sites):
        mine = place == site
        total = total + Moments.of(x[mine], y[mine], classes, per_class=per_class)
    weights = class_weights(total.counts, weighting) if per_class else None
    found = solve(total, penalty, weights=weights, standardise=standardise).of(x)
    expected = peer_scores(x, y, classes, penalty, weights=weights, standardise=standardise)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def drawn(n: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, width))
    return (rng.normal(size=(n, width)) + 0.7 * centres[y]).astype(np.float32), y


def test_a_far_centre_costs_no_more_accuracy_than_is_said() -> None:
    x, y = drawn(400, 20, 2)
    for offset in (0.0, 10.0, 1000.0):
        moved = (x.astype(float) + offset).astype(np.float32)
        moments = Moments.of(moved, y, 2, per_class=False)
        found = solve(moments, 0.1, standardise=True).of(moved)
        expected = peer_scores(moved, y, 2, 0.1, standardise=True)
        assert np.abs(found - expected).max() < 1e-12 + 1e-14 * offset**2


def test_balanced_weights_make_all_classes_count_alike() -> None:
    weights = class_weights(np.array([10.0, 30.0, 0.0]), "balanced")
    np.testing.assert_allclose(weights, [2.0, 2 / 3, 0.0])
    np.testing.assert_array_equal(class_weights(np.array([3.0, 0.0]), "none"), [1, 0])
    assert weights @ np.array([10.0, 30.0, 0.0]) == pytest.approx(40)


def test_squared_error_of_moments_is_that_of_the_images() -> None:
    x, y = drawn(50, 4, 3)
    weights = np.array([0.5, 1.0, 4.0])
    moments = Moments.of(x, y, 3, per_class=True)
    scores = solve(moments, 0.3)
    slow = ((np.eye(3)[y] - scores.of(x)) ** 2).sum(axis=1)
    assert squared_errors([scores], moments)[0] == pytest.approx(slow.sum(), rel=1e-10)
    assert squared_errors([scores], moments, weights)[0] == pytest.approx(
        (weights[y] * slow).sum(), rel=1e-10
    )


def by_folds(
    x: np.ndarray, y: np.ndarray, folds: int, classes: int, *, per_class: bool
) -> tuple[list[Moments], np.ndarray]:
    fold_of = np.arange(len(y)) % folds
    parts = [
        Moments.of(x[fold_of == f], y[fold_of == f], classes, per_class=per_class)
        for f in range(folds)
    ]
    return parts, fold_of


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("weighting", ["none", "balanced"])
def test_cross_validation_equals_the_one_with_images(
    weighting: Weighting, standardise: bool
) -> None:
    x, y = drawn(60, 7, 3, seed=4)
    y[y == 2] = np.where(np.arange((y == 2).sum()) % 2, 2, 0)  # unequal classes
    parts, fold_of = by_folds(x, y, 4, 3, per_class=weighting == "balanced")
    penalties = [3.0, 0.01, 0.3]
    found = cross_validate(parts, penalties, weighting=weighting, standardise=standardise)
    weights = class_weights(np.bincount(y, minlength=3).astype(float), weighting)
    errors, held_out = [], {}
    for penalty in sorted(penalties):
        scores = np.zeros((60, 3))
        for fold in range(4):
            rest, out = fold_of != fold, fold_of == fold
            scores[out] = peer_scores(
                x[rest], y[rest], 3, penalty, weights=weights, standardise=standardise, at=x[out]
            )
        held_out[penalty] = scores
        squares = ((np.eye(3)[y] - scores) ** 2).sum(axis=1)
        errors.append((weights[y] * squares).sum() / weights[y].sum())
    np.testing.assert_allclose(found.errors, errors, rtol=1e-9)
    np.testing.assert_array_equal(found.penalties, [0.01, 0.3, 3.0])
    assert found.penalty == found.penalties[int(np.argmin(errors))]
    chosen = held_out[found.penalty]
    means = np.stack([chosen[y == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(found.held_out.means, means, rtol=1e-8, atol=1e-10)
    within = ((chosen - means[y]) ** 2).sum(axis=1).mean()
    assert found.held_out.spread == pytest.approx(within, rel=1e-8)


def test_nothing_to_hold_out_takes_the_largest_penalty() -> None:
    x, y = drawn(12, 3, 2)
    whole = Moments.of(x, y, 2, per_class=False)
    none = Moments.zeros(2, 3, per_class=False)
    found = cross_validate([none, whole, none], [0.1, 1.0])
    assert found.penalty == 1.0
    assert (found.errors == 0).all()
    means = solve(whole, 1.0).of(x)
    np.testing.assert_allclose(found.held_out.means[1], means[y == 1].mean(axis=0), atol=1e-10)


def test_of_equal_errors_the_larger_penalty_wins() -> None:
    y = np.array([0, 1] * 6)
    parts, _ = by_folds(np.ones((12, 2), np.float32), y, 3, 2, per_class=False)
    assert cross_validate(parts, [0.1, 1.0, 10.0]).penalty == 10.0


def searched(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[CrossValidation, np.ndarray]:
    """A cross-validation, and the held-out scores written out."""
    parts, fold_of = by_folds(x, y, 5, classes, per_class=False)
    found = cross_validate(parts, [1.0], standardise=False)
    scores = np.zeros((len(y), classes))
    for fold in range(5):
        out = fold_of == fold
        rest = Moments.of(x[~out], y[~out], classes, per_class=False)
        scores[out] = solve(rest, 1.0, standardise=False).of(x[out])
    return found, scores


def test_two_classes_are_calibrated_by_discriminant_analysis_of_held_out_scores() -> None:
    x, y = drawn(300, 12, 2, seed=1)
    y[:100] = 0
    found, held_out = searched(x, y, 2)
    final = solve(Moments.of(x, y, 2, per_class=False), 1.0, standardise=False)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(held_out[:, 1:], y)
    expected = peer.predict_proba(final.of(x)[:, 1:])
    np.testing.assert_allclose(
        calibrate(final, found.held_out).probabilities(x), expected, atol=1e-5
    )
    reweighted = expected / np.bincount(y)  # Bayes' rule, from the shares of y to equal ones
    np.testing.assert_allclose(
        calibrate(final, found.held_out, prior="equal").probabilities(x),
        reweighted / reweighted.sum(axis=1, keepdims=True),
        atol=1e-5,
    )


def test_calibrated_probabilities_are_about_right_and_keep_the_order() -> None:
    for classes in (2, 4):
        x, y = drawn(900, 20, classes, seed=2)
        test_x, test_y = x[600:], y[600:]
        found, _ = searched(x[:600], y[:600], classes)
        final = solve(Moments.of(x[:600], y[:600], classes, per_class=False), 1.0)
        probabilities = calibrate(final, found.held_out).probabilities(test_x)
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == test_y
        assert abs(confidence.mean() - right.mean()) < 0.05
        raw = final.of(test_x)
        plain = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
        rows = np.arange(300)
        loss = -np.log(probabilities[rows, test_y]).mean()
        assert loss < -np.log(plain[rows, test_y]).mean() - 0.1


def test_scores_without_skill_get_a_slope_near_zero_and_no_turned_order() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30)).astype(np.float32)
    for seed in range(20):
        y = np.random.default_rng(seed).permutation(np.arange(40) % 2)
        parts, _ = by_folds(x, y, 5, 2, per_class=False)
        found = cross_validate(parts, [1.0])
        final = solve(Moments.of(x, y, 2, per_class=False), 1.0)
        logits = calibrate(final, found.held_out).probabilities(x)[:, 1]
        assert np.corrcoef(logits, final.of(x)[:, 1])[0, 1] > 0.9


def test_absent_classes_and_a_single_class_are_no_error() -> None:
    x, y = drawn(30, 4, 2)
    parts, _ = by_folds(x, y * 2, 3, 4, per_class=False)
    total = parts[0] + parts[1] + parts[2]
    head = calibrate(solve(total, 1.0), cross_validate(parts, [1.0]).held_out)
    assert head.bias[1] == head.bias[3] == ABSENT
    assert (head.probabilities(x)[:, [1, 3]] < 1e-9).all()
    single, _ = by_folds(x, np.full(30, 1), 3, 2, per_class=False)
    search = cross_validate(single, [1.0])
    head = calibrate(solve(single[0] + single[1] + single[2], 1.0), search.held_out)
    assert (head.probabilities(x)[:, 1] > 0.999).all()
    nothing = Moments.zeros(2, 4, per_class=False)
    assert (solve_path(nothing, [1.0])[0].of(x) == 0.5).all()


def test_a_hair_below_zero_in_the_sums_does_no_harm() -> None:
    """Fixed point and subtracting leave matrices that are not quite positive."""
    x, y = drawn(40, 1, 2)
    twice = np.hstack([x, x])
    moments = Moments.of(twice, y, 2, per_class=False)
    scale = float(np.sqrt(twice.astype(float).var(axis=0).mean()))
    below = 20 * scale**2 * 1e-3  # an eigenvalue of minus the penalty
    products = moments.products - below * np.array([[1, -1, 1]])
    sums = moments.sums + 1e-3 * np.array([[1, -1], [-1, 1]])
    bent = solve(Moments(moments.counts, sums, products), 1e-3)
    assert np.abs(bent.weight).max() < 1
    np.testing.assert_allclose(bent.of(twice), solve(moments, 1e-3).of(twice), atol=1e-3)
