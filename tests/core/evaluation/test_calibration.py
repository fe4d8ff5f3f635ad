"""Brier score, log loss and calibration error against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from dermino_core.evaluation.calibration import METRICS, calibration_measures
from dermino_core.evaluation.measure import Measure
from dermino_core.metrics import bootstrap_weights, calibration


def forecasts(seed: int, n: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    odds = rng.normal(size=(n, n_classes))
    probabilities = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    return rng.integers(0, n_classes, n), probabilities


def named(labels: np.ndarray, probabilities: np.ndarray, **options) -> dict[str, Measure]:
    options = {"units": [str(i) for i in range(len(labels))], "replicates": 60, **options}
    units = options.pop("units")
    measures, _ = calibration_measures(labels, probabilities, units, method="m", **options)
    assert tuple(m.metric for m in measures) == METRICS
    return {m.metric: m for m in measures}


def error_by_loop(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Guo et al. (2017), equation 3, one image at a time; binary by the last class."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for label, row in zip(labels, probabilities, strict=True):
        if len(row) == 2:
            confidence, outcome = row[1], float(label == 1)
        else:
            confidence, outcome = max(row), float(np.argmax(row) == label)
        bins.setdefault(min(int(confidence * 10), 9), []).append((confidence, outcome))
    gaps = [abs(np.mean(members, axis=0) @ [1, -1]) * len(members) for members in bins.values()]
    return sum(gaps) / len(labels)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_values_equal_scikit_learn_and_a_loop(n_classes: int) -> None:
    for seed in range(5):
        labels, probabilities = forecasts(seed, 90, n_classes)
        found = named(labels, probabilities)
        truth = np.eye(n_classes)[labels]
        brier = ((probabilities - truth) ** 2).sum(axis=1).mean()
        if n_classes == 2:
            brier = brier_score_loss(labels, probabilities[:, 1])
        classes = range(n_classes)
        assert found["brier"].value == pytest.approx(brier)
        assert found["log_loss"].value == pytest.approx(
            log_loss(labels, probabilities, labels=list(classes))
        )
        assert found["ece"].value == pytest.approx(error_by_loop(labels, probabilities))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([2, 4]))
def test_the_error_is_that_of_the_curve(seed: int, n: int, n_classes: int) -> None:
    """Forecasts on the edges of bins included."""
    labels, probabilities = forecasts(seed, n, n_classes)
    probabilities[:, 1] = probabilities[:, 1].round(1)
    probabilities[:, 0] = 1 - probabilities[:, 1:].sum(axis=1)
    probabilities = np.abs(probabilities) / np.abs(probabilities).sum(axis=1, keepdims=True)
    units = [str(i) for i in range(n)]
    measures, curve = calibration_measures(labels, probabilities, units, method="m", replicates=3)
    assert curve == calibration(labels, probabilities)
    assert measures[2].value == pytest.approx(curve.expected_calibration_error, abs=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_replicates_equal_measuring_the_images_that_were_drawn(n_classes: int) -> None:
    labels, probabilities = forecasts(1, 45, n_classes)
    units = [f"patient {i // 2}" for i in range(45)]
    rows = np.arange(45) % 4 != 0
    found = named(labels, probabilities, units=units, rows=rows, replicates=25, seed=9)
    weights = bootstrap_weights(45, groups=units, replicates=25, seed=9)
    whole = error_by_loop(labels[rows], probabilities[rows])
    reflected = []
    for b, weight in enumerate(weights * rows):
        drawn = np.repeat(np.arange(45), weight)
        truth, said = labels[drawn], probabilities[drawn]
        squared = ((said - np.eye(n_classes)[truth]) ** 2).sum(axis=1).mean()
        expected = [
            squared / 2 if n_classes == 2 else squared,
            -np.log(said[np.arange(len(drawn)), truth]).mean(),
            max(0, 2 * whole - error_by_loop(truth, said)),
        ]
        reflected.append(2 * whole - error_by_loop(truth, said))
        got = [found[m].replicates[b] for m in ("brier", "log_loss", "ece_corrected")]  # type: ignore[index]
        assert got == pytest.approx(expected, abs=1e-12)
    assert found["ece_corrected"].value == pytest.approx(max(0, np.mean(reflected)))
    assert found["ece"].value == pytest.approx(whole)
    assert (found["ece"].low, found["ece"].n) == (None, int(rows.sum()))


def test_chance_is_what_simulated_outcomes_show() -> None:
    """Against a loop with other random numbers: mean and range within their simulation error."""
    labels, probabilities = forecasts(2, 80, 2)
    found = named(labels, probabilities, replicates=4000)["ece_by_chance"]
    rng = np.random.default_rng(77)
    simulated = [
        error_by_loop((rng.random(80) < probabilities[:, 1]).astype(int), probabilities)
        for _ in range(1500)
    ]
    spread = np.std(simulated)
    assert found.value == pytest.approx(np.mean(simulated), abs=5 * spread / np.sqrt(1500))
    low, high = np.percentile(simulated, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.4 * spread)


def test_a_calibrated_model_is_within_chance_and_a_sure_one_is_not() -> None:
    rng = np.random.default_rng(3)
    odds = 2 * rng.normal(size=500)
    right = 1 / (1 + np.exp(-odds))
    labels = (rng.random(500) < right).astype(int)
    calibrated = named(labels, np.c_[1 - right, right])
    assert calibrated["ece_by_chance"].low < calibrated["ece"].value  # type: ignore[operator]
    assert calibrated["ece"].value < calibrated["ece_by_chance"].high  # type: ignore[operator]
    sure = 1 / (1 + np.exp(-4 * odds))
    overconfident = named(labels, np.c_[1 - sure, sure])
    assert overconfident["ece"].value > overconfident["ece_by_chance"].high  # type: ignore[operator]
    assert overconfident["brier"].value > calibrated["brier"].value  # type: ignore[operator]


def test_forecasts_of_certainty() -> None:
    labels = np.array([0, 1, 1, 0])
    right = named(labels, np.eye(2)[labels])
    assert [right[m].value for m in METRICS] == pytest.approx([0, 0, 0, 0, 0])
    wrong = named(labels, np.eye(2)[1 - labels])
    largest = -np.log(np.finfo(np.float32).eps)
    assert [wrong[m].value for m in METRICS] == pytest.approx([1, largest, 1, 1, 0])


def test_a_single_image_and_one_class_are_defined() -> None:
    single = named(np.array([1]), np.array([[0.25, 0.75]]))
    assert single["brier"].value == 0.0625
    assert (single["brier"].low, single["brier"].high) == (0.0625, 0.0625)
    assert single["ece"].value == 0.25
    one_class = named(np.zeros(6, dtype=int), np.full((6, 2), 0.5))
    assert one_class["ece"].value == 0.5


def test_without_images_or_with_broken_numbers_everything_is_undefined() -> None:
    labels, probabilities = forecasts(0, 6, 2)
    units = list("abcdef")
    rows = np.zeros(6, dtype=bool)
    broken = probabilities.copy()
    broken[2] = np.nan
    for said, part, why in ((probabilities, rows, "no test images"), (broken, None, "finite")):
        measures, curve = calibration_measures(labels, said, units, method="m", rows=part)
        assert {m.value for m in measures} == {None}
        assert all(why in str(m.undefined_because) for m in measures)
        assert curve.expected_calibration_error is None
        assert len(curve.edges) == len(curve.count) + 1 == 11


@pytest.mark.parametrize("bad", [[0.7, 0.7], [1.5, -0.5]])
def test_what_is_no_probability_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        named(np.array([0, 1]), np.array([[0.5, 0.5], bad]))
    with pytest.raises(ValueError, match="2 labels, 1 units"):
        named(np.array([0, 1]), np.full((2, 2), 0.5), units=["a"])
