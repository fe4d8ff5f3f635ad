"""Which differences between backbones are beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from dermino_core.evaluation.delong import delong_test
from dermino_core.evaluation.examples import Integers
from dermino_core.evaluation.measure import EVERYONE, Measure, Outcome
from dermino_core.evaluation.multiplicity import holm, replicates_needed
from dermino_core.evaluation.paper_statistics import paper_t_test
from dermino_core.evaluation.results import Comparison
from dermino_core.evaluation.statistics import paired_difference

COMPARED = ("auroc", "f1", "dice", "jaccard", "concordance", "meteor", "cider")
"""Metrics that backbones are compared by: the paper's, one question each."""

LEVEL = 0.05


@dataclass(frozen=True)
class Found:
    """One task's outcome for one backbone on one data set.

    `test_labels` and `test_units` belong to the rows of its predictions; None where a task has no
    class scores. `classes` is how many its curves are about.
    """

    dataset: str
    task: str
    backbone: str
    outcome: Outcome
    test_labels: Integers | None = None
    test_units: tuple[str, ...] | None = None
    classes: int = 0


def compare(
    found: Sequence[Found], statistics: Literal["percentile", "paper"] = "percentile"
) -> list[Comparison]:
    """Every pair of backbones, on every data set, by every metric of :data:`COMPARED`.

    p-values are adjusted (Holm) over all data sets and pairs of one task, method, metric and test:
    that is the question "which backbone is better at this". For binary AUROC there is also DeLong's
    test, which asks the same without resampling.
    """
    by_place: dict[tuple[str, str], list[Found]] = {}
    for one in found:
        by_place.setdefault((one.dataset, one.task), []).append(one)
    rows: list[Comparison] = []
    for (dataset, task), several in by_place.items():
        for first, second in combinations(several, 2):
            about = {
                "dataset": dataset,
                "task": task,
                "first": first.backbone,
                "second": second.backbone,
            }
            theirs = _headlines(second.outcome)
            for key, measure in _headlines(first.outcome).items():
                if key in theirs:
                    rows += _bootstrap(about, measure, theirs[key], statistics)
            if statistics == "percentile":
                rows += _delong(about, first, second)
    return _adjusted(rows)


def _headlines(outcome: Outcome) -> Mapping[tuple[str, str], Measure]:
    return {
        (m.method, m.metric): m
        for m in outcome.measures
        if m.metric in COMPARED and m.group == EVERYONE and not m.setting
    }


def _bootstrap(
    about: Mapping[str, str], first: Measure, second: Measure, statistics: str
) -> list[Comparison]:
    found = paired_difference(first, second)
    if first.replicates is None or second.replicates is None or first.n != second.n:
        return []
    test, p_value = "paired bootstrap", found.p_value
    if statistics == "paper":
        test, p_value = "t-test on replicates", paper_t_test(first.replicates, second.replicates)
    place = (first.method, first.metric)
    return _row(about, place, test, found.difference, found.low, found.high, p_value)


def _delong(about: Mapping[str, str], first: Found, second: Found) -> list[Comparison]:
    if first.test_labels is None or first.test_units is None or second.test_labels is None:
        return []
    rows = []
    for method, scores in first.outcome.predictions.items():
        others = second.outcome.predictions.get(method)
        if others is None or others.shape != scores.shape or scores.shape[1] != 2:
            continue
        if len(np.unique(first.test_labels)) < 2:
            continue
        found = delong_test(first.test_labels, scores[:, -1], others[:, -1], units=first.test_units)
        place = (method, "auroc")
        rows += _row(about, place, "DeLong", found.difference, found.low, found.high, found.p_value)
    return rows


def _row(
    about: Mapping[str, str],
    place: tuple[str, str],
    test: str,
    difference: float,
    low: float,
    high: float,
    p_value: float,
) -> list[Comparison]:
    """A comparison that is not adjusted yet; nothing where a number is not finite."""
    if not np.isfinite([difference, low, high, p_value]).all():
        return []
    method, metric = place
    return [
        Comparison(
            **about,
            method=method,
            metric=metric,
            difference=difference,
            low=low,
            high=high,
            test=test,
            p_value=p_value,
            p_adjusted=p_value,
            beyond_chance=False,
        )
    ]


def _family(row: Comparison) -> tuple[str, str, str, str]:
    return row.test, row.task, row.method, row.metric


def _adjusted(rows: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's p-values over each family."""
    places: dict[tuple[str, str, str, str], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(_family(row), []).append(place)
    adjusted = np.ones(len(rows))
    for those in places.values():
        adjusted[those] = holm(np.array([rows[place].p_value for place in those]))
    return [
        row.model_copy(update={"p_adjusted": float(p), "beyond_chance": bool(p < LEVEL)})
        for row, p in zip(rows, adjusted, strict=True)
    ]


def too_few_replicates(rows: Sequence[Comparison], replicates: int) -> int | None:
    """How many replicates the largest family needs, if `replicates` cannot reach its level.

    A bootstrap p-value is at least 2 / (B + 1), and Holm's first step multiplies it by the number
    of comparisons.
    """
    sizes: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        if row.test == "paired bootstrap":
            sizes[_family(row)] = sizes.get(_family(row), 0) + 1
    needed = replicates_needed(max(sizes.values(), default=0), level=LEVEL)
    return needed if needed > replicates else None
