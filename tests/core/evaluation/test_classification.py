"""The probes against scikit-learn, a slow loop and what the paper says of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from dermino_core.errors import DerminoError
from dermino_core.evaluation.classification import PROBE, classification
from dermino_core.evaluation.examples import Examples, Halves
from dermino_core.evaluation.logistic import fit_logistic
from dermino_core.evaluation.measure import Measure, Outcome
from dermino_core.heads import LinearHead

SHARED = Path(os.environ.get("DERMINO_SHARED", "../shared"))
METHODS = ("logistic regression", "linear probe")


def halves(seed: int, n_classes: int, *, n: int = 60, width: int = 20, rare: float = 1) -> Halves:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, width)) * 0.5
    shares = np.r_[np.ones(n_classes - 1), rare]

    def half() -> Examples:
        drawn = rng.choice(n_classes, n - n_classes, p=shares / shares.sum())
        labels = np.r_[np.arange(n_classes), drawn]
        features = centres[labels] + rng.normal(size=(n, width))
        return Examples(features.astype(np.float32), labels, tuple(f"p{i}" for i in range(n)))

    return Halves(half(), half(), tuple(f"class {c}" for c in range(n_classes)))


def measure(outcome: Outcome, method: str, metric: str) -> Measure:
    return next(m for m in outcome.measures if (m.method, m.metric) == (method, metric))


def test_the_probe_is_the_papers() -> None:
    assert (PROBE.epochs, PROBE.learning_rate) == (50, 5e-3)


def by_adam(images: Examples, n_classes: int, weights: np.ndarray, *, seed: int) -> LinearHead:
    """50 steps of Adam on everything at once, the rate 5e-3 annealed by a cosine; slow and plain.

    `weights` say how much each image counts.
    """
    start = LinearHead.initial(n_classes, images.features.shape[1], seed=seed)
    theta = np.c_[start.weight, start.bias].astype(np.float64)
    x = np.c_[images.features, np.ones(len(images))].astype(np.float64)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(50):
        gradient = np.zeros_like(theta)
        for row, label, weight in zip(x, images.labels, weights, strict=True):
            shares = np.exp(theta @ row)
            shares /= shares.sum()
            shares[label] -= 1
            gradient += weight / weights.sum() * np.outer(shares, row)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = 5e-3 * (1 + np.cos(np.pi * step / 50)) / 2
        corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        theta -= rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return LinearHead(theta[:, :-1], theta[:, -1])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_linear_probe_is_adam_with_cosine_annealing(n_classes: int) -> None:
    """In batches of everything, so that the order of images does not matter."""
    data = halves(0, n_classes)
    recipe = replace(PROBE, batch_size=len(data.train))
    found = classification(data, probe=recipe, replicates=10, seed=3).predictions["linear probe"]
    head = by_adam(data.train, n_classes, np.ones(len(data.train)), seed=3)
    np.testing.assert_allclose(found, head.probabilities(data.test.features), atol=1e-4)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_numbers_are_those_of_the_predictions(n_classes: int) -> None:
    data = halves(1, n_classes)
    found = classification(data, replicates=100)
    assert tuple(found.predictions) == METHODS
    truth = data.test.labels
    for method, scores in found.predictions.items():
        np.testing.assert_allclose(scores.sum(axis=1), 1)
        positive = scores[:, 1] if n_classes == 2 else scores
        auroc = measure(found, method, "auroc")
        assert auroc.value == pytest.approx(
            roc_auc_score(truth, positive, multi_class="ovr", average="macro")
        )
        assert measure(found, method, "f1").value == pytest.approx(
            f1_score(truth, scores.argmax(axis=1), average="macro")
        )
        roc = found.rocs[method]
        area = np.trapezoid(roc.true_positive_rate, roc.false_positive_rate)
        assert area == pytest.approx(auroc.value, abs=0.02)
    expected = fit_logistic(data.train, n_classes).probabilities(data.test.features)
    np.testing.assert_array_equal(found.predictions["logistic regression"], expected)


def test_the_same_seed_gives_the_same_numbers() -> None:
    data = halves(2, 2)
    one, two = (classification(data, replicates=50, seed=4) for _ in range(2))
    assert one.measures == two.measures
    other = classification(data, replicates=50, seed=5)
    probe = [run.predictions["linear probe"] for run in (one, other)]
    assert not np.array_equal(*probe)


def test_class_weights_find_more_of_the_rare_class() -> None:
    data = halves(5, 3, n=200, rare=0.1)
    plain = classification(data, replicates=10)
    weighted = classification(data, class_weights=True, replicates=10)
    rare = data.test.labels == 2
    for method in METHODS:
        recalls = [
            recall_score(data.test.labels, run.predictions[method].argmax(axis=1), average=None)[2]
            for run in (plain, weighted)
        ]
        assert recalls[1] > recalls[0]
        levels = [run.predictions[method][rare, 2].mean() for run in (plain, weighted)]
        assert levels[1] > levels[0] + 0.05
    assert any("count the same" in note for note in weighted.notes)
    assert len(weighted.notes) == len(plain.notes) + 1


def test_repeating_images_is_weighing_classes() -> None:
    """A class of a third of the other's size: each of its images three times, or with weight 3."""
    rng = np.random.default_rng(6)
    labels = np.r_[np.zeros(30, int), np.ones(10, int)]
    x = (rng.normal(size=(40, 5)) + labels[:, None]).astype(np.float32)
    images = Examples(x, labels, tuple(f"p{i}" for i in range(40)))
    found = classification(
        Halves(images, images, ("no", "yes")),
        probe=replace(PROBE, batch_size=60),
        class_weights=True,
        replicates=10,
    )
    head = by_adam(images, 2, np.where(labels == 1, 3.0, 1.0), seed=0)
    np.testing.assert_allclose(found.predictions["linear probe"], head.probabilities(x), atol=1e-4)


def test_says_what_cannot_be_learned() -> None:
    data = halves(7, 3)

    def without(side: Examples, *classes: int) -> Examples:
        return side.take(np.flatnonzero(~np.isin(side.labels, classes)))

    with pytest.raises(DerminoError, match="of 1 classes") as error:
        classification(Halves(without(data.train, 1, 2), data.test, data.classes))
    assert error.value.code == "DATA_TOO_FEW"
    with pytest.raises(DerminoError, match="'class 2' is in the test half only") as error:
        classification(Halves(without(data.train, 2), data.test, data.classes))
    assert error.value.code == "DATA_TOO_FEW"
    broken = replace(data.test, features=data.test.features * np.float32("nan"))
    with pytest.raises(DerminoError, match="NaN") as error:
        classification(Halves(data.train, broken, data.classes))
    assert error.value.code == "MODEL_INVALID"
    one = classification(Halves(data.train, without(data.test, 1, 2), data.classes), replicates=10)
    assert measure(one, "linear probe", "auroc").value is None
    assert not one.rocs


@pytest.mark.slow
def test_real_images(tmp_path: Path) -> None:
    """PH2 with DINOv2 ViT-S: an AUROC of about 0.9, as elsewhere with these features."""
    from dermino_core.evaluation.cohort import divide_cohort, labelled_halves, open_cohort
    from dermino_core.features import extract_features
    from dermino_core.manifest import read_manifest

    root, weights = SHARED / "data" / "ph2", SHARED / "weights" / "dinov2_vits14.safetensors"
    if not (root / "labels.csv").exists() or not weights.exists():
        pytest.skip(f"the real images and weights are not in {SHARED} (DERMINO_SHARED)")
    manifest = read_manifest(root / "labels.csv", root=root, columns={"label": "binary"})
    cohort = open_cohort("ph2", manifest)
    table = extract_features(cohort.paths, str(weights), cache=tmp_path, title="ph2")
    data, _, _ = labelled_halves(cohort, divide_cohort(cohort, table), table)
    found = classification(data)
    for method in METHODS:
        auroc = measure(found, method, "auroc")
        assert auroc.value is not None
        assert auroc.value > 0.8
