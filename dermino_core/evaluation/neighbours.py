"""Nearest neighbours by cosine, exact, and their votes."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import numpy.typing as npt

from dermino_core.allocator import freed_memory_kept
from dermino_core.errors import DerminoError
from dermino_core.evaluation.first_pass import FirstPass, lengths_of, parts
from dermino_core.precision import resolve_device, resolve_precision

Floats = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

GPU_FROM, BF16_FROM = 1e10, 1e9
"""Multiply-adds from which `auto` goes to a GPU, and a CPU that computes in bf16 does."""

_BYTES_PER_PAIR = 96
"""What a pair costs if all of a block are kept: score, mask, position, row, column, sorting."""


def nearest(
    queries: Floats, gallery: Floats, k: int, *, device: str = "auto", memory_mib: int = 256
) -> tuple[Float64, Indices]:
    """The k gallery vectors of largest cosine for each query, largest first.

    Similarities are those of float64; of equal ones the lower index comes first. A zero vector has
    cosine 0 with everything. See :mod:`dermino_core.evaluation.first_pass` for the method.

    Parameters
    ----------
    queries, gallery
        [n, D] and [m, D], finite; meant for float32.
    k
        1 to m.
    device
        Of the first pass: `auto`, `cpu`, `cuda` or `cuda:N`.
    memory_mib
        Working memory, beside one normalised copy of the gallery and the result.

    Returns
    -------
    Similarities in -1..1 and indices, both [n, k].

    Raises
    ------
    DerminoError
        DATA_TOO_FEW if the gallery has fewer than k vectors; MODEL_INVALID if a number is not
        finite; DEVICE_UNAVAILABLE.
    ValueError
        If k < 1 or the widths differ.
    """
    (n, width), m = queries.shape, len(gallery)
    if k < 1 or gallery.shape[1] != width:
        raise ValueError(f"k = {k}, queries of {width} and a gallery of {gallery.shape[1]} numbers")
    if k > m:
        raise DerminoError("DATA_TOO_FEW", f"{k} neighbours were asked for among {m} images.")
    require_finite(queries, gallery)
    work = n * m * width
    place = resolve_device("cpu" if device == "auto" and work < GPU_FROM else device)
    fast = place == "cpu" and work >= BF16_FROM and resolve_precision("auto", place) == "bf16"
    similarities, indices = np.empty((n, k)), np.empty((n, k), np.int64)
    pairs = (memory_mib << 20) // _BYTES_PER_PAIR
    with freed_memory_kept(place):
        kept = _first_copies(gallery, k)
        distinct = gallery if len(kept) == m else gallery[kept]
        first_pass = FirstPass(distinct, place, fast=fast)
        for rows in parts(n, -(-n // max(1, pairs // first_pass.block_width(k)))):
            while (found := first_pass.search(queries[rows], k, pairs)) is None:
                first_pass = FirstPass(distinct, place, fast=False)
            similarities[rows], indices[rows] = found[0], kept[found[1]]
    return similarities, indices


def require_finite(*features: Floats) -> None:
    """Refuse features with NaN or infinite values.

    Raises
    ------
    DerminoError
        MODEL_INVALID.
    """
    if not all(np.isfinite(part).all() for part in features):
        raise DerminoError(
            "MODEL_INVALID",
            "The backbone's features hold NaN or infinite values.",
            fix="Check its weights, or extract the features with --precision fp32.",
        )


def neighbour_votes(
    similarities: Floats, labels: npt.NDArray[np.integer], n_classes: int, *, temperature: float
) -> Float64:
    """Votes of neighbours weighted by exp(similarity / temperature), rows summing to 1.

    Wu et al. 2018, section 3.4; Caron et al. 2021 (DINO) use a temperature of 0.07.

    Parameters
    ----------
    similarities, labels
        Of the neighbours of each query, [n, k]; labels are class indices.

    Returns
    -------
    [n, n_classes].
    """
    votes = sums_by_class(
        np.exp((similarities - similarities[:, :1]) / temperature), labels, n_classes
    )
    return votes / votes.sum(axis=1, keepdims=True)


def sums_by_class(values: Floats, labels: npt.NDArray[np.integer], n_classes: int) -> Float64:
    """Sum of the values [n, k] of each row over neighbours of each class, [n, n_classes]."""
    n = len(values)
    places = labels + n_classes * np.arange(n)[:, None]
    sums = np.bincount(places.ravel(), weights=values.ravel(), minlength=n * n_classes)
    return np.asarray(sums, dtype=np.float64).reshape(n, n_classes)


def _first_copies(gallery: Floats, k: int) -> Indices:
    """Indices without those of vectors that occur k times before: they are never nearest."""
    kept = np.ones(len(gallery), bool)
    _, which, count = np.unique(lengths_of(gallery), return_inverse=True, return_counts=True)
    seen: Counter[bytes] = Counter()
    for index in np.flatnonzero(count[which] > k):
        digest = hashlib.blake2b(gallery[index].tobytes(), digest_size=16).digest()
        kept[index] = seen[digest] < k
        seen[digest] += 1
    return np.flatnonzero(kept)
