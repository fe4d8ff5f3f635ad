"""Means over sites from a sum: equal to the means of the sites' own numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.metrics import mean_over_sites
from dermino_core.results import Difference, Estimate, Evaluation
from dermino_strategies.protocol import EvaluateReply
from dermino_strategies.secure_evaluation import (
    evaluation_like,
    evaluation_limits,
    evaluation_summand,
    read_sums,
)

MODELS = ("global", "local")
CLASSES = ["benign", "malignant"]


def estimate(value: float | None, error: float | None = None) -> Estimate:
    if value is None:
        return Estimate(value=None, undefined_because="one class")
    return Estimate(value=value, standard_error=error)


def change_of(given: Estimate) -> Estimate:
    """Another number, so that one metric cannot stand for another."""
    return given if given.value is None else given.model_copy(update={"value": given.value / 2})


def reply(auroc: Estimate, f1: Estimate, change: Estimate, *, images: int) -> EvaluateReply:
    counts = dict(zip(CLASSES, (images, 2 * images), strict=True))
    evaluation = Evaluation(
        n=images, class_counts=counts, auroc=auroc, f1=f1, balanced_accuracy=change_of(auroc)
    )
    return EvaluateReply(
        classes=CLASSES,
        precision="fp32",
        images_total=5 * images,
        images_used=4 * images,
        seconds=1.0,
        unreadable=1,
        n_train=3 * images,
        n_test=images,
        train_class_counts=counts,
        evaluations=dict.fromkeys(MODELS, evaluation),
        global_minus={
            "local": Difference(auroc=change, f1=change, balanced_accuracy=change_of(change))
        },
        cross={},
    )


def summed(replies: list[EvaluateReply]) -> dict[str, np.ndarray]:
    summands = [evaluation_summand(one, MODELS) for one in replies]
    return {name: np.sum([s[name] for s in summands], axis=0) for name in summands[0]}


shares = st.floats(0, 1)
errors = st.none() | st.floats(0, 0.5)
sites = st.lists(
    st.tuples(st.none() | shares, errors, st.none() | st.floats(-1, 1), st.integers(1, 10**6)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200)
@given(sites=sites)
def test_equals_the_means_of_the_sites_own_numbers(
    sites: list[tuple[float | None, float | None, float | None, int]],
) -> None:
    replies = [
        reply(estimate(a, e), estimate(0.5, e), estimate(d, e), images=n) for a, e, d, n in sites
    ]
    found = read_sums(summed(replies), sites=len(sites), models=MODELS, classes=CLASSES)
    for model in MODELS:
        same(
            found.mean[model].auroc, mean_over_sites([r.evaluations[model].auroc for r in replies])
        )
        same(found.mean[model].f1, mean_over_sites([r.evaluations[model].f1 for r in replies]))
        balanced = [r.evaluations[model].balanced_accuracy for r in replies]
        same(found.mean[model].balanced_accuracy, mean_over_sites([e for e in balanced if e]))
    changes = [r.global_minus["local"].auroc for r in replies]
    same(found.mean_global_minus["local"].auroc, mean_over_sites(changes, lowest=-1))
    halves = [r.global_minus["local"].balanced_accuracy for r in replies]
    expected = mean_over_sites([d for d in halves if d], lowest=-1)
    same(found.mean_global_minus["local"].balanced_accuracy, expected)
    assert found.numbers["n_train"] == sum(r.n_train for r in replies)
    assert found.numbers["unreadable"] == len(replies)
    assert found.train_class_counts["malignant"] == sum(2 * n for *_, n in sites)


def same(found: Estimate | None, expected: Estimate) -> None:
    assert found is not None
    assert (found.value is None) == (expected.value is None)
    for name in ("value", "low", "high", "standard_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-9), name


def test_a_summand_has_the_names_shapes_and_limits_that_were_announced() -> None:
    big = reply(estimate(1.0, 0.5), estimate(1.0, 0.5), estimate(-1.0, 0.5), images=2**21)
    summand = evaluation_summand(big, MODELS)
    like, limits = evaluation_like(MODELS, 2), evaluation_limits(MODELS, 2)
    assert {n: a.shape for n, a in summand.items()} == {n: a.shape for n, a in like.items()}
    assert limits.keys() == like.keys()
    assert all(np.abs(summand[name]).max() <= limits[name] for name in like)


def test_rounding_of_fixed_point_does_not_leave_the_unit_interval() -> None:
    total = summed([reply(estimate(1.0, 0.0), estimate(0.0, 0.0), estimate(-1.0), images=1)] * 2)
    total["evaluation.global"] = total["evaluation.global"] + [[0, 1e-7, -1e-7, 0]]
    total["difference.local"] = total["difference.local"] - [[0, 1e-7, 0, 0]]
    found = read_sums(total, sites=2, models=MODELS, classes=CLASSES)
    assert found.mean["global"].auroc.value == 1.0
    assert found.mean["global"].f1.standard_error == 0.0
    assert found.mean_global_minus["local"].auroc.value == -1.0
