"""q-FedAvg against its equations, Flower's, and what it is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.serverapp.strategy.qfedavg import compute_delta_and_h
from sklearn.metrics import log_loss

from dermino_strategies.base import Additive, Arrays, SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.qffl import LARGEST_LOSS, LARGEST_MOVE, QFFL, SMALLEST_LOSS, QFFLSettings


def site(name: str, n: int, seed: int, turn: float = 0.0) -> SiteData:
    """A site whose classes lie along an axis turned by `turn`, so that sites disagree."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    labels = np.cos(turn) * x[:, 0] + np.sin(turn) * x[:, 1] > 0
    return SiteData(name, x, labels.astype(np.int64), 2)


SITES = [site("a", 30, 1), site("b", 90, 2, turn=1.5), site("c", 41, 3, turn=0.3)]


def updates_of(strategy: QFFL, start: Arrays) -> dict[str, SiteUpdate]:
    return {data.site: strategy.site_update(data, start, 1, 0) for data in SITES}


def test_without_fairness_it_is_fedavg() -> None:
    strategy = QFFL(QFFLSettings(q=0, lipschitz=37.0, learning_rate=0.05))
    start = strategy.initial_arrays(2, 6, seed=0)
    updates = updates_of(strategy, start)
    average = FedAvg().aggregate(start, updates)
    for name, array in strategy.aggregate(start, updates).items():
        np.testing.assert_allclose(array, average[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("q", "lipschitz"), [(0.5, 3.0), (1.0, 1.0), (2.0, 20.0), (5.0, 0.1)])
def test_a_step_is_the_papers(q: float, lipschitz: float) -> None:
    """Algorithm 2 written out in float64, with sites weighted by their images (equation 2)."""
    strategy = QFFL(QFFLSettings(q=q, lipschitz=lipschitz, learning_rate=0.05))
    start = strategy.initial_arrays(2, 6, seed=0)
    updates = updates_of(strategy, start)
    flat = lambda arrays: np.concatenate([arrays["weight"].ravel(), arrays["bias"]]).astype(float)  # noqa: E731
    w = flat(start)
    deltas, steps = np.zeros_like(w), 0.0
    for update in updates.values():
        loss, gradient = update.metrics["loss-before"], lipschitz * (w - flat(update.arrays))
        deltas += update.examples * loss**q * gradient
        steps += update.examples * (q * loss ** (q - 1) * gradient @ gradient + lipschitz * loss**q)
    following = flat(strategy.aggregate(start, updates))
    np.testing.assert_allclose(following, w - deltas / steps, rtol=1e-4, atol=1e-6)
    assert np.abs(following - w).max() > 1e-4


def test_with_equal_sites_a_step_is_flowers() -> None:
    strategy = QFFL(QFFLSettings(q=1.7, lipschitz=4.0, learning_rate=0.05))
    start = strategy.initial_arrays(2, 6, seed=0)
    updates = {k: replace(u, examples=11) for k, u in updates_of(strategy, start).items()}
    total, steps = [np.zeros((2, 6)), np.zeros(2)], 0.0
    for update in updates.values():
        local = [update.arrays[name].astype(np.float64) for name in ("weight", "bias")]
        fixed = [start[name].astype(np.float64) for name in ("weight", "bias")]
        delta, h = compute_delta_and_h(fixed, local, 1.7, 4.0, update.metrics["loss-before"])
        total = [t + d for t, d in zip(total, delta, strict=True)]
        steps += h
    following = strategy.aggregate(start, updates)
    for name, delta in zip(("weight", "bias"), total, strict=True):
        np.testing.assert_allclose(following[name], start[name] - delta / steps, rtol=1e-4)


def test_the_two_numbers_are_what_they_say() -> None:
    strategy = QFFL(QFFLSettings(learning_rate=0.05))
    start = strategy.initial_arrays(2, 6, seed=0)
    for data in SITES:
        update = strategy.site_update(data, start, 1, 0)
        shares = strategy.head(start).probabilities(data.features)
        assert update.metrics["loss-before"] == pytest.approx(log_loss(data.labels, shares))
        moved = sum(float(((update.arrays[k] - start[k]) ** 2).sum()) for k in start)
        assert update.metrics["moved"] == pytest.approx(moved, rel=1e-5)
        same = FedAvg(FedAvgSettings(learning_rate=0.05)).site_update(data, start, 1, 0)
        np.testing.assert_array_equal(update.arrays["weight"], same.arrays["weight"])
        assert update.metrics["train-loss"] == same.metrics["train-loss"]
        strategy.check_update(start, update)


def test_a_certain_mistake_has_a_finite_loss() -> None:
    strategy = QFFL()
    arrays = {"weight": np.full((2, 6), 1e6, np.float32), "bias": np.array([0, 3e4], np.float32)}
    arrays["weight"][1] *= -1
    update = strategy.site_update(SITES[0], arrays, 1, 0)
    assert np.isfinite(update.metrics["loss-before"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"moved": 1e3}, "moved by 1e\\+03"),
        ({"moved": 0.0}, "moved by 0"),
        ({"loss-before": -0.5}, "negative loss"),
        ({"loss-before": float("nan")}, "not finite"),
        (None, "lacks the numbers"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change: dict[str, float] | None, words: str) -> None:
    strategy = QFFL(QFFLSettings(learning_rate=0.05))
    start = strategy.initial_arrays(2, 6, seed=0)
    update = strategy.site_update(SITES[0], start, 1, 0)
    metrics = {} if change is None else update.metrics | change
    with pytest.raises(ValueError, match=words):
        strategy.check_update(start, replace(update, metrics=metrics))


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0, 5.0])
def test_no_summand_is_beyond_its_limit(q: float) -> None:
    strategy = QFFL(QFFLSettings(q=q, lipschitz=50.0))
    assert isinstance(strategy, Additive)
    start = strategy.initial_arrays(2, 6, seed=0)
    limits = strategy.summand_limits(start)
    like = strategy.summand_like(start)
    largest = {name: np.full_like(array, 2.0**10) for name, array in start.items()}
    for loss in (0.0, SMALLEST_LOSS, 0.01, 0.7, 3.0, LARGEST_LOSS, 1e6):
        update = SiteUpdate(largest, 2**24, {"loss-before": loss, "moved": LARGEST_MOVE})
        summand = strategy.summand(update)
        assert {k: v.shape for k, v in summand.items()} == {k: v.shape for k, v in like.items()}
        assert all(v.dtype == np.float64 for v in summand.values())
        for name, part in summand.items():
            assert np.abs(part).max() <= limits[name] * (1 + 1e-12)


def test_fairness_serves_the_worst_site_better() -> None:
    """Two large sites agree, a small one does not: its loss falls, theirs rises."""
    sites = [site("a", 200, 1), site("b", 200, 2), site("odd", 40, 3, turn=1.57)]
    worst, best = {}, {}
    for q in (0.0, 3.0):
        strategy = QFFL(QFFLSettings(q=q, learning_rate=0.02, local_epochs=3))
        arrays = strategy.initial_arrays(2, 6, seed=0)
        for round_ in range(1, 41):
            sent = {data.site: strategy.site_update(data, arrays, round_, 0) for data in sites}
            arrays = strategy.aggregate(arrays, sent)
        head = strategy.head(arrays)
        losses = [log_loss(d.labels, head.probabilities(d.features)) for d in sites]
        worst[q], best[q] = max(losses), min(losses)
        assert losses[2] == worst[q]
    assert worst[3.0] < 0.9 * worst[0.0]
    assert best[3.0] > best[0.0]
