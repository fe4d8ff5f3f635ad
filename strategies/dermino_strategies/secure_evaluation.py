"""The final evaluation as a sum, so that no hospital's own numbers leave it in the clear.

Under secure aggregation a site does not send its :class:`EvaluateReply` but these arrays, masked.
Their sum over the sites is enough for the mean over sites and its interval, because the interval
of `dermino_core.metrics.mean_over_sites` needs only the sum of the squared standard errors.

For each model and each metric (AUROC, F1, balanced accuracy): is it defined, its value, its squared
standard error, and whether it has one. Beside them the numbers of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dermino_core.results import Difference, Estimate, Evaluation, ModelSummary
from dermino_strategies.base import Arrays
from dermino_strategies.protocol import EvaluateReply

LARGEST_SITE = 2.0**24
_METRICS = 3
_NUMBERS = ("images_total", "images_used", "unreadable", "n_train", "n_test")


@dataclass(frozen=True)
class EvaluationSums:
    """What the coordinator learns of the sites together."""

    numbers: dict[str, int]
    train_class_counts: dict[str, int]
    mean: dict[str, ModelSummary]
    mean_global_minus: dict[str, Difference]


def evaluation_like(models: Sequence[str], n_classes: int) -> Arrays:
    """Names and shapes of the summand, float64 zeros."""
    rows = (_METRICS, 4)
    like = {f"evaluation.{model}": np.zeros(rows) for model in models}
    like |= {f"difference.{model}": np.zeros(rows) for model in models if model != "global"}
    return like | {"numbers": np.zeros(len(_NUMBERS)), "classes": np.zeros(n_classes)}


def evaluation_limits(models: Sequence[str], n_classes: int) -> dict[str, float]:
    """Array name -> largest absolute value of one site."""
    return {
        name: LARGEST_SITE if name in ("numbers", "classes") else 1.0
        for name in evaluation_like(models, n_classes)
    }


def evaluation_summand(reply: EvaluateReply, models: Sequence[str]) -> Arrays:
    """One site's evaluation as a summand."""
    arrays: Arrays = {
        "numbers": np.array([float(getattr(reply, name)) for name in _NUMBERS]),
        "classes": np.array([float(reply.train_class_counts[c]) for c in reply.classes]),
    }
    for model in models:
        arrays[f"evaluation.{model}"] = _rows(reply.evaluations[model])
        if model != "global":
            arrays[f"difference.{model}"] = _rows(reply.global_minus[model])
    return arrays


def _rows(scored: Evaluation | Difference) -> np.ndarray:
    return np.array([_row(e) for e in (scored.auroc, scored.f1, scored.balanced_accuracy)])


def _row(estimate: Estimate | None) -> list[float]:
    if estimate is None or estimate.value is None:
        return [0.0, 0.0, 0.0, 0.0]
    if estimate.standard_error is None:
        return [1.0, estimate.value, 0.0, 0.0]
    return [1.0, estimate.value, estimate.standard_error**2, 1.0]


def read_sums(
    total: Mapping[str, np.ndarray], *, sites: int, models: Sequence[str], classes: Sequence[str]
) -> EvaluationSums:
    """The means over `sites` sites from the sum of their summands.

    Equal to `dermino_core.metrics.mean_over_sites` of the sites' own numbers.
    """
    numbers = np.rint(total["numbers"]).astype(int)
    counts = np.rint(total["classes"]).astype(int)

    def mean(name: str, lowest: float) -> list[Estimate]:
        return [_mean(row, sites, lowest) for row in total[name]]

    summaries, differences = {}, {}
    for model in models:
        auroc, f1, balanced = mean(f"evaluation.{model}", 0.0)
        summaries[model] = ModelSummary(auroc=auroc, f1=f1, balanced_accuracy=balanced)
        if model != "global":
            auroc, f1, balanced = mean(f"difference.{model}", -1.0)
            differences[model] = Difference(auroc=auroc, f1=f1, balanced_accuracy=balanced)
    return EvaluationSums(
        numbers=dict(zip(_NUMBERS, map(int, numbers), strict=True)),
        train_class_counts=dict(zip(classes, map(int, counts), strict=True)),
        mean=summaries,
        mean_global_minus=differences,
    )


def _mean(row: np.ndarray, sites: int, lowest: float) -> Estimate:
    defined, value, square, with_error = row
    if round(defined) < sites:
        return Estimate(value=None, undefined_because="undefined at a site")
    mean = min(max(float(value) / sites, lowest), 1.0)
    if round(with_error) < sites:
        return Estimate(value=mean)
    error = float(np.sqrt(max(square, 0.0))) / sites
    return Estimate(
        value=mean,
        low=max(mean - 1.96 * error, lowest),
        high=min(mean + 1.96 * error, 1.0),
        standard_error=error,
    )
