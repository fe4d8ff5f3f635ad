"""Block-wise masks of the student's global crops. DermINO section 4.1.3; Zhou et al. 2022 (iBOT).

The blocks are those of Bao et al. 2022 (BEiT, algorithm 1), the ratios and the shuffling those of
Oquab et al. 2024 (DINOv2). A mask is kept as one integer with a bit for each patch: laying a block
over it and counting what is new costs two operations, so a batch is drawn within milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dermino_core.pretraining.config import MaskingSection


def sample_masks(
    n_crops: int, grid: tuple[int, int], masking: MaskingSection, generator: np.random.Generator
) -> np.ndarray:
    """Masks for a batch of crops.

    `share_of_crops` of the crops, rounded down, are masked. The range of ratios is cut into as many
    equal parts as there are masked crops and each takes its ratio from one part, so that every
    batch holds the whole range. A masked crop loses at most its ratio of patches, and at least one
    patch. Then the crops are shuffled.

    Parameters
    ----------
    n_crops
        Crops of the batch.
    grid
        Patches of a crop, rows and columns.
    masking
        Ratios, blocks and tries.
    generator
        The only source of chance.

    Returns
    -------
    bool [n_crops, rows x columns], true where a patch is masked, row by row.

    Raises
    ------
    ValueError
        If there are no crops or no patches, or the ratios are not in ascending order.
    """
    rows, columns = grid
    if n_crops < 1 or rows < 1 or columns < 1:
        raise ValueError(f"masks need crops and patches, not {n_crops} crops of {rows} x {columns}")
    low, high = masking.ratio
    if low > high:
        raise ValueError(f"masking.ratio must ascend, not {low} to {high}")
    patches = rows * columns
    masks = np.zeros((n_crops, patches), dtype=bool)
    masked = int(n_crops * masking.share_of_crops) if high > 0 else 0
    chance = _uniform(generator)
    for number in range(masked):
        ratio = low + (high - low) * (number + next(chance)) / masked
        bits = _blocks(max(1, int(ratio * patches)), grid, masking, chance)
        masks[number] = _unpack(bits, patches)
    return masks[generator.permutation(n_crops)]


def _blocks(
    wanted: int, grid: tuple[int, int], masking: MaskingSection, chance: Iterator[float]
) -> int:
    """Blocks until `wanted` patches are masked or `tries` blocks in a row do not fit."""
    mask = 0
    left = wanted
    while left > 0:
        grown = _with_block(mask, left, grid, masking, chance)
        if grown == mask:
            break
        mask = grown
        left = wanted - mask.bit_count()
    return mask or 1 << int(next(chance) * grid[0] * grid[1])


def _with_block(
    mask: int,
    left: int,
    grid: tuple[int, int],
    masking: MaskingSection,
    chance: Iterator[float],
) -> int:
    """The mask with one more block that adds 1 to `left` patches; unchanged if none fits.

    A block's nominal area is uniform between the smallest block and what is left, at most half of
    the grid; the logarithm of its aspect ratio is uniform, and so is its place.
    """
    rows, columns = grid
    log_aspect = abs(math.log(masking.aspect))
    largest = min(left, rows * columns / 2)
    for _ in range(masking.tries):
        area = masking.smallest_block + next(chance) * (largest - masking.smallest_block)
        aspect = math.exp((2 * next(chance) - 1) * log_aspect)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top = int(next(chance) * (rows - height + 1))
        start = int(next(chance) * (columns - width + 1))
        grown = mask | _block(top, start, height, width, columns)
        if 0 < grown.bit_count() - mask.bit_count() <= left:
            return grown
    return mask


def _block(top: int, start: int, height: int, width: int, columns: int) -> int:
    """A rectangle of ones: one row of it, times a one at the start of each row."""
    starts = ((1 << columns * height) - 1) // ((1 << columns) - 1)
    return ((1 << width) - 1) * starts << (top * columns + start)


def _unpack(bits: int, patches: int) -> np.ndarray:
    packed = np.frombuffer(bits.to_bytes(-(-patches // 8), "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=patches, bitorder="little").astype(bool)


def _uniform(generator: np.random.Generator) -> Iterator[float]:
    """Numbers in 0..1, drawn a thousand at a time: single draws cost more than a block."""
    while True:
        yield from generator.random(1024).tolist()
