"""Find images that show the same picture: by perceptual hash, and by features.

Measured on 1,400 real dermoscopic images (PH2 200, ISIC 2017 400, HAM10000 800) and on copies of
300 of them, drawn at random and saved again as JPEG of quality 95. Of 300 copies
:func:`perceptual_pairs` finds, at its thresholds (first 64 bits: 8, all 255 bits: 44):

==================================================================== =====
half size; 224 x 224 whatever the shape; JPEG of quality 60 and 30     300
mirrored; turned by 90 degrees                                         300
colours shifted by 7 to 8 %; contrast + 20 %                           300
5 % of each side cut off at one corner                                 300
5 % cut off all around; brightness + 15 % (clipped)                    299
2 % cut off all around                                                 297
5 % cut, 300 x 225, turned, colours shifted, JPEG of quality 70        293
10 % cut off all around                                                269
central square (leaves out 28 % of each of the 44 images from PH2)     256
pairs of different lesions taken for copies, of 979,300                  0
==================================================================== =====

With 50 bits instead of 44 it finds 283 of those cut by 10 % and still no wrong pair, with 57 bits
287 and 9 wrong pairs. The usual hash (64 bits, distance 10, eight orientations) finds a third of
the copies cut at a corner and takes 600 of a million pairs of different lesions for copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.perceptual_hash import CROPS, ORIENTATIONS, distance, oriented
from dermino_core.progress import Progress, progress_bar

LOW_DISTANCE = 8
"""Most bits that may differ among the first 64, to look at the others at all."""

DISTANCE = 44
"""Most bits that may differ among all 255."""

SIMILARITY = 0.8
"""Least cosine of whitened features of two copies."""

PLAIN_SIMILARITY = 0.99
"""Least cosine of features as they are, where there are too few images to whiten them."""

MIN_WHITENED = 100
"""Images needed to whiten their features."""

SHRINKAGE = 0.3
"""Added to every variance before whitening, as a share of the mean variance; see `whiten`."""

MAX_PAIRS = 5_000_000
"""More pairs than this are no list that a person can use."""

_KEYS = 4096  # hashes compared at a time: the temporary arrays stay in the processor's cache
_QUERIES = 64
_BLOCK = 1024


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, the smaller index first, in ascending order.

    Attributes
    ----------
    first, second
        int64 [n].
    score
        int64 [n] bits that differ, or float64 [n] cosine.
    """

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray


def perceptual_pairs(hashes: np.ndarray, *, max_distance: int = DISTANCE) -> Pairs:
    """Pairs of images of which one is a copy of the other, or of a crop of it, in any orientation.

    Every image is compared with every other, in blocks and on all cores. That is exact; a core
    makes about 1e9 to 2e9 of the 48 comparisons a pair in a second, so that 100,000 images take
    4 to 8 minutes of one core. The time grows with the square of their number.

    Parameters
    ----------
    hashes
        uint64 [n, 6, 4] of :func:`dermino_core.perceptual_hash.perceptual_hash`.
    max_distance
        Bits of 255 that may differ; 0 finds only what is equal to the last frequency.

    Returns
    -------
    Pairs
        `score`: the smallest number of differing bits.

    Raises
    ------
    DerminoError
        CONFIG_INVALID if `max_distance` is not in 0..127, or there are more than
        :data:`MAX_PAIRS` pairs.
    """
    if not 0 <= max_distance <= 127:
        raise DerminoError(
            "CONFIG_INVALID",
            f"A distance of {max_distance} bits tells no copies apart.",
            fix=f"Give 0 to 127; the default is {DISTANCE}.",
        )
    n = len(hashes)
    whole = np.ascontiguousarray(hashes[:, 0])
    low = np.ascontiguousarray(whole[:, 0])
    starts = range(0, n, _QUERIES)
    collected = _Collector(n)
    with (
        progress_bar("comparing hashes", total=n) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compare") as pool,
    ):
        try:
            blocks = pool.map(lambda start: _near(hashes, whole, low, start, max_distance), starts)
            for start, found in zip(starts, blocks, strict=True):
                collected.add(*found)
                bar.advance(min(_QUERIES, n - start))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    first, second, bits = collected.best()
    return Pairs(first, second, bits)


def whiten(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Rotate and scale features so that what all images share no longer makes them similar.

    Features of dermoscopic images are alike as they are: with DINOv2 ViT-S/14, 2,300 of a million
    pairs of different lesions have a cosine of 0.98 or more, and only 0.78 of the copies cut by
    5 % at a corner have it. Whitened (principal axes divided by the root of their variance plus
    :data:`SHRINKAGE` times the mean variance), a cosine of 0.8 or more is found in none of the
    980,000 pairs of 1,400 images (largest: 0.77; a threshold of 0.7: 3), in all copies of which
    the central square was cut out, in all saved at JPEG quality 60 or with a colour shift, and in
    0.80 of those of half size, 0.78 cut by 5 % at a corner, 0.36 mirrored (50 copies each). It is
    there for copies that hashes miss, above all square cuts, and needs a pretrained backbone: a
    random one gives 2,300 wrong pairs in a million.

    Parameters
    ----------
    vectors
        float32 [n, width].

    Returns
    -------
    tuple
        float32 [n, width], and the similarity above which two of them are taken for copies. With
        fewer than :data:`MIN_WHITENED` vectors these are the ones given, and
        :data:`PLAIN_SIMILARITY`.
    """
    values = np.asarray(vectors, dtype=np.float32)
    if len(values) < MIN_WHITENED:
        return values, PLAIN_SIMILARITY
    values = _unit(values)
    values -= values.mean(axis=0, dtype=np.float64).astype(np.float32)
    variances, axes = np.linalg.eigh((values.T @ values / len(values)).astype(np.float64))
    variances = np.maximum(variances, 0.0)
    if not variances.any():
        return values, SIMILARITY
    scales = 1.0 / np.sqrt(variances + SHRINKAGE * variances.mean())
    return values @ (axes * scales).astype(np.float32), SIMILARITY


def embedding_pairs(vectors: np.ndarray, *, min_similarity: float) -> Pairs:
    """Pairs of images with features of high cosine similarity.

    Parameters
    ----------
    vectors
        float32 [n, width]; a vector of zeros is similar to none.
    min_similarity
        Cosine, above 0 and at most 1.

    Returns
    -------
    Pairs
        `score`: the cosine.

    Raises
    ------
    DerminoError
        CONFIG_INVALID if `min_similarity` is not in (0, 1], or there are more than
        :data:`MAX_PAIRS` pairs.
    """
    if not 0.0 < min_similarity <= 1.0:
        raise DerminoError(
            "CONFIG_INVALID",
            f"A cosine similarity of {min_similarity} is no threshold.",
            fix="Give a number above 0 and at most 1.",
        )
    unit = _unit(vectors)
    collected = _Collector(len(unit))
    with progress_bar("comparing features", total=len(unit)) as bar:
        for found in _similar(unit, min_similarity, bar):
            collected.add(*found)
    first, second, negated = collected.best()
    return Pairs(first, second, -negated)


Found = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Collector:
    """Gathers pairs in any order, with repeats; the smaller score is the better one."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.parts: list[Found] = []
        self.count = 0

    def add(self, one: np.ndarray, other: np.ndarray, score: np.ndarray) -> None:
        if not len(one):
            return
        self.parts.append((np.minimum(one, other), np.maximum(one, other), score))
        self.count += len(one)
        # Both images of a pair find it, hence twice the limit.
        if self.count > 2 * MAX_PAIRS:
            raise DerminoError(
                "CONFIG_INVALID",
                f"More than {MAX_PAIRS:,} pairs of images are alike at these thresholds.",
                fix="Ask for a smaller --distance or a higher --similarity.",
            )

    def best(self) -> Found:
        """Every pair once, with its smallest score, in the order of the indices."""
        return _best(self.parts)


def _best(parts: list[Found]) -> Found:
    """Every pair once, with its smallest score, in the order of the indices."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    one, other, score = (np.concatenate([part[place] for part in parts]) for place in range(3))
    order = np.lexsort((score, other, one))
    one, other, score = one[order], other[order], score[order]
    new = np.ones(len(one), dtype=bool)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return one[new], other[new], score[new]


def _near(
    hashes: np.ndarray, whole: np.ndarray, low: np.ndarray, start: int, max_distance: int
) -> Found:
    """Pairs of the images from `start` on with any image: crops of the former, whole latter."""
    queries = oriented(hashes[start : start + _QUERIES]).reshape(
        -1, CROPS * ORIENTATIONS, hashes.shape[2]
    )
    variants = queries.shape[1]
    buffers = [np.empty(variants * _KEYS, dtype) for dtype in (np.uint64, np.uint8, np.bool_)]
    parts: list[Found] = []
    for place, query in enumerate(queries):
        words = np.ascontiguousarray(query[:, :1])
        for begin in range(0, len(low), _KEYS):
            keys = low[begin : begin + _KEYS]
            shape = variants, len(keys)
            different, counts, close = (
                buffer[: variants * len(keys)].reshape(shape) for buffer in buffers
            )
            np.bitwise_xor(words, keys, out=different)
            np.bitwise_count(different, out=counts)
            np.less_equal(counts, LOW_DISTANCE, out=close)
            # np.nonzero of two dimensions takes three times as long as all the rest.
            variant, key = np.divmod(np.flatnonzero(close), len(keys))
            bits = distance(query[variant], whole[begin + key])
            good = (bits <= max_distance) & (begin + key != start + place)
            if good.any():
                other = (begin + key[good]).astype(np.int64)
                parts.append((np.full_like(other, start + place), other, bits[good]))
    return _best(parts)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """A copy with every vector of length 1; zeros stay zeros."""
    unit = np.array(vectors, dtype=np.float32)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    np.divide(unit, norms, out=unit, where=norms > 0)
    return unit


def _similar(unit: np.ndarray, min_similarity: float, bar: Progress) -> Iterator[Found]:
    for start in range(0, len(unit), _BLOCK):
        block = unit[start : start + _BLOCK]
        for begin in range(start, len(unit), _BLOCK):
            cosines = block @ unit[begin : begin + _BLOCK].T
            # Equal vectors have a cosine of 1 up to the last bits.
            row, column = np.nonzero(cosines >= min_similarity - 1e-6)
            upper = row + start < column + begin
            row, column = row[upper], column[upper]
            score = -np.minimum(cosines[row, column], 1.0).astype(np.float64)
            yield row + start, column + begin, score
        bar.advance(len(block))
