"""The exact search against scikit-learn and slow loops, on features made to mislead it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from dermino_core.errors import DerminoError
from dermino_core.evaluation import first_pass as first_pass_module
from dermino_core.evaluation import neighbours as neighbours_module
from dermino_core.evaluation.first_pass import FirstPass
from dermino_core.evaluation.neighbours import nearest, neighbour_votes, sums_by_class

WAYS = [("cpu", False), ("cpu", True), ("cpu:0", False)]
"""Device and bf16; `cpu:0` goes the way of a GPU."""


def slow(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One pair at a time in float64."""
    similarities, indices = [], []
    for q in queries.astype(np.float64):
        row = []
        for g in gallery.astype(np.float64):
            length = np.sqrt((q * q).sum()) * np.sqrt((g * g).sum())
            row.append(min(1.0, max(-1.0, (q * g).sum() / length)) if length > 0 else 0.0)
        order = sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k]
        similarities.append([row[j] for j in order])
        indices.append(order)
    return np.array(similarities), np.array(indices)


def direct(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in float64, without ties."""
    q, g = (x.astype(np.float64) for x in (queries, gallery))
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, g))
    similarity = q @ g.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_pass_module, "_COLUMNS", 16)


def force(monkeypatch: pytest.MonkeyPatch, *, fast: bool) -> None:
    monkeypatch.setattr(neighbours_module, "BF16_FROM", 0)
    monkeypatch.setattr(
        neighbours_module, "resolve_precision", lambda *_: "bf16" if fast else "fp32"
    )


def test_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(70, 24)).astype(np.float32)
    gallery = rng.normal(size=(300, 24)).astype(np.float32)
    reference = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute")
    distances, indices = reference.fit(gallery.astype(np.float64)).kneighbors(queries)
    found = nearest(queries, gallery, 7)
    np.testing.assert_array_equal(found[1], indices)
    np.testing.assert_allclose(found[0], 1 - distances, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 100),
    st.sampled_from(WAYS),
)
def test_ties_duplicates_and_zeros_as_in_a_slow_loop(
    seed: int, n: int, m: int, width: int, share_of_k: int, way: tuple[str, bool]
) -> None:
    rng = np.random.default_rng(seed)
    queries = rng.integers(-1, 2, size=(n, width)).astype(np.float32)
    gallery = rng.integers(-1, 2, size=(m, width)).astype(np.float32)
    k = 1 + share_of_k * (m - 1) // 100
    device, fast = way
    found = FirstPass(gallery, device, fast=fast).search(queries, k, 10**6)
    if found is None:
        assert fast
        found = FirstPass(gallery, device, fast=False).search(queries, k, 10**6)
    assert found is not None
    expected = slow(queries, gallery, k)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(nearest(queries, gallery, k)[1], expected[1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("pairs", [10**6, 200])
def test_features_that_all_point_the_same_way(
    way: tuple[str, bool], spread: float, pairs: int
) -> None:
    """As those of random weights do, with cosines above 0.999."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=48)
    queries, gallery = (
        (base + spread * rng.normal(size=(n, 48))).astype(np.float32) for n in (20, 500)
    )
    device, fast = way
    found = FirstPass(gallery, device, fast=fast).search(queries, 5, pairs)
    if found is None:
        assert fast
        assert pairs == 200
        return
    expected = direct(queries, gallery, 5)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_scores_are_as_near_as_claimed(way: tuple[str, bool], spread: float) -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=300)
    queries, gallery = (base + spread * rng.normal(size=(n, 300)) for n in (40, 200))
    device, fast = way
    search = FirstPass(gallery, device, fast=fast)
    lengths = np.linalg.norm(queries, axis=1)
    operand, gap, reach = search._operand(queries, lengths)
    scores = search._scores(operand, slice(0, 200)).numpy().astype(np.float64)
    q = queries / lengths[:, None]
    g = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    centre = g.mean(axis=0)
    along = g @ centre
    exact = (q - centre) @ (g - centre).T + along - along.mean()
    off = np.abs(scores - exact).max()
    assert off <= (exact - search._below(exact, search._error(gap, reach))).max() / 2
    if device == "cpu":  # a GPU's bound is that of TF32
        assert off > 1e-3 * search._error(gap, reach)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("fast", [False, True])
def test_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch, *, fast: bool) -> None:
    force(monkeypatch, fast=fast)
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(20, 32)).astype(np.float32)
    gallery = np.repeat(rng.normal(size=(200, 32)), 4, axis=0).astype(np.float32)
    expected = direct(queries, gallery, 6)
    for bytes_per_pair in (96, 10**4, 10**7):
        monkeypatch.setattr(neighbours_module, "_BYTES_PER_PAIR", bytes_per_pair)
        found = nearest(queries, gallery, 6, memory_mib=64)
        np.testing.assert_array_equal(found[1], nearest(queries, gallery, 6, memory_mib=1)[1])
        np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
        np.testing.assert_array_equal(found[1] // 4, expected[1] // 4)
        assert (found[1][:, :4] == found[1][:, :1] + np.arange(4)).all()


@pytest.mark.parametrize("fast", [False, True])
def test_a_gallery_of_few_vectors_many_times(
    monkeypatch: pytest.MonkeyPatch, *, fast: bool
) -> None:
    force(monkeypatch, fast=fast)
    rng = np.random.default_rng(4)
    few = rng.normal(size=(3, 16)).astype(np.float32)
    few[1] = 0
    which = rng.integers(0, 3, 3000)
    queries = np.concatenate([few, -few[:1]])
    similarities, indices = nearest(queries, few[which], 4)
    for row, first in ((0, 0), (2, 2)):
        np.testing.assert_array_equal(indices[row], np.flatnonzero(which == first)[:4])
    np.testing.assert_array_equal(indices[1], np.arange(4))
    np.testing.assert_allclose(similarities[[0, 2]], 1)
    np.testing.assert_array_equal(similarities[1], 0)
    assert (which[indices[3]] != 0).all()


def test_what_bf16_cannot_tell_apart_is_found_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force(monkeypatch, fast=True)
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(2, 32))
    gallery = (centres[np.arange(3000) % 2] + 1e-4 * rng.normal(size=(3000, 32))).astype(np.float32)
    queries = (centres[np.arange(6) % 2] + 1e-4 * rng.normal(size=(6, 32))).astype(np.float32)
    assert FirstPass(gallery, "cpu", fast=True).search(queries, 5, 10**6) is None
    expected = direct(queries, gallery, 5)
    similarities, indices = nearest(queries, gallery, 5)
    np.testing.assert_allclose(similarities, expected[0], atol=1e-12)
    np.testing.assert_array_equal(indices, expected[1])


def test_every_image_of_the_gallery_is_a_neighbour() -> None:
    gallery = np.random.default_rng(6).normal(size=(9, 4)).astype(np.float32)
    similarities, indices = nearest(gallery, gallery, 9)
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(9), (9, 1)))
    np.testing.assert_array_equal(indices[:, 0], np.arange(9))
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert nearest(gallery[:0], gallery, 2)[0].shape == (0, 2)


def test_refuses_what_it_cannot_search() -> None:
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(DerminoError, match="4 neighbours were asked for among 3") as error:
        nearest(x, x, 4)
    assert error.value.code == "DATA_TOO_FEW"
    with pytest.raises(DerminoError, match="NaN") as error:
        nearest(x, np.full((3, 3), np.nan, np.float32), 1)
    assert error.value.code == "MODEL_INVALID"
    with pytest.raises(DerminoError, match="not known"):
        nearest(x, x, 1, device="abacus")
    with pytest.raises(ValueError, match="k = 0"):
        nearest(x, x, 0)
    with pytest.raises(ValueError, match="of 3 and a gallery of 2"):
        nearest(x, x[:, :2], 1)


def test_votes_are_sums_over_classes() -> None:
    rng = np.random.default_rng(7)
    labels, values = rng.integers(0, 4, size=(20, 5)), rng.normal(size=(20, 5))
    expected = np.zeros((20, 5))
    for row in range(20):
        for value, label in zip(values[row], labels[row], strict=True):
            expected[row, label] += value
    np.testing.assert_allclose(sums_by_class(values, labels, 5), expected)
    weights = np.exp(values / 0.3)
    shares = sums_by_class(weights, labels, 5) / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(neighbour_votes(values, labels, 5, temperature=0.3), shares)


def test_on_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(8)
    queries, gallery = (rng.normal(size=(n, 64)).astype(np.float32) for n in (500, 6000))
    expected = direct(queries, gallery, 5)
    similarities, indices = nearest(queries, gallery, 5, device="cuda")
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_allclose(similarities, expected[0], atol=1e-12)


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    """The matrix of all pairs would be 3.6 GB."""
    program = """
import json, resource, numpy as np, torch
from dermino_core.evaluation.neighbours import nearest
x = np.random.default_rng(0).normal(size=(30000, 16)).astype(np.float32)
nearest(x[:300], x[:3000], 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest(x, x, 5, memory_mib=128)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) < 2 * 128
