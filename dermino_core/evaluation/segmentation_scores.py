"""How much two masks overlap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

METRICS = ("dice", "jaccard")


def overlap_scores(predicted: Mask, truth: Mask) -> tuple[float, float]:
    """Dice and Jaccard of two masks of one shape.

    Dice is 2 |A and B| / (|A| + |B|) (Dice 1945), Jaccard |A and B| / |A or B| (Jaccard 1912).
    Where both masks are empty both are 1: "no lesion" is then the right answer.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of shapes {predicted.shape} and {truth.shape}")
    both = np.count_nonzero(predicted & truth)
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    if total == 0:
        return 1.0, 1.0
    return 2 * both / total, both / (total - both)
