"""Median, trimmed mean and Krum against slow readings of their definitions, and under attack."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import trim_mean

from dermino_core.metrics import macro_auroc
from dermino_strategies.base import Additive, SiteData, SiteUpdate, Strategy, Tuning
from dermino_strategies.facts import ATTACKS, FACTS, REFUSED
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.krum import Krum, KrumSettings
from dermino_strategies.median import Median, MedianSettings
from dermino_strategies.registry import STRATEGIES, get_strategy
from dermino_strategies.trimmed_mean import TrimmedMean, TrimmedMeanSettings
from tests.benchmarks.robustness import (
    LEARNING_RATE,
    ON_UPDATES,
    WORST_LOSS,
    attacked_federation,
)

START = FedAvg().initial_arrays(2, 5, seed=0)


def drawn(count: int, seed: int = 0, *, scale: float = 1.0) -> dict[str, SiteUpdate]:
    """Updates of `count` sites around the global head; their images differ wildly."""
    rng = np.random.default_rng(seed)
    return {
        f"site-{number:02d}": SiteUpdate(
            {
                name: (array + scale * rng.normal(size=array.shape)).astype(np.float32)
                for name, array in START.items()
            },
            examples=int(rng.integers(1, 10_000)),
        )
        for number in range(count)
    }


def column(updates: dict[str, SiteUpdate], name: str, place: tuple[int, ...]) -> list[float]:
    return sorted(float(update.arrays[name][place]) for update in updates.values())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 10, 11])
def test_the_median_is_the_middle_of_each_coordinate(count: int) -> None:
    updates = drawn(count)
    result = Median().aggregate(START, updates)
    for name, array in result.items():
        assert array.dtype == np.float32
        for place in np.ndindex(array.shape):
            values = column(updates, name, place)
            middle = (values[(count - 1) // 2] + values[count // 2]) / 2
            assert array[place] == pytest.approx(middle, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("count", "malicious"), [(3, 1), (5, 1), (5, 2), (9, 3), (10, 0), (49, 1)])
def test_the_trimmed_mean_leaves_the_extremes_out(count: int, malicious: int) -> None:
    updates = drawn(count)
    strategy = TrimmedMean(TrimmedMeanSettings(malicious=malicious))
    result = strategy.aggregate(START, updates)
    stacked = np.stack([update.arrays["bias"] for update in updates.values()])
    by_scipy = trim_mean(stacked, (malicious + 1e-9) / count, axis=0)
    np.testing.assert_allclose(result["bias"], by_scipy, rtol=1e-5)
    for name, array in result.items():
        assert array.dtype == np.float32
        for place in np.ndindex(array.shape):
            kept = column(updates, name, place)[malicious : count - malicious]
            assert array[place] == pytest.approx(sum(kept) / len(kept), rel=1e-5, abs=1e-6)


def slow_krum(updates: dict[str, SiteUpdate], malicious: int, keep: int) -> list[str]:
    """Blanchard et al., section 4, one distance at a time."""
    flat = {
        site: np.concatenate([update.arrays[name].ravel() for name in ("bias", "weight")])
        for site, update in updates.items()
    }
    scores: dict[str, float] = {}
    for site, mine in flat.items():
        apart = sorted(
            float(sum((a - b) ** 2 for a, b in zip(mine.tolist(), other.tolist(), strict=True)))
            for name, other in flat.items()
            if name != site
        )
        scores[site] = sum(apart[: len(updates) - malicious - 2])
    return sorted(sorted(scores, key=lambda site: scores[site])[:keep])


@pytest.mark.parametrize(
    ("count", "malicious", "keep"),
    [(5, 1, 1), (5, 1, 3), (7, 2, 1), (7, 2, 5), (12, 3, 4), (6, 0, 6)],
)
def test_krum_takes_the_updates_with_the_closest_company(
    count: int, malicious: int, keep: int
) -> None:
    strategy = Krum(KrumSettings(malicious=malicious, keep=keep))
    for seed in range(3):
        updates = drawn(count, seed)
        chosen = slow_krum(updates, malicious, keep)
        assert strategy.chosen(START, updates) == chosen
        result = strategy.aggregate(START, updates)
        for name, array in result.items():
            mean = np.mean([updates[site].arrays[name] for site in chosen], axis=0)
            np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-6)
            assert array.dtype == np.float32


def test_krum_sees_small_changes_of_a_large_head() -> None:
    """In float32, squares of the head would drown the distances between the changes."""
    large = {name: np.full_like(array, 300.0) for name, array in START.items()}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        updates = {}
        for number in range(5):
            sent = {
                name: (array + rng.integers(-50, 50, array.shape) * 2.0**-13).astype(np.float32)
                for name, array in large.items()
            }
            updates[f"site-{number}"] = SiteUpdate(sent, 10)
        assert Krum().chosen(large, updates) == slow_krum(updates, 1, 1)


METHODS: dict[str, Callable[[], Strategy]] = {
    "median": lambda: Median(MedianSettings(learning_rate=LEARNING_RATE)),
    "trimmed_mean": lambda: TrimmedMean(TrimmedMeanSettings(learning_rate=LEARNING_RATE)),
    "krum": lambda: Krum(KrumSettings(learning_rate=LEARNING_RATE)),
    "multi-krum": lambda: Krum(KrumSettings(learning_rate=LEARNING_RATE, keep=3)),
}


@pytest.mark.parametrize("method", METHODS)
def test_one_site_cannot_drag_the_result_out_of_the_honest_range(method: str) -> None:
    strategy = METHODS[method]()
    for seed, value in itertools.product(range(5), (1e30, -1e30, 3.0)):
        updates = drawn(5, seed)
        bad = {name: np.full_like(array, value) for name, array in START.items()}
        updates["site-02"] = SiteUpdate(bad, 2**40)
        honest = [update for site, update in updates.items() if site != "site-02"]
        for name, array in strategy.aggregate(START, updates).items():
            stacked = np.stack([update.arrays[name] for update in honest])
            assert (array >= stacked.min(axis=0) - 1e-6).all()
            assert (array <= stacked.max(axis=0) + 1e-6).all()


@pytest.mark.parametrize("method", METHODS)
def test_claimed_images_and_order_of_replies_change_nothing(method: str) -> None:
    strategy = METHODS[method]()
    updates = drawn(6)
    other = {site: SiteUpdate(update.arrays, 1) for site, update in reversed(list(updates.items()))}
    one, two = strategy.aggregate(START, updates), strategy.aggregate(START, other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])


@pytest.mark.parametrize("method", METHODS)
def test_a_site_alone_is_its_own_head(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each hospital's baseline is a federation of itself: no warning either."""
    strategy = METHODS[method]()
    update = drawn(1)["site-00"]
    with caplog.at_level(logging.WARNING, "dermino.strategies"):
        result = strategy.aggregate(START, {"alone": update})
    for name, array in result.items():
        np.testing.assert_array_equal(array, update.arrays[name])
    assert caplog.records == []


@pytest.mark.parametrize(("method", "least"), [("trimmed_mean", 3), ("krum", 5)])
def test_too_few_sites_end_no_run_but_are_told(
    method: str, least: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One refused site of five leaves four: that it sent rubbish must not stop the others."""
    strategy = METHODS[method]()
    with caplog.at_level(logging.WARNING, "dermino.strategies"):
        result = strategy.aggregate(START, drawn(least - 1))
        assert all(np.isfinite(array).all() for array in result.values())
        assert f"{least} sites would do" in caplog.text
        caplog.clear()
        strategy.aggregate(START, drawn(least))
        assert caplog.text == ""


@pytest.mark.parametrize("method", METHODS)
def test_they_need_each_sites_own_update(method: str) -> None:
    assert not isinstance(METHODS[method](), Additive)


@functools.cache
def five_sites(seed: int) -> dict[str, SiteData]:
    """Overlapping clouds; hospitals differ in number, share of the classes and a shift.

    Features are as long as those of a DINOv2 ViT-S (about 44), so that rates mean the same.
    """
    rng = np.random.default_rng(seed)
    separation = rng.normal(size=24)
    separation *= 1.6 / np.linalg.norm(separation)
    sites = {}
    for name, images, share in (
        *(("a", 60, 0.3), ("b", 120, 0.5), ("bad", 160, 0.45)),
        *(("c", 90, 0.4), ("d", 100, 0.6)),
    ):
        labels = (rng.uniform(size=images) < share).astype(np.int64)
        features = rng.normal(size=(images, 24)) + labels[:, None] * separation
        features += 0.3 * rng.normal(size=24)
        sites[name] = SiteData(name, (8 * features).astype(np.float32), labels, 2)
    return sites


@functools.cache
def honest_auroc(make: Callable[[], Strategy], attack: str, rounds: int) -> float:
    """Mean over two federations of the honest sites' AUROC."""
    scores = []
    for seed in range(2):
        sites = five_sites(seed)
        done = attacked_federation(make(), sites, bad="bad", attack=attack, rounds=rounds)
        assert done.refused == 0
        scores += [
            macro_auroc(data.labels, done.head.probabilities(data.features))[0]
            for name, data in sites.items()
            if name != "bad"
        ]
    return float(np.mean(scores))


ROUNDS = 20
"""Flipped signs slow the robust methods down before they are outvoted."""


@pytest.mark.parametrize("attack", REFUSED)
@pytest.mark.parametrize("method", METHODS)
def test_rubbish_changes_nothing(method: str, attack: str) -> None:
    """Bit for bit what the others would have made without that site."""
    heads = [
        attacked_federation(METHODS[method](), five_sites(0), bad="bad", attack=each, rounds=3).head
        for each in ("absent", attack)
    ]
    np.testing.assert_array_equal(heads[0].weight, heads[1].weight)


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - set(REFUSED)))
@pytest.mark.parametrize("method", METHODS)
def test_they_survive_every_attack(method: str, attack: str) -> None:
    without = honest_auroc(METHODS[method], "absent", ROUNDS)
    assert without > 0.8
    assert honest_auroc(METHODS[method], attack, ROUNDS) > without - WORST_LOSS


def plain() -> Strategy:
    return FedAvg(FedAvgSettings(learning_rate=LEARNING_RATE))


@pytest.mark.parametrize("attack", ["scaled", "sign-flipped"])
def test_the_attack_is_one(attack: str) -> None:
    """The same lie that they survive ruins the plain mean."""
    without = honest_auroc(plain, "absent", ROUNDS)
    assert honest_auroc(plain, attack, ROUNDS) < without - 2 * WORST_LOSS


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_method_claims_more_than_is_tested(name: str) -> None:
    """Rubbish is refused by every method; only those above may claim to survive the rest."""
    claimed = set(FACTS[name].survives)
    assert claimed <= (set(ATTACKS) if name in METHODS else set(REFUSED))
    strategy, data = get_strategy(name), five_sites(0)["a"]
    arrays = strategy.initial_arrays(2, data.features.shape[1], 0)
    update = SiteUpdate(strategy.update_like(arrays), 1)
    if not isinstance(strategy, Tuning):  # that would take images
        update = strategy.site_update(data, arrays, 1, 0)
    strategy.check_update(arrays, update)
    for attack in claimed & set(REFUSED):
        with pytest.raises(ValueError, match="NaN or infinite"):
            strategy.check_update(arrays, ON_UPDATES[attack](arrays, update))
