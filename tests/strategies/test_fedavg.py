"""FedAvg against its equation."""

from __future__ import annotations

import numpy as np
import pytest

from dermino_core.errors import DerminoError
from dermino_strategies.base import SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.registry import get_strategy


def site(name: str, n: int, seed: int) -> SiteData:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return SiteData(name, x, (x[:, 0] > 0).astype(np.int64), 2)


def test_aggregate_is_the_example_weighted_mean() -> None:
    strategy = FedAvg()
    start = strategy.initial_arrays(2, 6, seed=0)
    sites = [site("a", 30, 1), site("b", 90, 2), site("c", 7, 3)]
    updates = {s.site: strategy.site_update(s, start, 1, 0) for s in sites}
    total = sum(u.examples for u in updates.values())
    for name, result in strategy.aggregate(start, updates).items():
        expected = sum(
            u.arrays[name].astype(np.float64) * u.examples / total for u in updates.values()
        )
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
        assert result.dtype == np.float32


def test_order_of_replies_does_not_change_a_bit() -> None:
    strategy = FedAvg()
    start = strategy.initial_arrays(2, 6, seed=0)
    updates = {
        n: strategy.site_update(site(n, 20 + i, i), start, 1, 0) for i, n in enumerate("abc")
    }
    one = strategy.aggregate(start, updates)
    other = strategy.aggregate(start, dict(reversed(updates.items())))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_one_site_alone_is_its_own_head() -> None:
    strategy = FedAvg(FedAvgSettings(learning_rate=0.01))
    start = strategy.initial_arrays(2, 6, seed=0)
    update = strategy.site_update(site("a", 30, 1), start, 1, 0)
    np.testing.assert_array_equal(
        strategy.aggregate(start, {"a": update})["weight"], update.arrays["weight"]
    )
    assert (update.arrays["weight"] != start["weight"]).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": np.full((2, 6), np.nan, np.float32)}, "NaN or infinite"),
        ({"bias": np.array([0, np.inf], np.float32)}, "NaN or infinite"),
        ({"weight": np.zeros((3, 6), np.float32)}, "shape"),
        ({"weight": np.zeros((2, 6), np.float64)}, "type"),
        ({"extra": np.zeros(1, np.float32)}, "sent the arrays"),
    ],
)
def test_poisonous_updates_are_refused(change: dict[str, np.ndarray], words: str) -> None:
    strategy = FedAvg()
    start = strategy.initial_arrays(2, 6, seed=0)
    with pytest.raises(ValueError, match=words):
        strategy.check_update(start, SiteUpdate({**start, **change}, examples=5))


def test_claims_of_no_images_and_infinite_loss_are_refused() -> None:
    strategy = FedAvg()
    start = strategy.initial_arrays(2, 6, seed=0)
    with pytest.raises(ValueError, match="0 images"):
        strategy.check_update(start, SiteUpdate(start, examples=0))
    with pytest.raises(ValueError, match="train-loss"):
        strategy.check_update(start, SiteUpdate(start, 5, {"train-loss": float("nan")}))


def test_unknown_strategy_and_setting_say_what_is_known() -> None:
    with pytest.raises(DerminoError, match=r"Known: .*fedavg, .*ridge"):
        get_strategy("fedmagic")
    with pytest.raises(DerminoError, match="learning_rate"):
        get_strategy("fedavg", {"learning_rate": -1})
    with pytest.raises(DerminoError, match=r"Its settings: .*local_epochs"):
        get_strategy("fedavg", {"learningrate": 1})
