"""Retrieval against scikit-learn's neighbours and metrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from dermino_core.errors import DerminoError
from dermino_core.evaluation.examples import Examples, Halves
from dermino_core.evaluation.measure import Outcome
from dermino_core.evaluation.retrieval import majority, retrieval


def half(rng: np.random.Generator, n: int, centres: np.ndarray) -> Examples:
    labels = np.r_[np.arange(len(centres)), rng.integers(0, len(centres), n - len(centres))]
    features = centres[labels] + rng.normal(size=(n, centres.shape[1]))
    return Examples(features.astype(np.float32), labels, tuple(f"p{i // 2}" for i in range(n)))


def halves(seed: int, n_classes: int) -> Halves:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, 12)) * 0.7
    names = tuple(f"class {c}" for c in range(n_classes))
    return Halves(half(rng, 80, centres), half(rng, 60, centres), names)


def values(outcome: Outcome, method: str) -> dict[str, float | None]:
    return {m.metric: m.value for m in outcome.measures if m.method == method}


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("k", [1, 5, 80])
def test_both_methods_are_scikit_learns(n_classes: int, k: int) -> None:
    data = halves(k, n_classes)
    found = retrieval(data, k=k, replicates=50)
    weighting = {"votes": "uniform", "softmax": lambda d: np.exp((1 - d) / 0.07)}
    for method, weights in weighting.items():
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
        reference.fit(data.train.features.astype(np.float64), data.train.labels)
        shares = reference.predict_proba(data.test.features.astype(np.float64))
        np.testing.assert_allclose(found.predictions[method], shares, atol=1e-9)
        scores = shares[:, 1] if n_classes == 2 else shares
        assert values(found, method)["auroc"] == pytest.approx(
            roc_auc_score(data.test.labels, scores, multi_class="ovr", average="macro")
        )
    predicted = found.predictions["softmax"].argmax(axis=1)
    numbers = values(found, "softmax")
    truth = data.test.labels
    assert numbers["f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert numbers["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert numbers["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 4))
def test_ties_of_votes_go_to_the_nearer_then_to_the_first_class(
    seed: int, k: int, n_classes: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, size=(12, k))
    similarities = rng.integers(-2, 3, size=(12, k)) / 2
    votes = np.stack([np.bincount(row, minlength=n_classes) for row in labels])
    expected = []
    for row in range(12):
        sums = [similarities[row][labels[row] == c].sum() for c in range(n_classes)]
        expected.append(max(range(n_classes), key=lambda c: (votes[row, c], sums[c], -c)))
    assert majority(votes, similarities, labels).tolist() == expected


def test_the_label_of_votes_is_the_tie_rules() -> None:
    """Two votes each: the first class loses because its images are further away."""
    angles = np.deg2rad([30.0, 40.0, 20.0, 10.0])
    train = Examples(
        np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
        np.array([0, 0, 1, 1]),
        tuple("abcd"),
    )
    test = Examples(np.array([[1, 0], [0, 1]], np.float32), np.array([1, 0]), ("x", "y"))
    found = retrieval(Halves(train, test, ("no", "yes")), k=4, replicates=10)
    np.testing.assert_array_equal(found.predictions["votes"], 0.5)
    assert values(found, "votes")["accuracy"] == 1.0
    assert values(found, "votes")["auroc"] == 0.5


def test_intervals_are_of_whole_units() -> None:
    """With every image twice, the interval is that of the images once."""
    data = halves(3, 2)
    n = len(data.test)
    units = tuple(f"p{i:03d}" for i in range(n))
    test = Examples(data.test.features, data.test.labels, units)
    once = Halves(data.train, test, data.classes)
    twice = Halves(data.train, test.take(np.repeat(np.arange(n), 2)), data.classes)
    for one, two in zip(retrieval(once).measures, retrieval(twice).measures, strict=True):
        assert (one.low, one.high) == pytest.approx((two.low, two.high))
        assert two.n == 2 * one.n


def test_says_what_it_cannot_do() -> None:
    data = halves(4, 2)
    with pytest.raises(DerminoError, match="81 neighbours were asked for among 80") as error:
        retrieval(data, k=81)
    assert error.value.code == "DATA_TOO_FEW"
    only = Halves(data.train, data.test.take(np.flatnonzero(data.test.labels == 0)), data.classes)
    numbers = {m.metric: m for m in retrieval(only, replicates=10).measures}
    assert numbers["auroc"].value is None
    assert numbers["auroc"].undefined_because
    assert numbers["accuracy"].value is not None
