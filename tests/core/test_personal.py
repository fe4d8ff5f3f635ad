"""Personal models against fits written out, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dermino_core.heads import LinearHead, fit_converged
from dermino_core.metrics import macro_auroc
from dermino_core.moments import Moments
from dermino_core.personal import (
    COUNTS_AS,
    USUAL,
    Personal,
    _Site,
    _with_pseudo_images,
    can_learn,
    personal_model,
)
from dermino_core.ridge import ScoreMoments, calibrate, cross_validate, solve, spread_of_features

WIDTH = 10
PENALTY = 0.3


def drawn(
    n: int,
    seed: int,
    *,
    direction: int = 0,
    classes: int = 2,
    shift: float = 0.0,
    apart: float = 0.6,
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a hospital whose classes lie apart along its own direction."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(direction).normal(size=(classes, WIDTH))
    y = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)] if n else np.zeros(0, int)
    x = rng.normal(size=(n, WIDTH)) + apart * centres[y] + shift
    return x.astype(np.float32), y


def moments(x: np.ndarray, y: np.ndarray, classes: int = 2) -> Moments:
    return Moments.of(x, y, classes, per_class=False)


def personal(
    own: tuple[np.ndarray, np.ndarray],
    others: tuple[np.ndarray, np.ndarray],
    *,
    groups: tuple[str, ...] = (),
    classes: int = 2,
    standardise: bool = False,
) -> Personal:
    x, y = own
    mine, theirs = moments(x, y, classes), moments(*others, classes)
    total = mine + theirs
    parts = [moments(others[0][i::3], others[1][i::3], classes) for i in range(3)]
    return personal_model(
        x,
        y,
        groups,
        total,
        own=mine,
        penalty=PENALTY,
        federated=solve(total, PENALTY, standardise=standardise),
        held_out=cross_validate(parts, [PENALTY]).held_out,
        standardise=standardise,
    )


def auroc(head: LinearHead, x: np.ndarray, y: np.ndarray) -> float:
    return float(macro_auroc(y, head.probabilities(x))[0])


def fitted(
    x: np.ndarray, y: np.ndarray, others: tuple[np.ndarray, np.ndarray], m: float, classes: int
) -> tuple[np.ndarray, float, np.ndarray]:
    """The ridge on own and discounted others' images, each centred, on images and not moments."""
    total = np.concatenate([x, others[0]]).astype(float)
    scale = np.sqrt(total.var(axis=0).mean())
    own, far = x.astype(float), others[0].astype(float)
    targets, their = np.eye(classes)[y], np.eye(classes)[others[1]]
    discount = np.sqrt(m / len(far))
    design = np.concatenate(
        [
            (own - own.mean(axis=0)) / scale,
            discount * (far - far.mean(axis=0)) / scale,
            np.sqrt(PENALTY * (len(own) + len(far))) * np.eye(WIDTH),
        ]
    )
    wanted = np.concatenate(
        [
            targets - targets.mean(axis=0),
            discount * (their - their.mean(axis=0)),
            np.zeros((WIDTH, classes)),
        ]
    )
    solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return solution, scale, targets.mean(axis=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_average_is_that_of_fits_written_out(classes: int) -> None:
    x, y = drawn(24, 1, classes=classes)
    others = drawn(90, 2, classes=classes, shift=1.0)
    groups = tuple(f"patient {i // 2}" for i in range(24))
    found = personal((x, y), others, groups=groups, classes=classes)
    grid = [m for m in COUNTS_AS if m < 90] + [90.0]
    np.testing.assert_array_equal(found.counts_as, grid)
    targets = np.eye(classes)[y]
    errors, fits = [], []
    total = np.concatenate([x, others[0]]).astype(float)
    scale = np.sqrt(total.var(axis=0).mean())
    for m in grid:
        solution, _, _ = fitted(x, y, others, m, classes)
        fits.append(solution)
        # Leave each patient out by fitting without it: the coordinates and penalty stay.
        error = 0.0
        for patient in range(12):
            out = np.arange(24) // 2 == patient
            z = (x.astype(float) - x[~out].astype(float).mean(axis=0)) / scale
            centred = targets[~out] - targets[~out].mean(axis=0)
            far = (others[0].astype(float) - others[0].astype(float).mean(axis=0)) / scale
            their = np.eye(classes)[others[1]]
            their = their - their.mean(axis=0)
            matrix = z[~out].T @ z[~out] + m / 90 * far.T @ far
            matrix += PENALTY * (24 + 90) * np.eye(WIDTH)
            right = z[~out].T @ centred + m / 90 * far.T @ their
            scores = z[out] @ np.linalg.solve(matrix, right) + targets[~out].mean(axis=0)
            error += float(((targets[out] - scores) ** 2).sum())
        errors.append(error)
    evidence = -12 / 2 * np.array(errors) / min(errors)
    evidence -= np.log((np.array(grid) + 3) / (USUAL + 3)) ** 2 / 2
    shares = np.exp(evidence - evidence.max())
    shares /= shares.sum()
    np.testing.assert_allclose(found.shares, shares, rtol=1e-6, atol=1e-9)
    expected = sum(share * fit for share, fit in zip(shares, fits, strict=True)).T / scale
    np.testing.assert_allclose(found.scores.weight, expected, rtol=1e-6, atol=1e-8)
    assert found.others_count_as == pytest.approx(float(np.dot(shares, grid)))
    own_mean = found.scores.of(x).mean(axis=0)
    np.testing.assert_allclose(own_mean, targets.mean(axis=0), atol=1e-9)


def test_like_hospitals_help_and_unlike_ones_do_not_hurt_with_labels() -> None:
    gains, harms = [], []
    for seed in range(6):
        test = drawn(800, 1000 + seed, apart=0.3)
        few, many = drawn(20, seed, apart=0.3), drawn(300, seed, apart=0.3)
        alone = fit_converged(*few, 2, penalty=0.1)
        alike = personal(few, drawn(400, 500 + seed, apart=0.3))
        gains.append(auroc(alike.head, *test) - auroc(alone, *test))
        # The others' classes lie the other way round.
        far_x, far_y = drawn(400, 500 + seed, apart=0.3)
        against = personal(many, (far_x, 1 - far_y))
        harms.append(
            auroc(fit_converged(*many, 2, penalty=0.1), *test) - auroc(against.head, *test)
        )
        assert (alike.others_count_as or 0) > 30
        assert (against.others_count_as or 0) < 25
    assert np.mean(gains) > 0.05
    assert np.mean(harms) < 0.01
    assert max(harms) < 0.02


def test_with_labels_the_model_moves_from_the_others_to_the_own() -> None:
    test = drawn(1000, 77, direction=3)
    others = drawn(500, 5, direction=4)
    found = [personal(drawn(n, 9, direction=3), others) for n in (10, 40, 400)]
    scores = [auroc(model.head, *test) for model in found]
    assert scores[0] < scores[1] < scores[2]
    weight = solve(moments(*others), PENALTY).weight[1]
    cosines = [
        float(m.scores.weight[1] @ weight / np.linalg.norm(m.scores.weight[1])) for m in found
    ]
    assert cosines[0] > cosines[1] > cosines[2]


@pytest.mark.parametrize("kind", ["none", "one class", "one patient"])
def test_too_few_labels_take_the_federated_head(kind: str) -> None:
    x, y = drawn(12, 3)
    groups: tuple[str, ...] = ()
    if kind == "none":
        x, y = x[:0], y[:0]
    elif kind == "one class":
        y = y * 0
    else:
        groups = ("same",) * 12
    assert not can_learn(y, groups)
    others = drawn(100, 4)
    found = personal((x, y), others, groups=groups)
    assert found.others_count_as is None
    total = moments(x, y) + moments(*others)
    test_x, _ = drawn(50, 5)
    np.testing.assert_allclose(found.scores.of(test_x), solve(total, PENALTY).of(test_x))
    assert np.isfinite(found.head.probabilities(test_x)).all()


def test_a_hospital_that_is_the_whole_federation_is_itself() -> None:
    x, y = drawn(60, 6)
    own = moments(x, y)
    held_out = ScoreMoments(own.counts, np.eye(2), 0.2)
    found = personal_model(
        x, y, (), own, own=own, penalty=PENALTY, federated=solve(own, PENALTY), held_out=held_out
    )
    np.testing.assert_array_equal(found.counts_as, [0.0])
    np.testing.assert_allclose(
        found.scores.of(x), solve(own, PENALTY, standardise=False).of(x), atol=1e-10
    )


def test_a_hospital_that_did_not_take_part_has_nothing_to_take_out() -> None:
    own, others = drawn(30, 1), drawn(90, 2)
    theirs = moments(*others)
    nothing = Moments.zeros(2, WIDTH, per_class=False)
    held_out = ScoreMoments(theirs.counts, np.eye(2), 0.2)
    found = personal_model(
        *own,
        (),
        theirs,
        own=nothing,
        penalty=PENALTY,
        federated=solve(theirs, PENALTY),
        held_out=held_out,
        standardise=True,
    )
    assert found.counts_as[-1] == 90


def test_probabilities_are_for_the_hospitals_own_mix() -> None:
    """One in ten is malignant here, half are elsewhere."""
    rng = np.random.default_rng(0)
    x, y = drawn(900, 1)
    keep = (y == 0) | (rng.random(900) < 0.1)
    x, y = x[keep], y[keep]
    half = len(y) // 2
    found = personal((x[:half], y[:half]), drawn(500, 2))
    mean = found.head.probabilities(x[half:])[:, 1].mean()
    assert mean == pytest.approx(y[half:].mean(), abs=0.04)
    few = personal((x[:20], y[:20]), drawn(500, 2))
    assert few.head.probabilities(x[half:])[:, 1].mean() < 0.35


def test_few_labels_borrow_the_federations_calibration() -> None:
    """Of three images no spread can be told; the probabilities stay moderate."""
    x = np.array([[0.0] * WIDTH, [1.0] * WIDTH, [1.1] * WIDTH], np.float32)
    y = np.array([0, 1, 1])
    found = personal((x, y), drawn(300, 2))
    sure = calibrate(found.scores, ScoreMoments(np.array([1.0, 2.0]), np.eye(2), 1e-4))
    assert np.abs(found.head.weight).max() < np.abs(sure.weight).max() / 50
    slope = found.head.weight / found.scores.weight
    elsewhere = personal(drawn(300, 1), drawn(300, 2))
    usual = elsewhere.head.weight / elsewhere.scores.weight
    assert 0.3 < slope.mean() / usual.mean() < 1.2


def test_a_class_that_only_others_have_keeps_a_chance() -> None:
    x, y = drawn(30, 1, classes=3)
    keep = y < 2
    found = personal((x[keep], y[keep]), drawn(200, 2, classes=3), classes=3)
    probabilities = found.head.probabilities(drawn(100, 3, classes=3)[0])
    assert 0 < probabilities[:, 2].mean() < 0.2


def test_others_that_count_in_full_are_the_pooled_ridge_with_an_own_intercept() -> None:
    (x, y), others = drawn(40, 1), drawn(90, 2, shift=1.0)
    total = moments(x, y) + moments(*others)
    scale = spread_of_features(total, standardise=True)
    fit = _Site(x, y, (), 2, scale).fit(PENALTY * total.images, moments(*others), 90.0)
    both = np.concatenate([x - x.mean(axis=0), others[0] - others[0].mean(axis=0)])
    target = np.concatenate([y - y.mean(), others[1] - others[1].mean()])
    peer = Ridge(alpha=PENALTY * 130, fit_intercept=False).fit(both / scale, target)
    np.testing.assert_allclose(fit.scores.weight[1], peer.coef_ / scale, rtol=1e-5, atol=1e-7)


def test_few_images_are_pooled_with_the_federations_around_their_own_mean() -> None:
    federation = ScoreMoments(np.array([30.0, 10.0]), np.array([[0.8, 0.2], [0.4, 0.6]]), 0.1)
    own = ScoreMoments(np.array([5.0, 0.0]), np.array([[0.5, 0.5], [0.0, 0.0]]), 0.3)
    found = _with_pseudo_images(own, federation)
    # The only class there is is at its own mean; the other at the federation's distance from it.
    np.testing.assert_allclose(found.means, [[0.5, 0.5], [0.1, 0.9]])
    np.testing.assert_allclose(found.counts, [6.5, 0.5])
    assert found.spread == pytest.approx((5 * 0.3 + 20 * 0.1) / (4 + 20))
    both = ScoreMoments(np.array([10.0, 30.0]), np.array([[0.6, 0.4], [0.2, 0.8]]), 0.2)
    pooled = _with_pseudo_images(both, federation)
    shift = (10 * -0.2 + 30 * -0.2) / 40
    expected = (10 * 0.6 + 10 * (0.8 + shift)) / 20, (30 * 0.2 + 10 * (0.4 + shift)) / 40
    np.testing.assert_allclose(pooled.means[:, 0], expected)
    assert pooled.spread == pytest.approx((40 * 0.2 + 20 * 0.1) / (38 + 20))


def test_noise_in_the_others_moments_is_met_by_a_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more the others count, the more: `noise` per image of theirs, in the features' unit."""
    (x, y), others = drawn(60, 1), drawn(300, 2)
    theirs = moments(*others)
    seen: dict[float, float] = {}
    fit = _Site.fit

    def spy(self: _Site, penalty: float, far: Moments, counts_as: float) -> object:
        seen[counts_as] = penalty
        return fit(self, penalty, far, counts_as)

    monkeypatch.setattr(_Site, "fit", spy)
    found = personal_model(
        x,
        y,
        (),
        theirs,
        own=Moments.zeros(2, WIDTH, per_class=False),
        penalty=PENALTY,
        noise=700.0,
        federated=solve(theirs, PENALTY),
        held_out=ScoreMoments(theirs.counts, np.eye(2), 0.2),
    )
    variance = x.astype(float).var(axis=0).mean()
    assert seen == pytest.approx(
        {m: PENALTY * 300 + m * 700 / 300 / variance for m in found.counts_as}
    )
