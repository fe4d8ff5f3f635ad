"""The one-round ridge head against scikit-learn's ridge on the pooled images."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as PeerRidge

from dermino_core.errors import DerminoError
from dermino_core.metrics import macro_auroc
from dermino_core.moments import Moments, fold_of_images
from dermino_core.ridge import class_weights
from dermino_strategies.base import Arrays, SiteData, SiteUpdate
from dermino_strategies.ridge import Ridge, RidgeSettings
from dermino_strategies.withdrawal import taken_out, with_site, without_site

WIDTH = 8


def hospital(name: str, n: int, seed: int, classes: int = 2, shift: float = 0.0) -> SiteData:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, WIDTH))
    x = rng.normal(size=(n, WIDTH)) * np.linspace(0.5, 2, WIDTH) + 0.6 * centres[y] + shift
    groups = tuple(f"{name} {i // 2}" for i in range(n))
    return SiteData(name, x.astype(np.float32), y, classes, groups=groups)


def run(strategy: Ridge, sites: list[SiteData], rounds: int = 1, seed: int = 0) -> Arrays:
    arrays = strategy.initial_arrays(sites[0].n_classes, WIDTH, seed)
    for round_ in range(1, rounds + 1):
        updates = {s.site: strategy.site_update(s, arrays, round_, seed) for s in sites}
        for update in updates.values():
            strategy.check_update(arrays, update)
        arrays = strategy.aggregate(arrays, updates)
    return arrays


def pooled(sites: list[SiteData]) -> SiteData:
    return SiteData(
        "pooled",
        np.concatenate([s.features for s in sites]),
        np.concatenate([s.labels for s in sites]),
        sites[0].n_classes,
        groups=tuple(g for s in sites for g in s.groups),
    )


@pytest.mark.parametrize(
    "chosen",
    [
        RidgeSettings(penalties=(0.3,)),
        RidgeSettings(penalties=(0.3,), class_weight="balanced", standardise=True),
    ],
)
def test_the_head_orders_images_as_the_pooled_ridge_does(chosen: RidgeSettings) -> None:
    sites = [hospital("a", 40, 1), hospital("b", 90, 2, shift=1.0), hospital("c", 7, 3)]
    strategy = Ridge(chosen)
    arrays = run(strategy, sites)
    every = pooled(sites)
    exact = every.features.astype(float)
    scale = exact.std(axis=0) if chosen.standardise else np.sqrt(exact.var(axis=0).mean())
    weights = class_weights(np.bincount(every.labels).astype(float), chosen.class_weight)
    each = weights[every.labels]
    peer = PeerRidge(alpha=0.3 * each.sum(), solver="svd")
    expected = peer.fit(exact / scale, np.eye(2)[every.labels], sample_weight=each).predict(
        exact / scale
    )
    total = Moments.from_arrays(arrays, "total.")
    found = strategy.solve(total, float(arrays["penalty"][0])).of(every.features)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    probability = strategy.head(arrays).probabilities(every.features)[:, 1]
    logits = np.log(probability / (1 - probability))
    slope, offset = np.polyfit(found[:, 1], logits, 1)
    assert slope > 0
    np.testing.assert_allclose(logits, slope * found[:, 1] + offset, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 50), st.sampled_from(["none", "balanced"]))
def test_any_number_of_sites_gives_one_answer(seed: int, sites: int, weight: str) -> None:
    every = hospital("every", 60, seed, classes=3)
    rng = np.random.default_rng(seed)
    place = rng.integers(0, sites, 60)
    parts = [
        SiteData(f"site {i:02}", every.features[place == i], every.labels[place == i], 3)
        for i in range(sites)
        if (place == i).any()
    ]
    strategy = Ridge(RidgeSettings.model_validate({"penalties": (0.1,), "class_weight": weight}))
    together, alone = run(strategy, parts), run(strategy, [every])
    for name in ("counts", "sums", "products"):
        np.testing.assert_allclose(
            together[f"total.{name}"], alone[f"total.{name}"], rtol=1e-12, atol=1e-10
        )
    scores = [
        strategy.solve(Moments.from_arrays(arrays, "total."), 0.1).of(every.features)
        for arrays in (together, alone)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-8)


def test_further_rounds_and_the_order_of_replies_change_nothing() -> None:
    strategy = Ridge()
    sites = [hospital(name, 30, i) for i, name in enumerate("abc")]
    one, three = run(strategy, sites), run(strategy, list(reversed(sites)), rounds=3)
    for name, array in one.items():
        np.testing.assert_array_equal(array, three[name])


def test_arrays_keep_their_names_shapes_and_types() -> None:
    for chosen in (RidgeSettings(), RidgeSettings(class_weight="balanced", folds=3)):
        strategy = Ridge(chosen)
        start = strategy.initial_arrays(3, WIDTH, 0)
        after = run(strategy, [hospital("a", 50, 0, classes=3)])
        assert {k: (v.shape, v.dtype) for k, v in start.items()} == {
            k: (v.shape, v.dtype) for k, v in after.items()
        }
        update = strategy.site_update(hospital("a", 50, 0, classes=3), start, 1, 0)
        like = strategy.update_like(start)
        assert {k: (v.shape, v.dtype) for k, v in like.items()} == {
            k: (v.shape, v.dtype) for k, v in update.arrays.items()
        }
        summand, summand_like = strategy.summand(update), strategy.summand_like(start)
        assert {k: v.shape for k, v in summand.items()} == {
            k: v.shape for k, v in summand_like.items()
        }
        assert set(strategy.summand_limits(start)) == set(summand)
        assert strategy.head(start).probabilities(np.ones((1, WIDTH), np.float32))[0, 0] == (
            pytest.approx(1 / 3)
        )


def test_what_is_sent_is_as_small_as_it_says() -> None:
    strategy = Ridge()
    like = strategy.update_like(strategy.initial_arrays(2, 384, 0))
    size = sum(array.nbytes for array in like.values())
    assert size < 1.82e6
    triangle = 384 * 385 // 2
    assert like["total.products"].nbytes == 8 * triangle
    assert like["fold.products"].nbytes == 4 * 4 * triangle


def test_the_penalty_is_the_best_on_patients_held_out() -> None:
    """Cross-validation with images, by scikit-learn, in the folds that the sites use."""
    sites = [hospital("a", 60, 5), hospital("b", 50, 6)]
    strategy = Ridge()
    arrays = run(strategy, sites, seed=3)
    every = pooled(sites)
    fold_of = np.concatenate(
        [fold_of_images(s.labels, s.groups, folds=5, seed=3, site=s.site) for s in sites]
    )
    exact, targets = every.features.astype(float), np.eye(2)[every.labels]
    errors = np.zeros(len(arrays["penalties"]))
    for fold in range(5):
        rest, out = fold_of != fold, fold_of == fold
        scale = np.sqrt(exact[rest].var(axis=0).mean())
        for i, penalty in enumerate(arrays["penalties"]):
            peer = PeerRidge(alpha=penalty * rest.sum(), solver="svd")
            scores = peer.fit(exact[rest] / scale, targets[rest]).predict(exact[out] / scale)
            errors[i] += ((targets[out] - scores) ** 2).sum()
    # The folds travel as float32.
    np.testing.assert_allclose(arrays["errors"], errors / len(every.labels), rtol=1e-5)
    assert arrays["penalty"][0] == arrays["penalties"][errors.argmin()]
    assert 0 < errors.argmin() < len(errors) - 1


def test_secure_aggregation_finds_the_same_head() -> None:
    """Sums in the fixed point that fifty sites would get, K * limit * 2^s < 2^62."""
    sites = [hospital(f"site {i}", 20, i) for i in range(4)]
    strategy = Ridge()
    arrays = strategy.initial_arrays(2, WIDTH, 0)
    updates = {s.site: strategy.site_update(s, arrays, 1, 0) for s in sites}
    limits = strategy.summand_limits(arrays)
    total = {}
    for name, like in strategy.summand_like(arrays).items():
        scale = 2.0 ** (math.ceil(62 - math.log2(50 * limits[name])) - 1)
        sent = [strategy.summand(u)[name] for u in updates.values()]
        assert all(np.abs(part).max() <= limits[name] for part in sent)
        whole = sum((np.rint(part * scale).astype(np.int64) for part in sent), np.int64(0))
        total[name] = np.broadcast_to(whole / scale, like.shape).copy()
    plain, secure = strategy.aggregate(arrays, updates), strategy.from_sum(arrays, total)
    assert plain["penalty"] == secure["penalty"]
    x = pooled(sites).features
    np.testing.assert_allclose(
        strategy.head(secure).probabilities(x), strategy.head(plain).probabilities(x), atol=1e-6
    )


def test_a_site_can_take_its_own_sums_out_of_the_total() -> None:
    strategy = Ridge(RidgeSettings(class_weight="balanced"))
    sites = [hospital("a", 30, 1), hospital("b", 40, 2)]
    total = Moments.from_arrays(run(strategy, sites), "total.")
    own = Moments.of(sites[0].features, sites[0].labels, 2, per_class=True)
    others = Moments.of(sites[1].features, sites[1].labels, 2, per_class=True)
    np.testing.assert_allclose((total - own).products, others.products, atol=1e-10)


def changed(update: SiteUpdate, name: str, place: tuple[int, ...], value: float) -> SiteUpdate:
    array = update.arrays[name].copy()
    array[place] = value
    return SiteUpdate({**update.arrays, name: array}, update.examples)


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("total.counts", (0,), -1.0, "whole numbers"),
        ("total.counts", (0,), 3.5, "whole numbers"),
        ("total.counts", (0,), 1e6, "trained on 30"),
        ("fold.counts", (0, 0), 1e6, "do not add up"),
        ("fold.counts", (0, 0), -1.0, "do not add up"),
        ("total.products", (0, WIDTH), -1.0, "negative squares"),
        ("fold.products", (2, 0, -1), -1.0, "negative squares"),
        ("total.products", (0, 1), np.nan, "NaN"),
    ],
)
def test_sums_of_no_images_are_refused(
    name: str, place: tuple[int, ...], value: float, words: str
) -> None:
    strategy = Ridge()
    arrays = strategy.initial_arrays(2, WIDTH, 0)
    update = strategy.site_update(hospital("a", 30, 1), arrays, 1, 0)
    strategy.check_update(arrays, update)
    with pytest.raises(ValueError, match=words):
        strategy.check_update(arrays, changed(update, name, place, value))


def test_one_class_per_site_is_enough() -> None:
    """Sites that could train nothing alone learn what one site with both classes would."""
    both = hospital("both", 300, 4)
    sites = [
        SiteData(str(c), both.features[both.labels == c], both.labels[both.labels == c], 2)
        for c in (0, 1)
    ]
    strategy = Ridge()
    test = hospital("test", 200, 5)
    split = strategy.head(run(strategy, sites)).probabilities(test.features)
    whole = strategy.head(run(strategy, [both])).probabilities(test.features)
    found, expected = macro_auroc(test.labels, split)[0], macro_auroc(test.labels, whole)[0]
    assert expected > 0.7
    assert found == pytest.approx(expected, abs=0.02)


def test_withdrawal_and_late_joining_give_what_a_run_without_and_with_would() -> None:
    strategy = Ridge(RidgeSettings(class_weight="balanced", standardise=True))
    sites = [hospital(name, 30 + 10 * i, i) for i, name in enumerate("abcd")]
    start = strategy.initial_arrays(2, WIDTH, 0)
    kept = {s.site: strategy.site_update(s, start, 1, 0) for s in sites}
    every = strategy.aggregate(start, kept)
    expected = run(strategy, [s for s in sites if s.site != "b"])
    found = without_site(strategy, every, kept, "b")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    rest = {name: update for name, update in kept.items() if name != "b"}
    again = with_site(strategy, found, rest, "b", kept["b"])
    for name, array in every.items():
        np.testing.assert_array_equal(again[name], array)
    total = {
        name: sum(strategy.summand(update)[name] for update in kept.values())
        for name in strategy.summand_like(start)
    }
    subtracted = taken_out(strategy, every, total, kept["b"])
    test = hospital("test", 50, 9)
    for one, other in ((subtracted, expected),):
        scores = [
            strategy.solve(Moments.from_arrays(a, "total."), float(a["penalty"][0])).of(
                test.features
            )
            for a in (one, other)
        ]
        np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-8)
        assert one["penalty"] == other["penalty"]


def test_withdrawal_takes_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    strategy = Ridge()
    start = strategy.initial_arrays(2, 384, 0)
    kept = {}
    for i in range(5):
        x = rng.normal(size=(80, 384)).astype(np.float32)
        data = SiteData(f"site {i}", x, rng.integers(0, 2, 80), 2)
        kept[data.site] = strategy.site_update(data, start, 1, 0)
    before = time.process_time()
    without_site(strategy, start, kept, "site 3")
    assert time.process_time() - before < 2  # 0.2 s on one core; threads that wait count too


def test_nothing_can_be_taken_out_of_what_does_not_hold_it() -> None:
    strategy = Ridge()
    start = strategy.initial_arrays(2, WIDTH, 0)
    update = strategy.site_update(hospital("a", 30, 1), start, 1, 0)
    with pytest.raises(DerminoError, match="no sums of the site 'b'"):
        without_site(strategy, start, {"a": update}, "b")
    with pytest.raises(DerminoError, match="no site is left"):
        without_site(strategy, start, {"a": update}, "a")
    with pytest.raises(DerminoError, match="does not hold"):
        taken_out(strategy, start, strategy.summand(update), update)
    with pytest.raises(ValueError, match="trained on 31"):
        with_site(strategy, start, {}, "a", SiteUpdate(update.arrays, 31))


def test_a_personal_model_comes_from_the_arrays_and_the_own_images() -> None:
    strategy = Ridge()
    sites = [hospital("a", 40, 1), hospital("b", 120, 2)]
    arrays = run(strategy, sites)
    found = strategy.personal(sites[0], arrays)
    assert found.counts_as[-1] == 120
    visitor = strategy.personal(hospital("c", 40, 3), arrays, took_part=False)
    assert visitor.counts_as[-1] == 160
    nothing = SiteData("d", np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64), 2)
    unlabelled = strategy.personal(nothing, arrays, took_part=False)
    test = hospital("test", 200, 9)
    np.testing.assert_allclose(
        unlabelled.head.probabilities(test.features),
        strategy.head(arrays).probabilities(test.features),
        atol=1e-6,
    )
