"""Merge names of diseases that mean the same, and propose it to a person (section 4.1.4).

The paper merges labels whose CODER embeddings are similar; its threshold is not stated. Ours is
:data:`THRESHOLD`, and what it proposes is a table that a person reviews before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dermino_core.label_collection import SourceLabel
from dermino_core.label_names import NOT, means_unknown, negated_name
from dermino_core.label_table import LabelRow

THRESHOLD = 0.88
"""Cosine from which two names are one.

Measured with all-MiniLM-L6-v2 on the names of Fitzpatrick17k (114), ISIC/HAM10000 (7) and
PAD-UFES-20 (6), after normalisation. Three pairs lie above 0.88: granuloma pyogenic and pyogenic
granuloma (0.982), disseminated actinic porokeratosis and porokeratosis actinic (0.899), basal cell
carcinoma and its morpheiform kind (0.894). The next ones are actinic keratosis and the ISIC class
that also holds intraepithelial carcinoma (0.833), basal cell carcinoma and its solid cystic kind
(0.821), psoriasis and pustular psoriasis (0.818) and, plainly wrong, urticaria and urticaria
pigmentosa (0.813): every threshold from 0.84 to 0.89 gives the same three merges. A threshold alone
is not enough: squamous cell carcinoma and its kind in situ have 0.888, acute and chronic eczema
0.851; :func:`distinct_kinds` keeps these apart. Another encoder (CODER was not at hand) has another
scale: look at the pairs on both sides of the threshold, which `dermino labels build` prints.
"""

NEAR = 0.2
"""Pairs are reported as near down to this much below the threshold."""

_DISTINCT = """
    benign malignant premalignant situ invasive metastatic metastasis atypical dysplastic common
    congenital acquired acute subacute chronic non not basal squamous actinic seborrheic melanoma
    nevus keratosis carcinoma lentigo sarcoma lymphoma
"""
_DISTINCT_WORDS = frozenset(_DISTINCT.split())


@dataclass(frozen=True)
class Pair:
    """Two names and their cosine."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class Proposal:
    """What a person reviews.

    `rows`: one per source label. `names`: the merged names, sorted. `merged`: pairs merged because
    their embeddings are similar; `near`: the most similar pairs that were not, most similar first.
    """

    rows: list[LabelRow]
    names: tuple[str, ...]
    merged: list[Pair]
    near: list[Pair]


def distinct_kinds(first: str, second: str) -> bool:
    """Whether two names differ in a word that no similarity may override.

    Words for dignity (benign, malignant), for stage (in situ, invasive, metastatic), for time
    (acute, chronic), negations, numbers, and the tissues tumours are named after: "squamous cell
    carcinoma in situ" is close to "squamous cell carcinoma" in every language model, yet not the
    same.
    """
    return _marks(first) != _marks(second)


def _marks(name: str) -> frozenset[str]:
    return frozenset(
        word for word in name.split() if word in _DISTINCT_WORDS or any(x.isdigit() for x in word)
    )


def merge_names(
    names: Sequence[str], embeddings: NDArray[np.floating], threshold: float = THRESHOLD
) -> list[list[int]]:
    """Groups of names that mean the same.

    Pairs are taken from the most similar to the least, down to `threshold`; two groups become one
    only if every name of the one is at least `threshold` similar to every name of the other
    (complete linkage), and none is of another kind (:func:`distinct_kinds`). Chains, where A is
    like B and B like C but A is not like C, therefore do not form. Ties are broken by name, so the
    order of the input does not matter.

    Parameters
    ----------
    names
        Distinct names.
    embeddings
        [n, D], any length; only directions count.
    threshold
        Cosine, -1..1.

    Returns
    -------
    list[list[int]]
        Indices into `names`; each group, and the list of groups, in alphabetical order.

    Raises
    ------
    ValueError
        If shapes do not fit or an embedding is zero or not finite.
    """
    similar = cosines(names, embeddings)
    order = sorted(range(len(names)), key=lambda index: names[index])
    rank = {index: place for place, index in enumerate(order)}
    allowed = similar >= threshold
    for i, j in _above_diagonal(allowed):
        if distinct_kinds(names[i], names[j]):
            allowed[i, j] = allowed[j, i] = False
    pairs = _above_diagonal(allowed)
    pairs.sort(key=lambda ij: (-similar[ij], *sorted((rank[ij[0]], rank[ij[1]]))))
    group = {index: [index] for index in range(len(names))}
    for i, j in pairs:
        one, other = group[i], group[j]
        if one is not other and allowed[np.ix_(one, other)].all():
            joined = one + other
            group.update(dict.fromkeys(joined, joined))
    groups = {id(members): sorted(members, key=rank.__getitem__) for members in group.values()}
    return sorted(groups.values(), key=lambda members: rank[members[0]])


def _above_diagonal(allowed: NDArray[np.bool_]) -> list[tuple[int, int]]:
    first, second = np.nonzero(np.triu(allowed, 1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def cosines(names: Sequence[str], embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of every name to every other, [n, n], symmetric.

    Raises
    ------
    ValueError
        As for :func:`merge_names`.
    """
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise ValueError(f"embeddings {vectors.shape} do not fit {len(names)} names")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError("an embedding is zero or not finite")
    unit = vectors / lengths
    product = unit @ unit.T
    # Rounding leaves the product a little asymmetric; 12 digits are the same on every machine.
    return np.round((product + product.T) / 2, 12)


def names_to_embed(labels: Sequence[SourceLabel]) -> tuple[str, ...]:
    """The distinct names among `labels` that stand for a disease, sorted.

    Neither "unknown" nor "non melanoma" is one, the latter only where melanoma is a name itself.
    """
    positive = {label.normalised.removeprefix(NOT) for label in labels}
    return tuple(
        sorted(
            name
            for name in positive
            if not means_unknown(name) and negated_name(name) not in positive
        )
    )


def propose(
    labels: Sequence[SourceLabel],
    embeddings: NDArray[np.floating] | None = None,
    *,
    threshold: float = THRESHOLD,
    near: int = 10,
) -> Proposal:
    """Propose for each source label the name it is merged into.

    A group is called by its name with the most images, then in the most data sets, then the
    shortest. Labels like "unknown" and "other" get no name; "non melanoma" becomes `!melanoma`
    where melanoma is a name.

    Parameters
    ----------
    labels
        As :func:`~dermino_core.label_collection.collect_labels` gives them.
    embeddings
        [n, D], of :func:`names_to_embed` in that order; None: merge nothing by meaning.
    threshold
        Cosine.
    near
        Pairs below the threshold to report.
    """
    names = names_to_embed(labels)
    index = {name: place for place, name in enumerate(names)}
    similar = np.eye(len(names)) if embeddings is None else cosines(names, embeddings)
    groups = (
        [[place] for place in range(len(names))]
        if embeddings is None
        else merge_names(names, embeddings, threshold)
    )
    weight = _weights(labels)
    merged_into: dict[str, str] = {}
    for members in groups:
        best = min((names[m] for m in members), key=lambda n: (*weight[n], len(n), n))
        merged_into.update((names[m], best) for m in members)
    rows = [_row(label, merged_into, index, similar) for label in labels]
    return Proposal(
        rows,
        tuple(sorted(set(merged_into.values()))),
        [
            Pair(name, best, float(similar[index[name], index[best]]))
            for name, best in merged_into.items()
            if name != best
        ],
        _near_misses(names, similar, merged_into, threshold, near)
        if embeddings is not None
        else [],
    )


def _weights(labels: Sequence[SourceLabel]) -> Mapping[str, tuple[int, int]]:
    """Minus images and minus data sets, of each name."""
    images: dict[str, int] = {}
    datasets: dict[str, set[str]] = {}
    for label in labels:
        name = label.normalised.removeprefix(NOT)
        images[name] = images.get(name, 0) + (label.images or 0)
        datasets.setdefault(name, set()).add(label.dataset)
    return {name: (-count, -len(datasets[name])) for name, count in images.items()}


def _row(
    label: SourceLabel,
    merged_into: Mapping[str, str],
    index: Mapping[str, int],
    similar: NDArray[np.float64],
) -> LabelRow:
    name = label.normalised.removeprefix(NOT)
    negated = negated_name(name)
    target: str | None = None
    similarity: float | None = None
    if name in merged_into:
        best = merged_into[name]
        similarity = float(similar[index[name], index[best]])
        target = NOT + best if label.normalised.startswith(NOT) else best
    elif negated is not None and negated in merged_into:
        target = NOT + merged_into[negated]
    return LabelRow(
        label.label,
        label.dataset,
        label.images,
        label.normalised,
        (target,) if target else (),
        similarity,
    )


def _near_misses(
    names: Sequence[str],
    similar: NDArray[np.float64],
    merged_into: Mapping[str, str],
    threshold: float,
    count: int,
) -> list[Pair]:
    pairs = _above_diagonal(similar >= threshold - NEAR)
    pairs.sort(key=lambda pair: -similar[pair])
    apart = (
        Pair(names[i], names[j], float(similar[i, j]))
        for i, j in pairs
        if merged_into[names[i]] != merged_into[names[j]]
    )
    return list(islice(apart, count))
