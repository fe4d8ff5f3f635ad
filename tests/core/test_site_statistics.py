"""What sites tell before training: exact as pooled data, silent where counts are few."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.site_statistics import (
    FeatureSummary,
    SiteStatistics,
    ToldCounts,
    class_shares,
    drift,
    images_per_group,
    pooled,
    summarise_features,
    told_counts,
)


def site(
    features: np.ndarray, labels: np.ndarray, groups: list[str] | None = None, classes: int = 2
) -> SiteStatistics:
    groups = groups or [str(i) for i in range(len(features))]
    counts = np.bincount(labels, minlength=classes)
    told = ToldCounts({str(c): int(n) for c, n in enumerate(counts)})
    summary = summarise_features(features, labels, groups, classes, 5)
    return SiteStatistics(len(features), told, summary, images_per_group(groups))


def summary_of(one: SiteStatistics) -> FeatureSummary:
    assert one.features is not None
    return one.features


def mixed(rng: np.random.Generator, images: int, mixing: np.ndarray, shift: float = 0.0):
    """Correlated features, half of them skewed, and labels that have nothing to do with them."""
    raw = rng.normal(size=(images, len(mixing)))
    raw[:, ::2] = rng.exponential(size=raw[:, ::2].shape) - 1
    return raw @ mixing + shift, rng.integers(0, 2, images)


def mixing(width: int, seed: int = 0) -> np.ndarray:
    """A few strong directions, as features of a backbone have."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(width, width)) * np.exp(-np.arange(width) / 8)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_mean_and_variance_are_those_of_pooled_data(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [3 * rng.normal(size=(n, 6)) + rng.normal(size=6) for n in (20, 35, 400)]
    sites = [site(x, rng.integers(0, 2, len(x))) for x in parts]
    mean, variance = pooled(sites)
    everything = np.concatenate(parts)
    np.testing.assert_allclose(mean, everything.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, everything.var(axis=0, ddof=1), rtol=1e-5)


def test_pooling_needs_every_site() -> None:
    one = SiteStatistics(30, ToldCounts({"a": 15, "b": 15}))
    for sites in ([], [one]):
        with pytest.raises(ValueError, match="not every site"):
            pooled(sites)


def test_means_of_few_images_are_not_told() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    told = summarise_features(x, np.repeat([0, 1], [40, 20]), ["a"] * 60, 2, 5)
    assert told is not None
    assert told.class_means is not None
    np.testing.assert_allclose(told.class_means[1], x[40:].mean(axis=0), rtol=1e-5)
    few = summarise_features(x, np.repeat([0, 1], [41, 19]), ["a"] * 60, 2, 5)
    assert few is not None
    assert few.class_means is None, "the mean of 19 would follow from the other two"
    assert summarise_features(x[:19], np.zeros(19, int), ["a"] * 19, 1, 5) is None
    assert summarise_features(x, np.zeros(60, int), ["a"] * 60, 1, 61) is None
    with pytest.raises(ValueError, match="NaN"):
        summarise_features(np.full((30, 2), np.nan), np.zeros(30, int), ["a"] * 30, 1, 5)


def possible(told: ToldCounts, total: int, minimum: int) -> list[tuple[int, ...]]:
    """All counts that would be told just so, by somebody who knows the rule and the total."""
    names = list(told.counts)
    free = [name for name in names if told.counts[name] is None]
    left = total - sum(count for count in told.counts.values() if count is not None)
    found = []
    for values in itertools.product(range(left + 1), repeat=max(len(free) - 1, 0)):
        if free and sum(values) <= left:
            whole = told.counts | dict(zip(free, (*values, left - sum(values)), strict=True))
            counts = {name: int(whole[name] or 0) for name in names}
            if told_counts(counts, minimum) == told:
                found.append(tuple(counts.values()))
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 14), min_size=2, max_size=4), st.integers(2, 6))
def test_no_count_that_is_not_told_can_be_found_out(numbers: list[int], minimum: int) -> None:
    counts = {f"class-{i}": count for i, count in enumerate(numbers)}
    told, total = told_counts(counts, minimum), sum(numbers)
    assert list(told.counts) == list(counts)
    assert all(told.counts[name] in (None, count) for name, count in counts.items())
    for name, count in counts.items():
        assert told.counts[name] is None or count >= minimum
        assert (name in told.few) <= (count < minimum)
    if total < minimum or None not in told.counts.values():
        assert min(numbers) >= minimum or total < minimum
        return
    worlds = possible(told, total, minimum)
    assert tuple(numbers) in worlds
    for place, name in enumerate(counts):
        values = {world[place] for world in worlds}
        if told.counts[name] is None:
            assert len(values) > 1, f"{name} must be {values}"
        if name in told.few:
            assert values == set(range(minimum))


def test_told_counts_by_hand() -> None:
    assert told_counts({"a": 100, "b": 5}, 5) == ToldCounts({"a": 100, "b": 5})
    assert told_counts({"a": 100, "b": 4}, 5) == ToldCounts({"a": None, "b": None}, ("b",))
    assert told_counts({"a": 100, "b": 4, "c": 9}, 5) == ToldCounts(
        {"a": None, "b": None, "c": 9}, ("b",)
    )
    assert told_counts({"a": 5, "b": 0}, 5) == ToldCounts({"a": None, "b": None}), "b would be 0"


def test_patients_with_many_images_make_a_mean_less_certain() -> None:
    """The variance of the mean over many draws of patients, as the design effect predicts it."""
    rng = np.random.default_rng(0)
    means, predicted = [], []
    for _ in range(400):
        patients = np.repeat(np.arange(25), 4)
        x = rng.normal(size=(25, 5))[patients] + rng.normal(size=(100, 5))
        told = summarise_features(x, np.zeros(100, int), list(map(str, patients)), 1, 5)
        assert told is not None
        means.append(told.mean)
        predicted.append(told.design_effect * told.variance.mean() / 100)
    assert np.mean(predicted) == pytest.approx(np.var(means, axis=0).mean(), rel=0.1)
    x = rng.normal(size=(100, 5))
    alone = summarise_features(x, np.zeros(100, int), [str(i) for i in range(100)], 1, 5)
    assert alone is not None
    assert alone.design_effect == pytest.approx(1.0)
    assert images_per_group(["a", "a", "a", "b"]) == pytest.approx((3 * 3 + 1) / 4)


@pytest.mark.parametrize("images", [25, 100, 1000])
def test_effective_features(images: int) -> None:
    rng = np.random.default_rng(1)
    mix = mixing(30)
    covariance = mix.T @ mix
    spread = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(spread, spread)
    truth = 30**2 / (correlation**2).sum()
    seen = [
        summary_of(site(x, y)).effective_features
        for x, y in (mixed(rng, images, mix) for _ in range(60))
    ]
    assert np.median(seen) == pytest.approx(truth, rel=0.15)


def draw(rng: np.random.Generator, sizes: list[int], shift: float = 0.0) -> dict:
    mix = mixing(24)
    sites = {}
    for number, images in enumerate(sizes):
        x, y = mixed(rng, images, mix, shift if number == 0 else 0.0)
        sites[f"site-{number}"] = site(x, y)
    return sites


@pytest.mark.parametrize("first", [20, 200, 2000])
def test_without_drift_the_distance_is_what_chance_gives(first: int) -> None:
    rng = np.random.default_rng(first)
    found = [drift(draw(rng, [first, 60, 300])) for _ in range(80)]
    for name in ("site-0", "site-1", "site-2"):
        squares = [one[name].value ** 2 / one[name].chance ** 2 for one in found]
        assert np.mean(squares) == pytest.approx(1.0, abs=0.22), name
        scores = np.array([one[name].score for one in found])
        assert abs(scores.mean()) < 0.3, name
        assert 0.75 < scores.std() < 1.3, name
        assert (scores > 3).mean() <= 0.02, name


def test_drift_is_found() -> None:
    rng = np.random.default_rng(5)
    for size, shift in ((40, 3.0), (400, 1.0)):
        found = [drift(draw(rng, [size, 150, 300], shift))["site-0"] for _ in range(20)]
        assert min(one.score for one in found) > 3


def test_patients_are_not_taken_for_drift() -> None:
    """Twelve images of each patient: by images alone, chance would be called a difference."""
    rng = np.random.default_rng(2)
    mix = mixing(24)
    scores, careless = [], []
    for _ in range(60):
        sites, blind = {}, {}
        for number in range(3):
            patients = np.repeat(np.arange(20), 12)
            x = mixed(rng, 20, mix)[0][patients] + 0.3 * mixed(rng, 240, mix)[0]
            y = rng.integers(0, 2, 240)
            sites[f"site-{number}"] = site(x, y, list(map(str, patients)))
            blind[f"site-{number}"] = site(x, y)
        scores += [one.score for one in drift(sites).values()]
        careless += [one.score for one in drift(blind).values()]
    assert np.mean(np.array(scores) > 3) < 0.03
    assert np.mean(np.array(careless) > 3) > 0.5


def test_drift_by_hand() -> None:
    """Against the formula, site by site."""
    rng = np.random.default_rng(3)
    parts = [rng.normal(size=(n, 4)) * [1, 2, 3, 4] + m for n, m in ((20, 0), (50, 1), (90, 0.5))]
    found = drift({str(i): site(x, np.zeros(len(x), int)) for i, x in enumerate(parts)})
    spread = sum((len(x) - 1) * x.var(axis=0, ddof=1) for x in parts) / (160 - 3)
    for k, x in enumerate(parts):
        rest = np.concatenate([other for j, other in enumerate(parts) if j != k])
        gap = (x.mean(axis=0) - rest.mean(axis=0)) / np.sqrt(spread)
        assert found[str(k)].value == pytest.approx(float(np.sqrt((gap**2).mean())), rel=1e-4)
        chance = (
            x.var(axis=0, ddof=1) / len(x)
            + sum(len(o) * o.var(axis=0, ddof=1) for j, o in enumerate(parts) if j != k)
            / len(rest) ** 2
        )
        expected = float(np.sqrt((chance / spread).mean()))
        assert found[str(k)].chance == pytest.approx(expected, rel=1e-4)


def test_features_that_never_change_do_not_count() -> None:
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(40, 3)) for _ in range(2)]
    padded = [np.hstack([part, np.full((40, 2), 7.0)]) for part in x]
    plain = drift({str(i): site(p, np.zeros(40, int)) for i, p in enumerate(x)})
    assert drift({str(i): site(p, np.zeros(40, int)) for i, p in enumerate(padded)}) == plain
    flat = {str(i): site(np.ones((40, 3)), np.zeros(40, int)) for i in range(2)}
    assert drift(flat) == {}
    assert drift({"0": flat["0"]}) == {}


@pytest.mark.parametrize("per_patient", [1, 4])
def test_class_shares_beside_chance(per_patient: int) -> None:
    rng = np.random.default_rng(per_patient)
    squares, scores = [], []
    for _ in range(400):
        sites = {}
        for number, patients in enumerate((30, 80, 250)):
            labels = np.repeat(rng.choice(3, patients, p=[0.5, 0.3, 0.2]), per_patient)
            counts = np.bincount(labels, minlength=3)
            told = ToldCounts({str(c): int(n) for c, n in enumerate(counts)})
            name = f"site-{number}"
            sites[name] = SiteStatistics(len(labels), told, None, float(per_patient))
        found = class_shares(sites)["site-0"]
        squares.append(found.value / found.chance)
        scores.append(found.score)
    assert np.mean(squares) == pytest.approx(1.0, abs=0.1)
    assert abs(np.mean(scores)) < 0.25
    assert np.mean(np.array(scores) > 3) < 0.02


def test_class_shares_by_hand() -> None:
    told = {
        "a": SiteStatistics(100, ToldCounts({"x": 80, "y": 20})),
        "b": SiteStatistics(100, ToldCounts({"x": 50, "y": 50})),
        "c": SiteStatistics(300, ToldCounts({"x": 150, "y": 150})),
        "d": SiteStatistics(30, ToldCounts({"x": None, "y": None}, ("y",))),
    }
    found = class_shares(told)
    assert set(found) == {"a", "b", "c"}
    assert found["a"].value == pytest.approx(0.3)
    assert found["a"].score > 3
    assert found["b"].score < 3
    assert class_shares({"a": told["a"], "d": told["d"]}) == {}
