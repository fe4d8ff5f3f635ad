"""A search in fast arithmetic whose answer is that of float64.

Every pair is scored in blocks, never all at once. For each query those pairs are kept that may be
among its k nearest, given the largest error this arithmetic can make (Higham 2002, chapter 3). Only
they are computed again in float64 and ordered, so the answer depends neither on the arithmetic nor
on the device or the size of the blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    _Scores = TypeVar("_Scores", torch.Tensor, npt.NDArray[np.floating])

Floats = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_COLUMNS = 2048
"""Fewest gallery vectors in a block, if there are so many."""

_GROUP = 64
_WIDE = 16
"""bf16 is too coarse for these features if it keeps so many times k + 16 pairs per query."""

_CHUNK = 1 << 18
"""Numbers of each side held in float64."""

_FLOAT64, _FLOAT32, _BFLOAT16, _TF32 = 2.0**-53, 2.0**-24, 2.0**-8, 2.0**-10
"""Largest relative error of one rounding (TF32 may cut off)."""


class _Pairs(NamedTuple):
    """Pairs that may be neighbours: query, gallery vector, score of the first pass."""

    rows: Indices
    columns: Indices
    scores: Floats

    def take(self, which: npt.NDArray[np.bool_] | Indices) -> _Pairs:
        """Those of a mask or of places, in that order."""
        return _Pairs(self.rows[which], self.columns[which], self.scores[which])


class FirstPass:
    """Scores of all pairs in fast arithmetic, and how wrong they can be.

    Unit vectors are taken relative to the gallery's mean c, because rounding errors grow with
    lengths and features often point much the same way. With q and g relative to it, the score
    q.g + c.g orders the gallery for each query as the cosine does.

    Parameters
    ----------
    gallery
        [m, D].
    device
        Resolved.
    fast
        bf16 instead of float32; for a CPU that computes in it.
    """

    def __init__(self, gallery: Floats, device: str, *, fast: bool) -> None:
        import torch

        self.gallery, self.device, self.fast = gallery, device, fast
        self.lengths = lengths_of(gallery)
        self.centre = np.zeros(gallery.shape[1])
        for part in _chunks(gallery):
            self.centre += _unit(gallery[part], self.lengths[part]).sum(axis=0) / len(gallery)
        self.operand, self.gap, self.reach = self._operand(gallery, self.lengths)
        along = np.concatenate(
            [_unit(gallery[p], self.lengths[p]) @ self.centre for p in _chunks(gallery)]
        )
        along -= along.mean()
        self.offset = float(abs(along).max())
        self.offsets = torch.from_numpy(along.astype(np.float32)).to(device)

    def block_width(self, k: int) -> int:
        """Gallery vectors of the largest block; the smallest has k at least."""
        m = len(self.gallery)
        return -(-m // max(1, m // max(k, _COLUMNS)))

    def search(self, queries: Floats, k: int, pairs: int) -> tuple[Float64, Indices] | None:
        """k nearest of a few queries; None if bf16 keeps too many pairs of these features.

        `pairs` is about how many may be kept at once.
        """
        import torch

        m, lengths = len(self.gallery), lengths_of(queries)
        operand, gap, reach = self._operand(queries, lengths)
        error = self._error(gap, reach)
        floor = torch.full((len(queries), 1), -torch.inf, device=self.device)
        kept: list[_Pairs] = []
        for columns in parts(m, -(-m // self.block_width(k))):
            scores = self._scores(operand, columns)
            floor = torch.maximum(floor, _reached_k_times(scores, k))
            kept.append(_at_least(scores, self._below(floor, error), columns.start))
            if sum(len(part.rows) for part in kept) > pairs // 2:
                if self.fast:
                    return None
                kept = [self._k_best(queries, lengths, _joined(kept), k)[0]]
        pool = _joined(kept)
        kth = _kth_score(pool, k)
        possible = pool.take(pool.scores >= self._below(kth, error)[pool.rows])
        if self.fast and len(possible.rows) > _WIDE * (k + 16) * len(queries):
            return None
        best, similarities = self._k_best(queries, lengths, possible, k)
        return similarities.reshape(-1, k), best.columns.reshape(-1, k)

    def _operand(self, vectors: Floats, lengths: Float64) -> tuple[torch.Tensor, float, float]:
        """Unit vectors relative to the centre, rounded; the largest rounding and length."""
        import torch

        dtype = torch.bfloat16 if self.fast else torch.float32
        operand = torch.empty(vectors.shape, dtype=dtype, device=self.device)
        gap = reach = 0.0
        for part in _chunks(vectors):
            exact = _unit(vectors[part], lengths[part]) - self.centre
            rounded = torch.from_numpy(exact).to(dtype)
            operand[part] = rounded.to(self.device)
            reach = max(reach, float(lengths_of(exact).max()))
            gap = max(gap, float(lengths_of(exact - rounded.double().numpy()).max()))
        return operand, gap, reach

    def _error(self, gap: float, reach: float) -> float:
        """Largest error of a score of queries of such rounding and length, before it is rounded.

        Rounding of both sides, then summing (Higham 2002, equation 3.5), twice: some processors'
        bf16 instructions do not round to nearest.
        """
        steps = self.gallery.shape[1] + 8
        product = (reach + gap) * (self.reach + self.gap)
        error = gap * self.reach + self.gap * (reach + gap) + 2.02 * steps * _FLOAT32 * product
        error += 4 * _FLOAT32 * self.offset + 4 * steps * _FLOAT64
        return error if self.device == "cpu" else error + 2.01 * _TF32 * product

    def _below(self, score: _Scores, error: float) -> _Scores:
        """What the score of a pair must reach if its cosine reaches that of a pair of `score`."""
        rounding = _BFLOAT16 if self.fast else 4 * _FLOAT32
        return score - 2.02 * (error + rounding * (abs(score) + self.offset + error))

    def _scores(self, operand: torch.Tensor, columns: slice) -> torch.Tensor:
        """float32 [b, columns]."""
        import torch

        if self.fast or self.device != "cpu":
            products = (operand @ self.operand[columns].T).float()
        else:  # numpy's BLAS is the faster one on AMD, and torch's has modes of less precision
            products = torch.from_numpy(operand.numpy() @ self.operand[columns].numpy().T)
        return products.add_(self.offsets[columns])

    def _k_best(
        self, queries: Floats, lengths: Float64, pairs: _Pairs, k: int
    ) -> tuple[_Pairs, Float64]:
        """The first k of each query by float64 similarity, then index; with the similarities."""
        rows, columns = pairs.rows, pairs.columns
        dots = np.empty(len(rows))
        for part in parts(len(rows), -(-len(rows) * queries.shape[1] // _CHUNK)):
            left = queries[rows[part]].astype(np.float64)
            dots[part] = np.einsum("ij,ij->i", left, self.gallery[columns[part]].astype(np.float64))
        scale = lengths[rows] * self.lengths[columns]
        similarities = np.divide(dots, scale, out=np.zeros(len(dots)), where=scale > 0)
        similarities = similarities.clip(-1.0, 1.0)
        order = np.lexsort((columns, -similarities, rows))
        order = order[_place_in_row(rows[order]) < k]
        return pairs.take(order), similarities[order]


def lengths_of(vectors: Floats) -> Float64:
    """Euclidean length of each of [n, D], in float64."""
    lengths = np.empty(len(vectors))
    for part in _chunks(vectors):
        exact = vectors[part].astype(np.float64, copy=False)
        lengths[part] = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    return lengths


def _unit(vectors: Floats, lengths: Float64) -> Float64:
    """Unit vectors in float64; a zero vector stays."""
    return vectors / np.where(lengths > 0, lengths, 1.0)[:, None]


def _chunks(vectors: Floats) -> Iterator[slice]:
    return parts(len(vectors), -(-vectors.size // _CHUNK))


def parts(n: int, count: int) -> Iterator[slice]:
    """0..n in `count` consecutive parts of nearly equal size."""
    edges = [n * i // count for i in range(count + 1)] if count else []
    return (slice(*edge) for edge in itertools.pairwise(edges))


def _reached_k_times(scores: torch.Tensor, k: int) -> torch.Tensor:
    """[b, 1]: a score that at least k of each row reach, and few more.

    It is the k-th largest of the maxima of groups of columns.
    """
    size = max(1, min(_GROUP, scores.shape[1] // (4 * k)))
    whole = scores.shape[1] // size * size
    maxima = scores[:, :whole].unflatten(1, (size, -1)).amax(1)
    return maxima.topk(k, dim=1).values[:, -1:]


def _at_least(scores: torch.Tensor, floor: torch.Tensor, first_column: int) -> _Pairs:
    """Pairs that reach their row's floor, by row and column."""
    import torch

    if scores.device.type == "cpu":  # numpy finds few among many sooner than torch
        places = np.flatnonzero(scores.numpy() >= floor.numpy())
        found = scores.numpy().ravel()[places]
    else:
        there = torch.nonzero((scores >= floor).flatten()).flatten()
        places, found = there.cpu().numpy(), scores.flatten()[there].cpu().numpy()
    rows, columns = np.divmod(places, scores.shape[1])
    return _Pairs(rows, columns + first_column, found)


def _joined(parts: list[_Pairs]) -> _Pairs:
    rows, columns, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Pairs(rows, columns, scores)


def _kth_score(pairs: _Pairs, k: int) -> Floats:
    """The k-th largest score of each row."""
    order = np.lexsort((-pairs.scores, pairs.rows))
    return pairs.scores[order[_place_in_row(pairs.rows[order]) == k - 1]]


def _place_in_row(rows: Indices) -> Indices:
    """0, 1, 2, ... within each run of equal numbers."""
    first = np.searchsorted(rows, rows)
    return np.arange(len(rows)) - first
