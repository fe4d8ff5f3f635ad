"""What metrics are called, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricName:
    """For tables and figures.

    Attributes
    ----------
    title
        As people write it.
    lower_is_better
        As for errors.
    guessing
        The value of a coin, where that is known.
    ranked
        Whether one value is better than another at all.
    """

    title: str
    lower_is_better: bool = False
    guessing: float | None = None
    ranked: bool = True


_NAMES: Mapping[str, MetricName] = {
    "auroc": MetricName("AUROC", guessing=0.5),
    "auroc_delong": MetricName("AUROC, DeLong's interval", guessing=0.5),
    "f1": MetricName("F1 (macro)"),
    "balanced_accuracy": MetricName("Balanced accuracy"),
    "accuracy": MetricName("Accuracy"),
    "ece": MetricName("Expected calibration error", lower_is_better=True),
    "ece_corrected": MetricName("Calibration error, bias-corrected", lower_is_better=True),
    "ece_by_chance": MetricName("Calibration error of a calibrated model", ranked=False),
    "sensitivity": MetricName("Sensitivity"),
    "specificity": MetricName("Specificity"),
    "brier": MetricName("Brier score", lower_is_better=True),
    "log_loss": MetricName("Log loss", lower_is_better=True),
    "dice": MetricName("Dice"),
    "jaccard": MetricName("Jaccard"),
    **{name: MetricName(name.upper()) for name in ("bleu-1", "bleu-2", "bleu-4", "meteor")},
    "cider": MetricName("CIDEr"),
    **{name: MetricName(name.upper()) for name in ("rouge-1", "rouge-2", "rouge-l")},
    "concordance": MetricName("Concordance index", guessing=0.5),
    "log-rank p": MetricName("Log-rank p", lower_is_better=True),
    "false positive rate": MetricName("False positive rate", lower_is_better=True),
    "equalised odds difference": MetricName("Equalised odds difference", lower_is_better=True),
    "follows the model's error": MetricName("Follows the model's error", lower_is_better=True),
    "departs from the model's right answer": MetricName(
        "Departs from the model's right answer", lower_is_better=True
    ),
}


def metric_name(metric: str) -> MetricName:
    """Of any metric; an unknown one is written as it is, and higher is better."""
    return _NAMES.get(metric) or MetricName(metric.replace("_", " "))
