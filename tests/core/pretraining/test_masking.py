"""Block-wise masks: their number, their ratios, and that they are blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.pretraining.config import MaskingSection
from dermino_core.pretraining.masking import sample_masks


def draw(seed: int, n: int, grid: tuple[int, int], **masking: object) -> np.ndarray:
    section = MaskingSection.model_validate(masking)
    return sample_masks(n, grid, section, np.random.default_rng(seed))


def masks_by_hand(
    n: int, grid: tuple[int, int], masking: MaskingSection, rng: np.random.Generator
) -> np.ndarray:
    """The algorithm on arrays, one number of chance after the other."""
    rows, columns = grid
    masks = np.zeros((n, rows, columns), dtype=bool)
    masked = int(n * masking.share_of_crops)
    edges = np.linspace(*masking.ratio, masked + 1)
    for mask, low, high in zip(masks, edges[:-1], edges[1:], strict=False):
        left = max(1, int(rng.uniform(low, high) * rows * columns))
        fits = True
        while left and fits:
            fits = False
            for _ in range(masking.tries):
                area = rng.uniform(*sorted((masking.smallest_block, min(left, mask.size / 2))))
                aspect = np.exp(rng.uniform(np.log(masking.aspect), -np.log(masking.aspect)))
                height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
                if not (0 < height < rows and 0 < width < columns):
                    continue
                top = rng.integers(rows - height + 1)
                start = rng.integers(columns - width + 1)
                block = mask[top : top + height, start : start + width]
                new = int((~block).sum())
                if 0 < new <= left:
                    block[:] = True
                    left -= new
                    fits = True
                    break
    return masks.reshape(n, -1)


def test_mean_ratio_of_masked_crops_on_the_usual_grid() -> None:
    masks = np.concatenate([draw(seed, 64, (16, 16)) for seed in range(30)])
    ratios = masks.mean(axis=1)
    ratios = ratios[ratios > 0]
    assert len(ratios) == len(masks) / 2
    assert abs(ratios.mean() - 0.30) < 0.01
    assert ratios.min() >= 0.1 - 1 / 256
    assert ratios.max() <= 0.5


@pytest.mark.parametrize("grid", [(16, 16), (10, 10), (7, 12)])
def test_same_law_as_the_algorithm_on_arrays(grid: tuple[int, int]) -> None:
    ours = np.concatenate([draw(seed, 100, grid) for seed in range(30)])
    rng = np.random.default_rng(1)
    theirs = np.concatenate([masks_by_hand(100, grid, MaskingSection(), rng) for _ in range(30)])
    assert abs(ours.mean() - theirs.mean()) < 0.01
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    assert np.abs(difference).max() < 6 * np.sqrt(2 * 0.25 / len(ours))
    edges = [
        np.abs(np.diff(m.reshape(-1, *grid).astype(int), axis=axis)).sum(axis=(1, 2)).mean()
        for m in (ours, theirs)
        for axis in (1, 2)
    ]
    np.testing.assert_allclose(edges[:2], edges[2:], rtol=0.05)


def test_every_batch_holds_the_whole_range_of_ratios() -> None:
    ratios = np.sort(draw(3, 40, (16, 16)).mean(axis=1))[20:]
    edges = np.linspace(0.1, 0.5, 21)
    assert (ratios <= edges[1:]).all()
    assert (ratios >= edges[:-1] - 4 / 256).mean() > 0.9


def test_masked_crops_are_shuffled() -> None:
    places = np.mean([draw(seed, 8, (6, 6)).any(axis=1) for seed in range(400)], axis=0)
    assert np.abs(places - 0.5).max() < 0.15


def test_masks_are_blocks_not_single_patches() -> None:
    masks = draw(0, 200, (16, 16)).reshape(-1, 16, 16)
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1))).astype(int)
    neighbours = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2]
    neighbours += padded[:, 1:-1, 2:]
    assert (neighbours[masks] == 0).mean() < 0.01


def test_same_generator_same_masks() -> None:
    np.testing.assert_array_equal(draw(5, 32, (14, 14)), draw(5, 32, (14, 14)))
    assert (draw(5, 32, (14, 14)) != draw(6, 32, (14, 14))).any()


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 2), (1, 9), (2, 3), (3, 3)])
def test_tiny_grids_lose_at_least_one_patch(grid: tuple[int, int]) -> None:
    counts = np.concatenate([draw(seed, 4, grid).sum(axis=1) for seed in range(50)])
    assert (counts > 0).sum() == 100
    assert counts.max() <= max(1, grid[0] * grid[1] // 2)


def test_one_crop() -> None:
    assert not draw(0, 1, (16, 16)).any()
    assert 0.08 < draw(0, 1, (16, 16), share_of_crops=1.0).mean() <= 0.5


def test_no_masking() -> None:
    assert not draw(0, 8, (16, 16), share_of_crops=0.0).any()
    assert not draw(0, 8, (16, 16), ratio=(0.0, 0.0)).any()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.floats(0, 1),
    ratio=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda r: tuple(sorted(r))),
    smallest=st.integers(1, 30),
    aspect=st.floats(0.05, 20),
    tries=st.integers(1, 12),
)
def test_properties(
    seed: int,
    n: int,
    grid: tuple[int, int],
    share: float,
    ratio: tuple[float, float],
    smallest: int,
    aspect: float,
    tries: int,
) -> None:
    masks = draw(
        seed,
        n,
        grid,
        share_of_crops=share,
        ratio=ratio,
        smallest_block=smallest,
        aspect=aspect,
        tries=tries,
    )
    patches = grid[0] * grid[1]
    assert masks.shape == (n, patches)
    assert masks.dtype == bool
    assert masks.any(axis=1).sum() == (int(n * share) if ratio[1] > 0 else 0)
    assert masks.sum(axis=1).max() <= max(1, ratio[1] * patches)


@pytest.mark.parametrize(
    ("n", "grid", "ratio"),
    [(0, (4, 4), (0.1, 0.5)), (4, (0, 4), (0.1, 0.5)), (4, (4, 4), (0.5, 0.1))],
)
def test_wrong_input(n: int, grid: tuple[int, int], ratio: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"masks need crops|must ascend"):
        draw(0, n, grid, ratio=ratio)
