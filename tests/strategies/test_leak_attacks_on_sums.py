"""The attacks of `tests.benchmarks.leaks` on sums, on masked uploads and on private training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from scipy.stats import ks_2samp, multivariate_normal

from dermino_core.heads import LinearHead
from dermino_core.moments import fold_of_images
from dermino_core.privacy import sgd
from dermino_core.privacy.plan import Mechanism
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.ridge import Ridge, RidgeSettings
from tests.benchmarks.leaks import noisy_sums, private_shadow, products
from tests.benchmarks.leaks.exposure import attack, observe
from tests.benchmarks.leaks.masked import attack_masked, fixed_point, mask
from tests.benchmarks.leaks.scores import Measured, bound
from tests.benchmarks.leaks.victims import Federation, add, drawn_hospitals, private

NAME = "fit_private_head"
NORMAL: Any = multivariate_normal  # scipy's own signature takes a covariance for an integer
ONE = drawn_hospitals({"a": 60}, width=128)
THREE = drawn_hospitals({"a": 60, "b": 40, "c": 20}, width=16)
WIDE = drawn_hospitals({"b": 40, "c": 30}, width=128)


def chance(measured: Measured) -> bool:
    """Whether the interval, three times as wide, holds what guessing gives: masks and noise are
    not seeded, and a test must not fail once in a thousand runs."""
    low, high = measured.interval
    return 2 * low - high <= 0.5 <= 2 * high - low


# --- private training ------------------------------------------------------------------------


def test_fast_private_training_is_the_real_one_where_no_chance_is_left() -> None:
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(30, 6)).astype(np.float32), rng.integers(0, 3, 30)
    head, no_noise = LinearHead.initial(3, 6, seed=1), Mechanism(0.0, 1.0, 12)
    many = {"learning_rate": 0.05, "images_per_unit": 4, "centre": np.full(6, 0.2)}
    for units, clip in ((np.arange(30), 0.8), (np.arange(30) % 10, 0.5), (np.arange(30), 1e3)):
        real = sgd.fit_private_head(head, x, y, units, no_noise, clip=clip, **many)
        fast = private_shadow.fit_private_head(head, x, y, units, no_noise, clip=clip, **many)
        np.testing.assert_allclose(fast.weight, real.weight, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(fast.bias, real.bias, rtol=1e-3, atol=1e-4)


def test_fast_private_training_has_the_distribution_of_the_real_one() -> None:
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(8, 2)).astype(np.float32), rng.integers(0, 2, 8)
    head, mechanism = LinearHead.initial(2, 2, seed=1), Mechanism(0.7, 0.5, 3)
    settings = {"learning_rate": 0.5, "images_per_unit": 1, "clip": 0.2}
    drawn = [
        np.array([fit(head, x, y, np.arange(8), mechanism, **settings).weight for _ in range(100)])
        for fit in (sgd.fit_private_head, private_shadow.fit_private_head)
    ]
    for place in np.ndindex(2, 2):
        found: Any = ks_2samp(drawn[0][:, *place], drawn[1][:, *place])
        assert found.pvalue > 1e-5
    assert drawn[0].std() > 0.1


def test_private_runs_are_attacked_as_they_are_and_shadowed_fast() -> None:
    federation = private(Federation("x", FedAvg(), 1), ONE[0], epsilon=3)
    assert federation.privacy == "ε = 3"
    other = private(Federation("x", FedAvg(), 1), THREE[2], epsilon=3)
    assert federation.plan is not None
    assert other.plan is not None
    assert federation.plan.per_round == other.plan.per_round
    used: list[str] = []

    def spy(name: str, fit: Any) -> Any:
        return lambda *a, **k: (used.append(name), fit(*a, **k))[1]

    with (
        patch.object(sgd, "fit_private_head", spy("real", sgd.fit_private_head)),
        patch.object(
            private_shadow, "fit_private_head", spy("fast", private_shadow.fit_private_head)
        ),
    ):
        observe(federation, ONE, 3, 2)
    assert used == ["fast"] * 3 + ["real"] * 2


def test_a_private_upload_stays_within_what_was_promised() -> None:
    """The same images that a plain upload gives away; the bound holds of any attack."""
    plain = Federation("x", FedAvg(FedAvgSettings(learning_rate=5e-3)), 1)
    open_, hidden = (
        attack(one, ONE, shadows=150, targets=8)[-1].attacks["decoding"]["a"]
        for one in (plain, private(plain, ONE[0], epsilon=1))
    )
    assert hidden.auc.interval[0] <= bound(1, 1e-5).auc
    assert open_.auc.interval[0] > bound(1, 1e-5).auc


# --- ridge's sums ----------------------------------------------------------------------------


def test_leverage_is_the_diagonal_of_the_projection() -> None:
    rng = np.random.default_rng(7)
    x, stranger = rng.normal(size=(50, 8)), 10 * rng.normal(size=(3, 8))
    gram = x.T @ x
    hat = np.diag(x @ np.linalg.inv(gram) @ x.T)
    np.testing.assert_allclose(products.leverage_scores([gram], x), 0.1 - np.log(hat), rtol=1e-6)
    assert (products.leverage_scores([gram], x) > 0).all()
    small = products.leverage_scores([gram * 1e-8], x * 1e-4)
    np.testing.assert_allclose(small, 0.1 - np.log(hat), rtol=1e-6)
    folds = [x[:5].T @ x[:5], x[5:9].T @ x[5:9]]
    few = products.leverage_scores(folds, np.vstack([x[:9], stranger]))
    assert (few[:9] > 0).all()
    assert (few[9:] < 0).all()


def test_the_fold_that_is_not_sent_is_what_the_others_leave() -> None:
    site = THREE[0].data(np.arange(40))
    ridge = Ridge()
    update = ridge.site_update(site, ridge.initial_arrays(2, 16, 0), 1, 0)
    fold_of = fold_of_images(site.labels, site.groups, folds=5, seed=0, site=site.site)
    matrices = products.fold_matrices(update.arrays)
    for fold, found in enumerate(matrices):
        x = site.features[fold_of == fold].astype(float)
        np.testing.assert_allclose(found, x.T @ x, atol=1e-4)
    assert len(matrices) == 5


def test_sums_of_folds_smaller_than_the_width_name_every_member() -> None:
    hospitals = drawn_hospitals({"a": 60, "b": 80}, width=64)
    found = products.attack_sums(Federation("ridge", Ridge(), 1), hospitals, targets=4)
    for where in (products.OWN, products.ALL):
        for figures in found[where].values():
            assert figures.auc.value == figures.hits.value == figures.accuracy.value == 1
    folds = {"a": 60, "b": 80, "c": 1600}
    many = products.attack_sums(
        Federation("ridge", Ridge(), 1), drawn_hospitals(folds, width=16), targets=2
    )
    assert many[products.ALL]["c"].auc.value < 0.75


def test_columns_of_noisy_sums_are_what_a_single_image_sends_without_noise() -> None:
    hospital = drawn_hospitals({"a": 6}, width=24)[0]
    centre = tuple(np.linspace(-1, 1, 24))
    ridge = Ridge(RidgeSettings(projection=8, centre=centre))
    federation = private(Federation("ridge", ridge, 1), hospital, epsilon=3)
    release = noisy_sums.Release(federation, 24)
    columns = release.columns(hospital)
    assert federation.plan is not None
    silent = replace(federation.plan, per_round=Mechanism(0.0, 1.0, 1))
    sent = ridge.for_sites(ridge.initial_arrays(2, 24, 0))
    for image in range(6):
        data = hospital.data(np.array([image]))
        update = ridge.private_site_update(data, sent, 1, silent)
        np.testing.assert_allclose(
            release.seen(ridge.summand(update)), columns[:, image], rtol=1e-6, atol=1e-8
        )
    sigma = federation.plan.per_round.noise_multiplier
    assert (np.linalg.norm(columns, axis=0) <= 1 / sigma + 1e-9).all()


def test_noise_of_what_is_seen_has_variance_one() -> None:
    hospital = drawn_hospitals({"a": 40}, width=24)[0]
    federation = private(
        Federation("ridge", Ridge(RidgeSettings(projection=8)), 1), hospital, epsilon=3
    )
    release = noisy_sums.Release(federation, 24)
    data = hospital.data(np.arange(40))
    rest = release.columns(hospital).sum(axis=1)
    drawn = [release.seen(federation.summed([data], seed=0)[1]) - rest for _ in range(60)]
    assert np.mean(drawn) == pytest.approx(0, abs=0.09)
    assert np.std(drawn) == pytest.approx(1, abs=0.065)


def test_likelihood_ratios_of_noisy_sums_are_those_of_normal_densities() -> None:
    rng = np.random.default_rng(13)
    columns, seen = rng.normal(size=(5, 7)), rng.normal(size=(3, 5))
    found = noisy_sums.likelihood_ratios(columns, seen, 2)
    for image in range(7):
        others = np.delete(columns, image, axis=1)
        covariance = 2 * np.eye(5) + others @ others.T / 4
        mean = others.sum(axis=1) / 2
        with_it = NORMAL.logpdf(seen, mean + columns[:, image], covariance)
        without = NORMAL.logpdf(seen, mean, covariance)
        np.testing.assert_allclose(found[:, image], with_it - without, rtol=1e-8)


def test_noisy_sums_tell_less_the_smaller_the_budget() -> None:
    hospitals = drawn_hospitals({"a": 60, "b": 40}, width=24)
    ridge = Federation("ridge", Ridge(RidgeSettings(projection=16)), 1)
    found = {
        epsilon: noisy_sums.attack_noisy_sums(
            private(ridge, hospitals[0], epsilon=epsilon), hospitals, targets=12
        )
        for epsilon in (0.5, 300.0)
    }
    for where in (noisy_sums.OWN, noisy_sums.ALL):
        for name in ("a", "b"):
            assert found[300.0][where][name].auc.value > 0.9
            assert chance(found[0.5][where][name].auc)


# --- secure aggregation ----------------------------------------------------------------------


def test_masks_hide_one_upload_and_leave_the_sum() -> None:
    federation = Federation("x", FedAvg(FedAvgSettings(learning_rate=5e-3)), 1)
    form = fixed_point(federation, 16, 3)
    updates, total = federation.summed([one.data(np.arange(20)) for one in THREE], seed=0)
    plain = {n: form.flatten(federation.strategy.summand(u)) for n, u in updates.items()}
    masked = mask(plain)
    opened = form.unflatten(masked["a"] + masked["b"] + masked["c"])
    for name, array in total.items():
        np.testing.assert_allclose(opened[name], array, rtol=1e-6, atol=1e-6)
    assert all((masked[name] != plain[name]).mean() > 0.99 for name in plain)
    found = attack_masked(federation, ONE + WIDE, shadows=100, targets=16)
    assert all(chance(one.auc) for one in found.attacks["decoding"].values())


def test_the_sum_is_all_that_the_next_arrays_are_made_of() -> None:
    strategy = FedAvg()
    arrays = strategy.initial_arrays(2, 16, 0)
    updates = [strategy.site_update(one.data(np.arange(20)), arrays, 1, 0) for one in THREE]
    total = add(strategy, updates)
    assert total["examples"] == 60
    swapped = add(strategy, updates[::-1])
    np.testing.assert_allclose(swapped["weight"], total["weight"], rtol=1e-12)
