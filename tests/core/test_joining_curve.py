"""The curve a hospital draws for itself."""

from __future__ import annotations

import numpy as np
import pytest

from dermino_core.evaluation.label_efficiency import stratified_share
from dermino_core.heads import fit_converged
from dermino_core.joining_curve import Half, JoiningCurve, JoiningPoint, joining_curve, sentence
from dermino_core.metrics import bootstrap_weights, macro_auroc, paired_difference
from dermino_core.moments import Moments
from dermino_core.personal import personal_model
from dermino_core.results import Estimate
from dermino_core.ridge import ScoreMoments, calibrate, solve

WIDTH = 8
PENALTY = 0.3
HELD_OUT = ScoreMoments(np.array([60.0, 60.0]), np.array([[0.6, 0.4], [0.4, 0.6]]), 0.2)


def half(n: int, seed: int, *, classes: int = 2, patients: bool = True) -> Half:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centres = np.random.default_rng(5).normal(size=(classes, WIDTH))
    x = (rng.normal(size=(n, WIDTH)) + 0.4 * centres[y]).astype(np.float32)
    return Half(x, y, tuple(f"p{seed}-{i // 2}" for i in range(n)) if patients else ())


def moments(part: Half, classes: int = 2) -> Moments:
    return Moments.of(part.features, part.labels, classes, per_class=False)


def curve(
    train: Half,
    test: Half,
    others: Half,
    *,
    classes: int = 2,
    replicates: int = 200,
    **more: object,
) -> JoiningCurve:
    own = moments(train, classes)
    held_out = ScoreMoments(np.full(classes, 50.0), np.eye(classes) * 0.2, 0.2)
    return joining_curve(
        train,
        test,
        own + moments(others, classes),
        own=own,
        penalty=PENALTY,
        held_out=HELD_OUT if classes == 2 else held_out,
        replicates=replicates,
        **more,  # type: ignore[arg-type]
    )


def test_all_labels_are_the_models_written_out() -> None:
    train, test, others = half(60, 1), half(90, 2), half(200, 3)
    found = curve(train, test, others, counts=(0, 20), replicates=300, seed=4)
    last = found.all_labels
    total = moments(train) + moments(others)
    federated = solve(total, PENALTY)
    personal = personal_model(
        train.features,
        train.labels,
        train.groups,
        total,
        own=moments(train),
        penalty=PENALTY,
        federated=federated,
        held_out=HELD_OUT,
    ).head.probabilities(test.features)
    head = fit_converged(train.features, train.labels, 2, penalty=0.1)
    alone = head.probabilities(test.features)
    assert last.labels == found.n_train == 60
    assert last.draws == 1
    assert last.alone.value == pytest.approx(macro_auroc(test.labels, alone)[0])
    assert last.personal.value == pytest.approx(macro_auroc(test.labels, personal)[0], abs=1e-4)
    expected = calibrate(federated, HELD_OUT).probabilities(test.features)
    assert last.federated.value == pytest.approx(macro_auroc(test.labels, expected)[0], abs=1e-4)
    difference = paired_difference(
        test.labels, personal, alone, groups=test.groups, replicates=300, seed=4
    ).auroc
    for name in ("value", "low", "high", "standard_error"):
        assert getattr(last.personal_minus_alone, name) == pytest.approx(
            getattr(difference, name), abs=2e-4
        )


def test_points_go_from_none_to_all_and_without_labels_there_is_no_model_alone() -> None:
    found = curve(half(50, 1), half(80, 2), half(200, 3), draws=3)
    assert [point.labels for point in found.points] == pytest.approx([0, 10, 20, 40, 50], abs=1)
    assert [point.draws for point in found.points] == [1, 3, 3, 3, 1]
    none = found.points[0]
    assert none.alone.value is None
    assert none.personal_minus_alone.value is None
    assert none.personal.value == none.federated.value
    assert none.personal_minus_federated.value == 0
    for point in found.points[1:]:
        assert point.alone.low is not None
        assert point.alone.low < (point.alone.value or 0) < (point.alone.high or 0)


def test_labels_that_are_not_drawn_take_no_part() -> None:
    """Images whose labels are wrong do not matter to the points that never look at them."""
    train, test, others = half(60, 1, patients=False), half(80, 2), half(200, 3)
    no_labels = curve(train, test, others, counts=(0,)).points[0]
    flipped = Half(train.features, 1 - train.labels)
    assert curve(flipped, test, others, counts=(0,)).points[0] == no_labels
    lone = moments(others)
    expected = calibrate(solve(lone, PENALTY), HELD_OUT).probabilities(test.features)
    assert no_labels.federated.value == pytest.approx(macro_auroc(test.labels, expected)[0])


def test_draws_differ_and_the_seed_decides_them() -> None:
    train, test, others = half(60, 1), half(80, 2), half(200, 3)
    one = curve(train, test, others, counts=(10,), draws=4, seed=1)
    assert curve(train, test, others, counts=(10,), draws=4, seed=1) == one
    other = curve(train, test, others, counts=(10,), draws=4, seed=2)
    assert other.points[0].alone.value != one.points[0].alone.value
    single = curve(train, test, others, counts=(10,), draws=1, seed=1)
    assert single.points[0].alone.value != one.points[0].alone.value


def test_few_labels_gain_most() -> None:
    """Hospitals that are alike: the fewer own labels, the more the others help."""
    gains = np.zeros(2)
    for seed in range(4):
        found = curve(
            half(400, 10 + seed), half(400, 50 + seed), half(400, 90 + seed), counts=(12,)
        )
        gains += [float(p.personal_minus_alone.value or 0) for p in found.points]
    assert gains[0] / 4 > 0.05
    assert abs(gains[1] / 4) < 0.02


def test_three_classes_and_a_test_half_of_one_class() -> None:
    found = curve(
        half(60, 1, classes=3), half(80, 2, classes=3), half(150, 3, classes=3), classes=3, draws=2
    )
    assert found.all_labels.personal.value is not None
    test = half(30, 2)
    single = Half(test.features, test.labels * 0, test.groups)
    undefined = curve(half(40, 1), single, half(150, 3), counts=())
    assert undefined.all_labels.personal.value is None
    assert "one class" in sentence(undefined)


def point(labels: int, change: Estimate, *, alone: float | None = 0.78) -> JoiningPoint:
    none = Estimate(value=None)
    return JoiningPoint(
        labels=labels,
        draws=1,
        alone=Estimate(value=alone),
        federated=Estimate(value=0.71),
        personal=Estimate(value=0.80),
        personal_minus_alone=change,
        federated_minus_alone=none,
        personal_minus_federated=none,
    )


def test_the_sentence_is_for_a_head_of_department() -> None:
    change = Estimate(value=0.02, low=-0.01, high=0.05)
    whole = JoiningCurve(n_train=85, n_test=80, points=[point(0, change), point(85, change)])
    assert sentence(whole) == (
        "With your 85 labelled images, joining changes your AUROC by +0.02 (95 % interval -0.01 "
        "to +0.05): 0.78 alone, 0.80 with your personal model. That may be chance. Without a "
        "single label of your own, the others' model would give you 0.71."
    )
    for low, high, words in ((0.01, 0.03, "more than chance explains."), (-0.04, -0.01, "a loss")):
        clear = point(85, Estimate(value=0.02, low=low, high=high))
        assert words in sentence(JoiningCurve(n_train=85, n_test=80, points=[clear]))
    tiny = point(85, Estimate(value=-0.001, low=-0.012, high=0.01))
    assert "by 0.00 (95 % interval -0.01" in sentence(
        JoiningCurve(n_train=85, n_test=80, points=[tiny])
    )
    untrainable = point(7, Estimate(value=None), alone=None)
    assert "0.80" in sentence(JoiningCurve(n_train=7, n_test=80, points=[untrainable]))


def test_the_draws_share_the_replicates() -> None:
    train, test = half(60, 1), half(80, 2)
    found = curve(train, test, half(200, 3), counts=(20,), draws=2, replicates=4, seed=7)
    weights = bootstrap_weights(80, groups=test.groups, replicates=4, seed=7)
    values, replicates = [], []
    for draw in range(2):
        rows = stratified_share(train.labels, train.groups, 20 / 60, seed=[7, draw])
        head = fit_converged(train.features[rows], train.labels[rows], 2, penalty=0.1)
        scores = head.probabilities(test.features)
        values.append(macro_auroc(test.labels, scores)[0])
        replicates += macro_auroc(test.labels, scores, weights[draw::2]).tolist()
    alone = found.points[0].alone
    assert alone.value == pytest.approx(np.mean(values))
    assert alone.standard_error == pytest.approx(np.std(replicates, ddof=1))
    assert (alone.low, alone.high) == pytest.approx(tuple(np.percentile(replicates, [2.5, 97.5])))
