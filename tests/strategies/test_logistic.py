"""The federated logistic regression against scikit-learn's on the pooled images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dermino_core.heads import LinearHead
from dermino_core.ridge import ABSENT
from dermino_strategies.base import Arrays, SiteData, SiteUpdate
from dermino_strategies.logistic import Logistic, LogisticSettings

WIDTH = 6


def images(n: int, classes: int, seed: int, *, apart: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.choice(classes, n - classes, p=_shares(classes))]
    centres = np.random.default_rng(77).normal(size=(classes, WIDTH))
    x = rng.normal(size=(n, WIDTH)) * np.linspace(0.3, 3, WIDTH) + apart * centres[y] + 2.0
    return x.astype(np.float32), y


def _shares(classes: int) -> np.ndarray:
    shares = np.arange(classes, 0, -1.0)
    return shares / shares.sum()


def federation(x: np.ndarray, y: np.ndarray, place: np.ndarray, classes: int) -> list[SiteData]:
    return [
        SiteData(f"site {i:02}", x[place == i], y[place == i], classes) for i in np.unique(place)
    ]


def run(strategy: Logistic, sites: list[SiteData], rounds: int) -> list[Arrays]:
    """The global arrays after every round."""
    arrays = strategy.initial_arrays(sites[0].n_classes, sites[0].features.shape[1], 0)
    found = []
    for round_ in range(1, rounds + 1):
        updates = {s.site: strategy.site_update(s, arrays, round_, 0) for s in sites}
        for update in updates.values():
            strategy.check_update(arrays, update)
        arrays = strategy.aggregate(arrays, updates)
        found.append(arrays)
    return found


def peer(x: np.ndarray, y: np.ndarray, chosen: LogisticSettings) -> np.ndarray:
    """Probabilities of scikit-learn's optimum at the training images."""
    exact = x.astype(float)
    scale = exact.std(axis=0) if chosen.standardise else np.sqrt(exact.var(axis=0).mean())
    z = (exact - exact.mean(axis=0)) / scale
    how = "balanced" if chosen.class_weight == "balanced" else None
    model = LogisticRegression(
        C=1 / (chosen.penalty * len(y)),
        class_weight=how,
        solver="newton-cg",
        tol=1e-12,
        max_iter=10_000,
    )
    return model.fit(z, y).predict_proba(z)


def exact_probabilities(arrays: Arrays, x: np.ndarray) -> np.ndarray:
    """Of the trial point in float64, as the head is float32."""
    z = (x.astype(float) - arrays["centre"]) / arrays["scale"]
    logits = z @ arrays["trial"][:, :-1].T + arrays["trial"][:, -1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("penalty", [0.003, 0.1])
def test_eight_rounds_reach_the_pooled_optimum(
    classes: int, standardise: bool, penalty: float
) -> None:
    x, y = images(150, classes, seed=classes)
    place = np.random.default_rng(0).integers(0, 4, 150)
    chosen = LogisticSettings(penalty=penalty, standardise=standardise)
    strategy = Logistic(chosen)
    last = run(strategy, federation(x, y, place, classes), 8)[-1]
    expected = peer(x, y, chosen)
    np.testing.assert_allclose(exact_probabilities(last, x), expected, atol=1e-6)
    np.testing.assert_allclose(strategy.head(last).probabilities(x), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_balanced_classes_reach_their_optimum_too(classes: int) -> None:
    x, y = images(160, classes, seed=5)
    place = np.random.default_rng(0).integers(0, 3, 160)
    chosen = LogisticSettings(class_weight="balanced", standardise=True)
    last = run(Logistic(chosen), federation(x, y, place, classes), 9)[-1]
    expected = peer(x, y, chosen)
    np.testing.assert_allclose(exact_probabilities(last, x), expected, atol=1e-6)
    # The head's probabilities stand for the observed shares, by Bayes' rule, ...
    observed = expected * np.bincount(y)
    observed /= observed.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(Logistic(chosen).head(last).probabilities(x), observed, atol=1e-5)
    # ... or for equal ones: those that it was fitted to.
    equal = Logistic(chosen.model_copy(update={"prior": "equal"}))
    last = run(equal, federation(x, y, place, classes), 9)[-1]
    np.testing.assert_allclose(equal.head(last).probabilities(x), expected, atol=1e-5)


def test_equal_priors_divide_by_the_observed_shares() -> None:
    x, y = images(150, 3, seed=3)
    strategy = Logistic(LogisticSettings(prior="equal"))
    last = run(strategy, federation(x, y, y * 0, 3), 8)[-1]
    expected = peer(x, y, LogisticSettings()) / np.bincount(y)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(strategy.head(last).probabilities(x), expected, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(2, 4))
def test_any_split_over_sites_gives_one_answer(seed: int, sites: int, classes: int) -> None:
    x, y = images(80, classes, seed)
    place = np.random.default_rng(seed).integers(0, sites, 80)
    strategy = Logistic()
    together = run(strategy, federation(x, y, place, classes), 8)[-1]
    alone = run(strategy, federation(x, y, place * 0, classes), 8)[-1]
    np.testing.assert_allclose(
        exact_probabilities(together, x), exact_probabilities(alone, x), rtol=0, atol=1e-8
    )
    np.testing.assert_allclose(
        exact_probabilities(together, x), peer(x, y, LogisticSettings()), atol=1e-6
    )


def objective(arrays: Arrays, name: str, x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Mean cross-entropy plus penalty of two classes' difference, at one of the points."""
    point = arrays[name]
    z = (x.astype(float) - arrays["centre"]) / arrays["scale"]
    logits = z @ point[:, :-1].T + point[:, -1]
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(loss.mean() + penalty / 2 * ((point[1] - point[0])[:-1] ** 2).sum())


@pytest.mark.filterwarnings("ignore")  # the peer's line search
def test_far_outliers_shorten_steps_and_it_still_converges() -> None:
    """Features with heavy tails and hardly a penalty: full Newton steps overshoot."""
    for seed in (5, 13, 26):
        rng = np.random.default_rng(seed)
        x = rng.standard_t(0.7, size=(12, WIDTH)).clip(-1e4, 1e4).astype(np.float32)
        y = rng.permutation(np.arange(12) % 2)
        chosen = LogisticSettings(penalty=1e-6, standardise=True)
        history = run(Logistic(chosen), federation(x, y, np.arange(12) % 3, 2), 40)
        losses = [objective(arrays, "base", x, y, 1e-6) for arrays in history]
        assert (np.diff(losses) <= 1e-12).all()
        for arrays, loss in zip(history, losses, strict=True):
            assert arrays["search"][0] == pytest.approx(loss, rel=1e-9)
        assert any(arrays["search"][2] < 1 for arrays in history)
        assert 0 <= history[-1]["search"][3] < 1e-12
        expected = peer(x, y, chosen)
        np.testing.assert_allclose(exact_probabilities(history[-1], x), expected, atol=1e-6)


def test_a_step_that_overshoots_is_not_accepted() -> None:
    x, y = images(100, 2, seed=1)
    sites = federation(x, y, y * 0, 2)
    strategy = Logistic()
    arrays = run(strategy, sites, 2)[-1]
    wild = {**arrays, "step": 100 * arrays["step"], "trial": arrays["base"] + 100 * arrays["step"]}
    wild["search"] = arrays["search"] * np.array([1, 100, 1, 1])
    after = strategy.aggregate(wild, {"a": strategy.site_update(sites[0], wild, 3, 0)})
    np.testing.assert_array_equal(after["base"], wild["base"])
    assert 0.1 <= after["search"][2] <= 0.5
    np.testing.assert_allclose(
        after["trial"], wild["base"] + after["search"][2] * wild["step"], atol=1e-12
    )


def test_a_site_that_drops_out_does_not_stop_the_others() -> None:
    x, y = images(200, 2, seed=8)
    sites = federation(x, y, np.arange(200) % 2, 2)
    strategy = Logistic()
    arrays = run(strategy, sites, 2)[-1]
    for round_ in range(3, 11):
        left = {"one": strategy.site_update(sites[0], arrays, round_, 0)}
        arrays = strategy.aggregate(arrays, left)
    z = (sites[0].features.astype(float) - arrays["centre"]) / arrays["scale"]
    model = LogisticRegression(C=1 / (0.1 * 100), solver="newton-cg", tol=1e-12, max_iter=1000)
    expected = model.fit(z, sites[0].labels).predict_proba(z)
    np.testing.assert_allclose(exact_probabilities(arrays, sites[0].features), expected, atol=1e-6)


def test_absent_classes_and_a_single_class_are_no_error() -> None:
    x, y = images(90, 2, seed=2)
    sites = [SiteData("a", x, 2 * y, 4)]
    strategy = Logistic()
    last = run(strategy, sites, 8)[-1]
    expected = peer(x, y, LogisticSettings())
    found = strategy.head(last).probabilities(x)
    np.testing.assert_allclose(found[:, [0, 2]], expected, atol=1e-5)
    assert last["bias"][1] == last["bias"][3] == np.float32(ABSENT)
    single = run(strategy, [SiteData("a", x, y * 0, 2)], 3)[-1]
    assert (strategy.head(single).probabilities(x)[:, 0] > 0.999).all()


def test_sites_with_one_class_each_reach_the_pooled_optimum() -> None:
    x, y = images(120, 3, seed=4)
    last = run(Logistic(), federation(x, y, y, 3), 8)[-1]
    np.testing.assert_allclose(
        exact_probabilities(last, x), peer(x, y, LogisticSettings()), atol=1e-6
    )


def test_arrays_keep_their_names_shapes_and_types() -> None:
    strategy = Logistic()
    x, y = images(60, 3, seed=0)
    start = strategy.initial_arrays(3, WIDTH, 0)
    update = strategy.site_update(SiteData("a", x, y, 3), start, 1, 0)
    for arrays in run(strategy, [SiteData("a", x, y, 3)], 3):
        for one, other in (
            (start, arrays),
            (strategy.update_like(arrays), update.arrays),
            (strategy.summand_like(arrays), strategy.summand(update)),
        ):
            assert {k: (v.shape, v.dtype) for k, v in one.items()} == {
                k: (v.shape, v.dtype) for k, v in other.items()
            }
        assert set(strategy.summand_limits(arrays)) == {*update.arrays, "examples"}
    np.testing.assert_allclose(strategy.head(start).probabilities(x), 1 / 3)


def test_the_order_of_replies_does_not_change_a_bit() -> None:
    x, y = images(90, 3, seed=0)
    sites = federation(x, y, np.arange(90) % 4, 3)
    one, other = run(Logistic(), sites, 4)[-1], run(Logistic(), sites[::-1], 4)[-1]
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_secure_aggregation_finds_the_same_optimum() -> None:
    """Sums in the fixed point that fifty sites would get, K * limit * 2^s < 2^62."""
    x, y = images(150, 3, seed=6)
    sites = federation(x, y, np.arange(150) % 5, 3)
    strategy = Logistic(LogisticSettings(class_weight="balanced"))
    arrays = strategy.initial_arrays(3, WIDTH, 0)
    for round_ in range(1, 10):
        limits, total = strategy.summand_limits(arrays), {}
        sent = [strategy.summand(strategy.site_update(s, arrays, round_, 0)) for s in sites]
        for name in limits:
            scale = 2.0 ** (math.ceil(62 - math.log2(50 * limits[name])) - 1)
            assert all(np.abs(part[name]).max() <= limits[name] for part in sent)
            total[name] = sum(np.rint(part[name] * scale).astype(np.int64) for part in sent) / scale
        arrays = strategy.from_sum(arrays, total)
    plain = run(strategy, sites, 9)[-1]
    np.testing.assert_allclose(
        strategy.head(arrays).probabilities(x), strategy.head(plain).probabilities(x), atol=1e-6
    )


def test_the_head_is_the_trial_point() -> None:
    x, y = images(90, 3, seed=0)
    for arrays in run(Logistic(), [SiteData("a", x, y, 3)], 3):
        head = LinearHead.from_arrays({k: arrays[k] for k in ("weight", "bias")})
        np.testing.assert_allclose(head.probabilities(x), exact_probabilities(arrays, x), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("counts", (0,), -1.0, "whole numbers"),
        ("counts", (0,), 0.5, "whole numbers"),
        ("counts", (0,), 1e6, "trained on 60"),
        ("loss", (0,), -0.1, "below 0"),
        ("hessian", (0, 0), np.inf, "infinite"),
    ],
)
def test_what_no_images_give_is_refused(
    name: str, place: tuple[int, ...], value: float, words: str
) -> None:
    strategy = Logistic()
    x, y = images(60, 2, seed=0)
    start = strategy.initial_arrays(2, WIDTH, 0)
    update = strategy.site_update(SiteData("a", x, y, 2), start, 1, 0)
    array = update.arrays[name].copy()
    array[place] = value
    with pytest.raises(ValueError, match=words):
        strategy.check_update(start, SiteUpdate({**update.arrays, name: array}, 60))
    bad = SiteData("a", np.full_like(x, np.nan), y, 2)
    with pytest.raises(ValueError, match="NaN"):
        strategy.site_update(bad, start, 1, 0)
