"""Federated tuning of the last blocks, without transport: on drawn images and the demo backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dermino_core.datasets.synthetic import write_site
from dermino_core.errors import DerminoError
from dermino_core.manifest import read_manifest
from dermino_strategies.base import Arrays, SiteData, SiteImages, SiteUpdate
from dermino_strategies.facts import leaving
from dermino_strategies.lora import LoRA
from dermino_strategies.registry import get_strategy

WIDTH = 192
SMALL = {"blocks": 2, "rank": 2, "views": 2, "local_epochs": 1, "batch_size": 4, "view_share": 0.4}


def lora(**settings: object) -> LoRA:
    made = get_strategy("lora", SMALL | settings)
    assert isinstance(made, LoRA)
    return made


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[SiteData]:
    cache = tmp_path_factory.mktemp("cache")
    found = []
    for name, images in (("synthetic-mednode", 8), ("synthetic-ph2", 5)):
        folder = tmp_path_factory.mktemp(name)
        manifest = read_manifest(write_site(folder, site=name, images=images), root=folder)
        paths = tuple(manifest.path_of(record) for record in manifest.records)
        labels = np.arange(len(paths)) % 2
        given = SiteImages(paths, "demo", cache, "fp32", "cpu")
        features = np.zeros((len(paths), WIDTH), np.float32)
        found.append(SiteData(name, features, labels, 2, images=given))
    return found


def rounds(
    strategy: LoRA, sites: list[SiteData], count: int, start: Arrays | None = None
) -> Arrays:
    arrays = start or strategy.initial_arrays(2, WIDTH, 0)
    first = count if start else 1
    for round_ in range(first, count + 1):
        updates = {s.site: strategy.site_update(s, arrays, round_, 0) for s in sites}
        arrays = strategy.aggregate(arrays, updates)
    return arrays


@pytest.mark.parametrize("settings", [{}, {"freeze_a": False}, {"method": "blocks"}])
def test_aggregate_is_the_example_weighted_mean(
    sites: list[SiteData], settings: dict[str, object]
) -> None:
    strategy = lora(**settings)
    start = strategy.initial_arrays(2, WIDTH, 0)
    updates = {s.site: strategy.site_update(s, start, 1, 0) for s in sites}
    result = strategy.aggregate(start, updates)
    assert list(result) == list(start)
    for name, array in result.items():
        if settings == {} and name.endswith(".a"):
            assert all(name not in update.arrays for update in updates.values())
            np.testing.assert_array_equal(array, start[name])
            continue
        expected = sum(u.arrays[name].astype(np.float64) * u.examples for u in updates.values())
        np.testing.assert_allclose(array, expected / 13, rtol=1e-5, atol=1e-8)
        assert array.dtype == np.float32
    said = {one.name: (one.shape, one.dtype) for one in leaving(strategy, 2, WIDTH)}
    for update in updates.values():
        strategy.check_update(start, update)
        assert update.metrics["train-loss"] > 0
        assert said == {key: (a.shape, str(a.dtype)) for key, a in update.arrays.items()}


def test_a_run_that_goes_on_is_the_run_that_never_stopped(sites: list[SiteData]) -> None:
    strategy = lora()
    whole = rounds(strategy, sites, 2)
    first = rounds(strategy, sites, 1)
    again = rounds(lora(), sites, 2, {name: array.copy() for name, array in first.items()})
    assert all((whole[name] == again[name]).all() for name in whole)
    assert any((whole[name] != first[name]).any() for name in whole)


def test_a_site_alone_is_its_own_training(sites: list[SiteData]) -> None:
    """The mean of one is what it sent, to the last bit but the division's."""
    strategy = lora()
    start = strategy.initial_arrays(2, WIDTH, 0)
    update = strategy.site_update(sites[0], start, 1, 0)
    for name, array in strategy.aggregate(start, {"a": update}).items():
        np.testing.assert_allclose(array, update.arrays.get(name, start[name]), rtol=1e-6)


def test_the_sum_is_all_that_the_coordinator_needs(sites: list[SiteData]) -> None:
    strategy = lora()
    start = strategy.initial_arrays(2, WIDTH, 0)
    updates = {s.site: strategy.site_update(s, start, 1, 0) for s in sites}
    like, limits = strategy.summand_like(start), strategy.summand_limits(start)
    total = {name: array.copy() for name, array in like.items()}
    for update in updates.values():
        summand = strategy.summand(update)
        assert set(summand) == set(like) == set(limits)
        for name, array in summand.items():
            assert array.shape == like[name].shape
            assert np.abs(array).max() <= limits[name]
            total[name] += array
    plain = strategy.aggregate(start, updates)
    summed = strategy.from_sum(start, total)
    for name, array in plain.items():
        np.testing.assert_allclose(summed[name], array, rtol=1e-6, atol=1e-9)


def test_what_a_site_sends_is_small() -> None:
    strategy = get_strategy("lora")
    arrays = strategy.initial_arrays(2, 384, 0)
    sent = sum(array.nbytes for array in strategy.update_like(arrays).values())
    rows = 1152 + 384 + 1536 + 384
    assert sent == 4 * (4 * 8 * rows + 2 * 384 + 2)
    both = get_strategy("lora", {"freeze_a": False}).update_like(arrays)
    assert sum(a.nbytes for a in both.values()) == sum(a.nbytes for a in arrays.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_adapters_that_are_no_numbers_are_refused(bad: float) -> None:
    strategy = lora()
    arrays = strategy.initial_arrays(2, WIDTH, 0)
    sent = strategy.update_like(arrays)
    sent["last1.mlp.fc1.b"][0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        strategy.check_update(arrays, SiteUpdate(sent, 3))
    del sent["last1.mlp.fc1.b"]
    with pytest.raises(ValueError, match="sent the arrays"):
        strategy.check_update(arrays, SiteUpdate(sent, 3))


def test_without_images_there_is_no_tuning() -> None:
    strategy = lora()
    data = SiteData("a", np.zeros((4, WIDTH), np.float32), np.arange(4) % 2, 2)
    with pytest.raises(DerminoError, match="without them") as caught:
        strategy.site_update(data, strategy.initial_arrays(2, WIDTH, 0), 1, 0)
    assert caught.value.code == "CONFIG_INVALID"


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(DerminoError, match="'rank'"):
        get_strategy("lora", {"rank": 0})


def test_later_rounds_can_be_slower(sites: list[SiteData]) -> None:
    strategy = lora(decay=0.5)
    assert strategy._recipe(3).learning_rate == strategy._recipe(1).learning_rate / 4
    assert strategy._recipe(3).head_learning_rate == strategy._recipe(1).head_learning_rate / 4


def test_the_backbone_is_a_folder(sites: list[SiteData], tmp_path: Path) -> None:
    from dermino_core.backbone import describe_backbone

    strategy = lora()
    arrays = rounds(strategy, sites, 1)
    card = strategy.write_backbone(tmp_path, "demo", arrays)
    assert describe_backbone(str(tmp_path), cache_dir=None).fingerprint == card.fingerprint
    assert card.fingerprint != describe_backbone("demo", cache_dir=None).fingerprint
    strategy.check_backbone(str(tmp_path))
