"""Label efficiency against a plain loop over draws, and draws against what they must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from dermino_core.errors import DerminoError
from dermino_core.evaluation.classification import classification
from dermino_core.evaluation.examples import Examples, Halves
from dermino_core.evaluation.label_efficiency import label_efficiency, stratified_share
from dermino_core.evaluation.logistic import fit_logistic
from dermino_core.evaluation.measure import Measure, Outcome


def halves(seed: int, *, n: int = 100, per_unit: int = 2) -> Halves:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2, 16)) * 0.5

    def half(name: str) -> Examples:
        labels = np.repeat(rng.permutation(np.r_[np.zeros(n // 4, int), np.ones(n // 4, int)]), 2)
        features = centres[labels] + rng.normal(size=(n, 16))
        units = tuple(f"{name}{i // per_unit:03d}" for i in range(n))
        return Examples(features.astype(np.float32), labels, units)

    return Halves(half("a"), half("b"), ("no", "yes"))


def measure(outcome: Outcome, metric: str, share: float) -> Measure:
    return next(
        m for m in outcome.measures if (m.metric, m.setting) == (metric, f"share={share:g}")
    )


def test_values_are_means_over_draws() -> None:
    data = halves(0)
    found = label_efficiency(data, shares=(0.1, 0.3), seeds=3, replicates=30, seed=8)
    scaler = StandardScaler().fit(data.train.features.astype(np.float64))
    for share in (0.1, 0.3):
        numbers = []
        for draw in range(3):
            rows = stratified_share(data.train.labels, data.train.units, share, seed=[8, draw])
            some = data.train.take(rows)
            strength = fit_logistic(some, 2, unlabelled=data.train.features, seed=8).strength
            model = LogisticRegression(C=strength, tol=1e-9, max_iter=5000)
            model.fit(scaler.transform(some.features.astype(np.float64)), some.labels)
            scores = model.predict_proba(scaler.transform(data.test.features.astype(np.float64)))
            called, truth = scores.argmax(axis=1), data.test.labels
            numbers.append(
                (
                    roc_auc_score(truth, scores[:, 1]),
                    f1_score(truth, called, average="macro"),
                    accuracy_score(truth, called),
                )
            )
        for metric, value in zip(
            ("auroc", "f1", "accuracy"), np.mean(numbers, axis=0), strict=True
        ):
            assert measure(found, metric, share).value == pytest.approx(value, abs=1e-9)


def test_all_of_the_training_half_is_the_classification() -> None:
    data = halves(1)
    found = label_efficiency(data, shares=(1.0,), replicates=200)
    whole = classification(data, replicates=200)
    for one in whole.measures:
        if one.method == "logistic regression":
            assert measure(found, one.metric, 1.0) == replace(one, setting="share=1")


def test_the_interval_holds_both_chances() -> None:
    """Wider than that of the tested images alone, and of the labelled images alone."""
    data = halves(2, n=200)
    found = label_efficiency(data, shares=(0.05,), seeds=20, replicates=4000)
    auroc = measure(found, "auroc", 0.05)
    assert auroc.replicates is not None
    assert auroc.replicates.shape == (4000,)
    draws = auroc.replicates.reshape(20, 200)
    within, between = draws.var(axis=1).mean(), draws.mean(axis=1).var()
    assert auroc.standard_error == pytest.approx(np.sqrt(within + between), rel=1e-3)
    assert auroc.low == pytest.approx(np.percentile(draws, 2.5))
    assert auroc.standard_error > 1.1 * max(np.sqrt(within), np.sqrt(between))


def test_more_labels_help() -> None:
    found = label_efficiency(halves(3, n=400), replicates=50)
    curve = [m.value for m in found.measures if m.metric == "auroc"]
    assert len(curve) == 6
    assert None not in curve
    assert curve[0] < curve[2] < curve[5]
    settings = [m.setting for m in found.measures if m.metric == "auroc"]
    assert settings == [f"share={s}" for s in ("0.01", "0.05", "0.1", "0.2", "0.5", "1")]
    assert "0.05: 20; 0.1: 40" in found.notes[0]


def test_shares_with_fewer_images_than_classes_are_named() -> None:
    data = halves(4)
    found = label_efficiency(data, shares=(0.5, 0.01, 0.014), seeds=2, replicates=20)
    assert {m.setting for m in found.measures} == {"share=0.5"}
    assert any("share 0.01, 0.014 of 100" in note for note in found.notes)
    assert not label_efficiency(data, shares=(0.01,), replicates=20).measures


def test_refuses_what_makes_no_sense() -> None:
    data = halves(5)
    for shares, seeds in (((0.0,), 1), ((1.5,), 1), ((0.5,), 0)):
        with pytest.raises(ValueError, match="shares in"):
            label_efficiency(data, shares=shares, seeds=seeds)
    ones = data.train.take(np.flatnonzero(data.train.labels == 1))
    with pytest.raises(DerminoError, match="of 1 classes"):
        label_efficiency(Halves(ones, data.test, data.classes))


@given(
    st.integers(0, 2**31),
    st.integers(3, 50),
    st.integers(2, 4),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
)
def test_a_share_has_whole_units_and_each_class_as_often(
    seed: int, n: int, n_classes: int, shares: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, size=n)
    of_unit = rng.integers(0, n_classes, size=n)
    labels, unit = np.repeat(of_unit, sizes), np.repeat(np.arange(n), sizes)
    units = [f"u{i}" for i in unit]
    small, large = (stratified_share(labels, units, share, seed=[seed]) for share in sorted(shares))
    assert set(small) <= set(large)
    for rows, share in ((small, min(shares)), (large, max(shares))):
        assert (np.diff(rows) > 0).all()
        chosen = np.unique(unit[rows])
        assert len(rows) == sizes[chosen].sum()
        for label in np.unique(labels):
            taken, wanted = (labels[rows] == label).sum(), share * (labels == label).sum()
            assert taken >= 1
            assert abs(taken - wanted) <= max(sizes[of_unit == label])
    np.testing.assert_array_equal(
        stratified_share(labels, units, 1.0, seed=[seed]), np.arange(len(labels))
    )


def test_a_class_that_is_only_beside_others_is_there() -> None:
    labels = np.array([0, 0, 1, 0, 0, 0, 0, 0, 2])
    units = ["a", "a", "a", "b", "c", "d", "e", "f", "g"]
    for seed in range(20):
        rows = stratified_share(labels, units, 0.1, seed=[seed])
        assert set(labels[rows]) == {0, 1, 2}
        assert len({0, 1, 2} & set(rows.tolist())) == 3


def test_draws_differ_and_repeat() -> None:
    data = halves(6).train
    one, same, other = (
        stratified_share(data.labels, data.units, 0.2, seed=seed) for seed in ([1], [1], [2])
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
