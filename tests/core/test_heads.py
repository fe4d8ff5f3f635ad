"""The head's training against a slow plain-numpy Adam, and its optimum against a second solver."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dermino_core.errors import DerminoError
from dermino_core.heads import HeadRecipe, LinearHead, fit_converged, fit_head


def data(n: int = 70, width: int = 5, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, width)).astype(np.float32)
    y = (x @ rng.normal(size=(width, n_classes))).argmax(axis=1)
    return x, y


def numpy_adam(
    head: LinearHead, x: np.ndarray, y: np.ndarray, recipe: HeadRecipe, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Adam (Kingma & Ba 2015, Algorithm 1) and the cosine by hand, in float64."""
    rng = np.random.default_rng(list(seed))
    parameters = [head.weight.astype(np.float64), head.bias.astype(np.float64)]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    steps = recipe.epochs * int(np.ceil(len(y) / recipe.batch_size))
    t = 0
    for _ in range(recipe.epochs):
        order = rng.permutation(len(y))
        for start in range(0, len(y), recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            logits = x[rows].astype(np.float64) @ parameters[0].T + parameters[1]
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            delta = (shares - np.eye(shares.shape[1])[y[rows]]) / len(rows)
            rate = recipe.learning_rate * 0.5 * (1 + np.cos(np.pi * t / steps))
            t += 1
            for k, gradient in enumerate((delta.T @ x[rows], delta.sum(axis=0))):
                first[k] = 0.9 * first[k] + 0.1 * gradient
                second[k] = 0.999 * second[k] + 0.001 * gradient**2
                step = (first[k] / (1 - 0.9**t)) / (np.sqrt(second[k] / (1 - 0.999**t)) + 1e-8)
                parameters[k] = parameters[k] - rate * step
    return parameters[0], parameters[1]


def test_training_equals_adam_and_cosine_by_hand() -> None:
    x, y = data()
    start = LinearHead.initial(3, 5, seed=1)
    recipe = HeadRecipe(epochs=3, learning_rate=0.05, batch_size=16)
    fitted, loss = fit_head(start, x, y, recipe, seed=(1, 2, 3))
    weight, bias = numpy_adam(start, x, y, recipe, (1, 2, 3))
    np.testing.assert_allclose(fitted.weight, weight, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(fitted.bias, bias, rtol=2e-5, atol=2e-6)
    assert 0 < loss < np.log(3)


def test_torch_gives_the_same_head() -> None:
    x, y = data()
    start = LinearHead.initial(3, 5, seed=1)
    recipe = HeadRecipe(epochs=3, learning_rate=0.05, batch_size=16)
    here, loss = fit_head(start, x, y, recipe, seed=(4,))
    there, torch_loss = fit_head(start, x, y, recipe, seed=(4,), device="cpu:0")
    np.testing.assert_allclose(here.weight, there.weight, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(here.bias, there.bias, rtol=2e-5, atol=2e-6)
    assert loss == pytest.approx(torch_loss, rel=1e-5)


def test_cpu_training_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np; from dermino_core.heads import *;"
        "fit_head(LinearHead.initial(2, 3, seed=0), np.eye(3, dtype='f4'), np.array([0, 1, 1]),"
        "HeadRecipe(), seed=(0,)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_defaults_are_the_papers() -> None:
    assert (HeadRecipe().epochs, HeadRecipe().learning_rate) == (2, 2e-4)


def test_training_is_deterministic_and_leaves_the_start_alone() -> None:
    x, y = data()
    start = LinearHead.initial(3, 5, seed=1)
    before = start.weight.copy()
    first, _ = fit_head(start, x, y, HeadRecipe(), seed=(0,))
    second, _ = fit_head(start, x, y, HeadRecipe(), seed=(0,))
    other, _ = fit_head(start, x, y, HeadRecipe(), seed=(1,))
    np.testing.assert_array_equal(first.weight, second.weight)
    assert (first.weight != other.weight).any()
    np.testing.assert_array_equal(start.weight, before)


def test_initial_head_is_bounded_like_torch_linear() -> None:
    head = LinearHead.initial(2, 400, seed=0)
    assert np.abs(head.weight).max() <= 1 / 20
    assert head.weight.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.1)
    assert not LinearHead.initial(2, 4, how="zeros", seed=0).weight.any()


@pytest.mark.parametrize(
    "arrays",
    [
        {"weight": np.zeros((2, 3), np.float32)},
        {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
        {"weight": np.zeros((2, 3), np.float64), "bias": np.zeros(2, np.float32)},
        {"weight": np.full((2, 3), np.nan, np.float32), "bias": np.zeros(2, np.float32)},
        {"weight": np.zeros((2, 3), np.float32), "bias": np.array([np.inf, 0], np.float32)},
    ],
)
def test_wrong_arrays_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"weight and bias|shapes|float32|NaN"):
        LinearHead.from_arrays(arrays)


def test_no_images_is_an_error() -> None:
    with pytest.raises(DerminoError, match="no images"):
        fit_head(
            LinearHead.initial(2, 3, seed=0),
            np.zeros((0, 3), np.float32),
            np.zeros(0, int),
            HeadRecipe(),
            seed=(0,),
        )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_converged_head_has_zero_gradient(n_classes: int) -> None:
    """At the optimum the gradient of loss plus penalty vanishes, whatever solver found it."""
    x, y = data(n_classes=n_classes)
    penalty = 0.1
    head = fit_converged(x, y, n_classes, penalty=penalty)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    standardised = (x - mean) / scale
    weight = head.weight * scale
    residual = head.probabilities(x) - np.eye(n_classes)[y]
    gradient = residual.T @ standardised / len(y)
    if n_classes == 2:
        # One weight vector w = W1 - W0 is penalised, not both rows.
        gradient = gradient[1] + penalty * (weight[1] - weight[0])
    else:
        gradient = gradient + penalty * weight
    assert np.abs(gradient).max() < 2e-3
    assert np.abs(residual.mean(axis=0)).max() < 2e-3


def test_converged_head_with_one_class_predicts_it() -> None:
    x, _ = data()
    head = fit_converged(x, np.full(len(x), 1), 3, penalty=0.1)
    assert (head.probabilities(x).argmax(axis=1) == 1).all()


def test_probabilities_survive_extreme_logits() -> None:
    head = LinearHead(np.array([[1e4], [-1e4]], np.float32), np.zeros(2, np.float32))
    result = head.probabilities(np.array([[1.0], [-1.0]], np.float32))
    np.testing.assert_allclose(result, [[1, 0], [0, 1]])
