"""Dice and Jaccard against a loop over pixels and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from dermino_core.evaluation.segmentation_scores import overlap_scores


def by_loop(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    both = either = first = second = 0
    for p, t in zip(predicted.ravel(), truth.ravel(), strict=True):
        both += bool(p and t)
        either += bool(p or t)
        first += bool(p)
        second += bool(t)
    return (2 * both / (first + second), both / either) if either else (1.0, 1.0)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_dice_and_jaccard_are_counted_right(share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.random((17, 23)) < share, rng.random((17, 23)) < 0.3
    dice, jaccard = overlap_scores(predicted, truth)
    assert (dice, jaccard) == pytest.approx(by_loop(predicted, truth), abs=1e-12)
    assert dice == pytest.approx(f1_score(truth.ravel(), predicted.ravel()), abs=1e-12)
    assert jaccard == pytest.approx(jaccard_score(truth.ravel(), predicted.ravel()), abs=1e-12)
    assert dice == pytest.approx(2 * jaccard / (1 + jaccard))


def test_empty_masks() -> None:
    """No lesion, and none found: right. No lesion, and one pixel found: wrong."""
    nothing, something = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert overlap_scores(nothing, nothing) == (1.0, 1.0)
    assert overlap_scores(something, nothing) == (0.0, 0.0)
    assert overlap_scores(nothing, something) == (0.0, 0.0)


def test_masks_of_other_shapes_are_refused() -> None:
    """Even where numpy would broadcast them."""
    with pytest.raises(ValueError, match="shapes"):
        overlap_scores(np.ones((4, 4), bool), np.ones((1, 4), bool))
