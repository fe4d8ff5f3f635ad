"""Whose update does not fit: lengths, directions, and when nobody may be named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermino_strategies.base import Arrays, SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.registry import get_strategy
from dermino_strategies.suspicion import (
    LONGEST,
    Finding,
    Outline,
    compare,
    outline,
    suspicious,
)

Vector = npt.NDArray[np.float64]


def agreeing(count: int, *, spread: float = 0.5, seed: int = 0, width: int = 40) -> list[Vector]:
    """Changes along a common direction, each with its own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=width)
    return [common + spread * rng.normal(size=width) for _ in range(count)]


def outlines(changes: list[Vector]) -> dict[str, Outline]:
    """As a coordinator has them: from heads and the global head."""
    shape = (2, len(changes[0]) // 2 - 1)
    arrays: Arrays = {"weight": np.full(shape, 0.3, np.float32), "bias": np.zeros(2, np.float32)}
    named = {}
    for number, change in enumerate(changes):
        weight = (0.3 + change[2:].reshape(shape)).astype(np.float32)
        sent = {"weight": weight, "bias": change[:2].astype(np.float32)}
        named[f"site-{number}"] = kept(arrays, SiteUpdate(sent, examples=10))
    return named


def kept(arrays: Arrays, update: SiteUpdate) -> Outline:
    found = outline(FedAvg(), arrays, update)
    assert found is not None
    return found


def names(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.site, finding.reason) for finding in findings]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12, 40])
def test_honest_sites_are_not_named(count: int) -> None:
    assert suspicious(outlines(agreeing(count))) == []


@pytest.mark.parametrize("count", [3, 4, 5, 12, 40])
@pytest.mark.parametrize(("factor", "reason"), [(1000, "length"), (0.001, "length")])
def test_a_change_of_another_length_is_named(count: int, factor: float, reason: str) -> None:
    changes = agreeing(count)
    changes[1] = factor * changes[1]
    found = suspicious(outlines(changes))
    assert names(found) == [("site-1", reason)]
    assert found[0].value == pytest.approx(factor, rel=0.5)
    assert (found[0].score > 6) == (factor > 1)
    words = "times as far" if factor > 1 else "only 1/"
    assert found[0].sentence.startswith("site-1 changed the model")
    assert words in found[0].sentence


@pytest.mark.parametrize("count", [3, 4, 5, 12, 40])
def test_a_change_against_the_others_is_named(count: int) -> None:
    changes = agreeing(count)
    changes[2] = -changes[2]
    found = suspicious(outlines(changes))
    assert names(found) == [("site-2", "direction")]
    assert found[0].value < -0.5
    assert found[0].score < -3
    assert "against the other" in found[0].sentence
    assert ("cannot tell who is right" in found[0].sentence) == (count == 3)


def test_long_and_against_are_two_findings() -> None:
    changes = agreeing(5)
    changes[0] = -1000 * changes[0]
    assert names(suspicious(outlines(changes))) == [("site-0", "length"), ("site-0", "direction")]


def test_a_site_that_sends_the_model_back_is_named() -> None:
    changes = agreeing(5)
    changes[3] = np.zeros_like(changes[3])
    found = suspicious(outlines(changes))
    assert names(found) == [("site-3", "length")]
    assert "sent the model back as it was" in found[0].sentence


def test_if_nobody_changes_the_model_nobody_is_named() -> None:
    assert suspicious(outlines([np.zeros(40)] * 4)) == []


def test_where_the_others_disagree_nobody_is_named() -> None:
    """Near convergence honest sites pull apart: each against the rest."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        changes = [rng.normal(size=4) for _ in range(5)]
        changes = [change - np.mean(changes, axis=0) for change in changes]
        padded = [np.concatenate([change, np.zeros(36)]) for change in changes]
        assert [f for f in suspicious(outlines(padded)) if f.reason == "length"] == []
        if suspicious(outlines(padded)):
            pytest.fail("a site was named although the others do not agree")


def test_two_against_two_names_nobody() -> None:
    one, two, three, four = agreeing(4)
    assert suspicious(outlines([one, two, -three, -four])) == []


def test_two_of_three_must_agree_well() -> None:
    """Three directions in a plane: the third is against both, which are `angle` apart."""

    def found(angle: float) -> list[Finding]:
        changes = [np.zeros(40) for _ in range(3)]
        for change, phi in zip(changes, (angle / 2, -angle / 2, np.pi), strict=True):
            change[:2] = np.cos(phi), np.sin(phi)
        return suspicious(outlines(changes))

    assert names(found(np.radians(50))) == [("site-2", "direction")]
    assert found(np.radians(70)) == []


def test_honest_lengths_may_differ_by_their_images() -> None:
    changes = agreeing(6)
    lengths = (0.25, 0.5, 1.0, 1.0, 2.0, 4.5)
    assert suspicious(outlines([f * c for f, c in zip(lengths, changes, strict=True)])) == []


def test_numbers_are_those_of_the_definitions() -> None:
    changes = [f * c for f, c in zip((1.0, 3.0, 0.5, 20.0), agreeing(4, spread=1.0), strict=True)]
    compared = compare(outlines(changes))
    for k, change in enumerate(changes):
        seen = compared[f"site-{k}"]
        others = [c for j, c in enumerate(changes) if j != k]
        lengths = sorted(float(np.sqrt((c**2).sum())) for c in others)
        assert seen.length == pytest.approx(float(np.sqrt((change**2).sum())), rel=1e-4)
        assert seen.ratio == pytest.approx(seen.length / lengths[1], rel=1e-3)
        apart = sorted(abs(np.log(length / lengths[1])) for length in lengths)
        spread = max(1.4826 * apart[1], np.log(10) / 6)
        assert seen.length_score == pytest.approx(np.log(seen.ratio) / spread, rel=1e-2, abs=1e-2)
        mean = [sorted(c[i] / np.linalg.norm(c) for c in others)[1] for i in range(40)]
        cosine = change @ np.array(mean) / np.linalg.norm(change) / np.linalg.norm(mean)
        assert seen.cosine == pytest.approx(float(cosine), abs=1e-4)


def test_sums_count_per_image() -> None:
    """A large hospital's sums are larger than a small one's; per image they are not."""
    rng = np.random.default_rng(0)
    sums = {}
    for number, images in enumerate((20, 100, 4000, 500)):
        total = rng.normal(loc=1, size=(images, 30)).sum(axis=0)
        sent = {"total.sums": total, "total.counts": np.array([images / 2, images / 2])}
        sums[f"site-{number}"] = kept({}, SiteUpdate(sent, images))
    assert suspicious(sums) == []
    assert sums["site-2"].length == pytest.approx(sums["site-1"].length, rel=0.2)


def test_long_updates_are_folded_alike_at_every_site() -> None:
    changes = agreeing(5, width=30_002)
    changes[4] = -changes[4]
    folds = outlines(changes)
    assert {len(seen.direction) for seen in folds.values()} == {LONGEST}
    cosine = changes[0] @ changes[1] / np.linalg.norm(changes[0]) / np.linalg.norm(changes[1])
    folded = float(folds["site-0"].direction @ folds["site-1"].direction)
    assert folded == pytest.approx(float(cosine), abs=0.05)
    assert folds["site-0"].length == pytest.approx(float(np.linalg.norm(changes[0])), rel=1e-4)
    assert names(suspicious(folds)) == [("site-4", "direction")]


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(st.lists(FINITE, min_size=4, max_size=4), min_size=1, max_size=7))
def test_no_finite_update_breaks_it(sent: list[list[float]]) -> None:
    zeros = {"weight": np.zeros((2, 1), np.float32), "bias": np.zeros(2, np.float32)}
    kept_ones = {}
    for number, values in enumerate(sent):
        array = np.array(values, np.float32)
        update = SiteUpdate({"weight": array[:2].reshape(2, 1), "bias": array[2:]}, 3)
        kept_ones[f"site-{number}"] = kept(zeros, update)
    for finding in suspicious(kept_ones):
        assert np.isfinite(finding.value)
        assert np.isfinite(finding.score)
        assert finding.sentence.startswith(finding.site)


def labelled(seed: int, images: int, *, width: int = 12) -> SiteData:
    """Two classes that differ alike at every site, which has its own mean image and shares."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(images) < images * rng.uniform(0.2, 0.8)).astype(np.int64)
    common = np.random.default_rng(99).normal(size=width)
    features = 5 * rng.normal(size=width) + rng.normal(size=(images, width))
    return SiteData(f"site-{seed}", (features + labels[:, None] * common).astype("f4"), labels, 2)


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_swapped_labels_show_in_sums(method: str) -> None:
    """However unlike the sites' mean images, shares and sizes are."""
    strategy = get_strategy(method, {})
    arrays = strategy.initial_arrays(2, 12, 0)
    sites = [labelled(seed, images) for seed, images in enumerate((40, 300, 60, 900, 50))]
    kept_ones = {}
    for bad in (None, 3):
        for number, data in enumerate(sites):
            sent = replace(data, labels=1 - data.labels) if number == bad else data
            update = strategy.site_update(sent, arrays, 1, 0)
            found = outline(strategy, arrays, update)
            assert found is not None
            kept_ones[data.site] = found
        assert names(suspicious(kept_ones)) == ([] if bad is None else [("site-3", "direction")])


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_the_contrast_is_that_of_the_class_means(method: str) -> None:
    strategy = get_strategy(method, {})
    arrays = strategy.initial_arrays(2, 12, 0)
    data = labelled(5, 80)
    change = strategy.change(arrays, strategy.site_update(data, arrays, 1, 0))["contrast"]
    means = [data.features[data.labels == c].astype(float).mean(axis=0) for c in (0, 1)]
    np.testing.assert_allclose(change, [(means[0] - means[1]) / 2, (means[1] - means[0]) / 2])
    if method == "logistic":
        later = arrays | {"counts": np.array([40.0, 40.0])}
        assert outline(strategy, later, strategy.site_update(data, later, 2, 0)) is None
    one = replace(data, labels=np.zeros_like(data.labels))
    assert outline(strategy, arrays, strategy.site_update(one, arrays, 1, 0)) is None
