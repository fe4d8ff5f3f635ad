"""Moments against sums written out, and folds against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from dermino_core.moments import (
    Moments,
    fold_moments,
    fold_of_images,
    matrix_of,
    triangle_of,
    triangle_size,
)


def images(n: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)).astype(np.float32), rng.integers(0, classes, n)


def test_moments_are_the_sums_written_out() -> None:
    x, y = images(37, 5, 3)
    for per_class in (False, True):
        moments = Moments.of(x, y, 3, per_class=per_class)
        assert moments.images == 37
        weights = np.array([0.5, 2.0, 7.0])
        expected = np.zeros((5, 5))
        weighted = np.zeros((5, 5))
        for row, label in zip(x.astype(float), y, strict=True):
            expected += np.outer(row, row)
            weighted += weights[label] * np.outer(row, row)
        np.testing.assert_allclose(moments.matrix(), expected, rtol=1e-12, atol=1e-12)
        for label in range(3):
            assert moments.counts[label] == (y == label).sum()
            np.testing.assert_allclose(moments.sums[label], x[y == label].sum(0, float))
        if per_class:
            np.testing.assert_allclose(moments.matrix(weights), weighted, rtol=1e-12, atol=1e-12)
        else:
            with pytest.raises(ValueError, match="products of each class"):
                moments.matrix(weights)


def test_more_images_than_one_chunk_are_all_counted() -> None:
    x, y = images(9000, 2, 2)
    exact = x.astype(float)
    np.testing.assert_allclose(
        Moments.of(x, y, 2, per_class=False).matrix(), exact.T @ exact, rtol=1e-12
    )


def test_parts_add_up_and_can_be_taken_out() -> None:
    x, y = images(40, 6, 2)
    whole = Moments.of(x, y, 2, per_class=True)
    first = Moments.of(x[:15], y[:15], 2, per_class=True)
    second = Moments.of(x[15:], y[15:], 2, per_class=True)
    for found, expected in ((first + second, whole), (whole - first, second)):
        for name in ("counts", "sums", "products"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12
            )
    np.testing.assert_allclose(first.times(3).matrix(), 3 * first.matrix())


def test_arrays_round_trip_and_zeros_have_their_shapes() -> None:
    x, y = images(9, 4, 3)
    for per_class in (False, True):
        moments = Moments.of(x, y, 3, per_class=per_class)
        arrays = moments.arrays("total.")
        none = Moments.zeros(3, 4, per_class=per_class).arrays("total.")
        assert {k: v.shape for k, v in arrays.items()} == {k: v.shape for k, v in none.items()}
        again = Moments.from_arrays(arrays, "total.")
        np.testing.assert_array_equal(again.products, moments.products)
        assert (again.width, again.n_classes, again.per_class) == (4, 3, per_class)


def test_triangles_hold_every_number_of_a_symmetric_matrix_once() -> None:
    matrix = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    np.testing.assert_array_equal(triangle_of(matrix), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(matrix_of(triangle_of(matrix), 3), matrix)
    assert triangle_size(3) == 6


def test_wrong_labels_and_features_are_refused() -> None:
    x, y = images(5, 2, 2)
    with pytest.raises(ValueError, match="labels"):
        Moments.of(x, y + 1, 2, per_class=False)
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(np.full((5, 2), np.nan), y, 2, per_class=False)


def test_no_patient_is_in_two_folds_and_rows_may_come_in_any_order() -> None:
    rng = np.random.default_rng(1)
    groups = [f"patient {g}" for g in rng.integers(0, 40, 120)]
    labels = rng.integers(0, 3, 120)
    folds = fold_of_images(labels, groups, folds=5, seed=3, site="a")
    by_group: dict[str, set[int]] = {}
    for group, fold in zip(groups, folds.tolist(), strict=True):
        by_group.setdefault(group, set()).add(fold)
    assert all(len(found) == 1 for found in by_group.values())
    order = rng.permutation(120)
    shuffled = fold_of_images(labels[order], [groups[i] for i in order], folds=5, seed=3, site="a")
    np.testing.assert_array_equal(shuffled, folds[order])
    assert (fold_of_images(labels, groups, folds=5, seed=4, site="a") != folds).any()


def test_folds_are_alike_in_size_and_classes() -> None:
    labels = np.array([0] * 50 + [1] * 23)
    folds = fold_of_images(labels, (), folds=5, seed=0, site="b")
    assert np.ptp(np.bincount(folds, minlength=5)) <= 1
    for label in (0, 1):
        assert np.ptp(np.bincount(folds[labels == label], minlength=5)) <= 1


def test_sites_with_few_patients_do_not_all_fill_the_same_folds() -> None:
    labels = np.array([0, 1])
    used = {
        int(fold)
        for site in range(30)
        for fold in fold_of_images(labels, (), folds=5, seed=0, site=f"site {site}")
    }
    assert used == {0, 1, 2, 3, 4}


def test_moments_of_folds_add_up_to_all() -> None:
    x, y = images(33, 3, 2)
    fold_of = fold_of_images(y, (), folds=4, seed=0)
    parts = fold_moments(x, y, fold_of, 2, folds=4, per_class=False)
    total = parts[0] + parts[1] + parts[2] + parts[3]
    np.testing.assert_allclose(
        total.products, Moments.of(x, y, 2, per_class=False).products, rtol=1e-12
    )
    assert [part.images for part in parts] == np.bincount(fold_of, minlength=4).tolist()
    with pytest.raises(ValueError, match="2 groups for 33 labels"):
        fold_of_images(y, ("a", "b"), folds=4, seed=0)
