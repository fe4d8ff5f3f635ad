"""Retrieval: the nearest training images vote on the class of a test image (paper, section 4.2)."""

from __future__ import annotations

import numpy as np

from dermino_core.evaluation.examples import Floats, Halves, Integers
from dermino_core.evaluation.measure import Outcome
from dermino_core.evaluation.neighbours import nearest, neighbour_votes, sums_by_class
from dermino_core.evaluation.statistics import classification_measures
from dermino_core.metrics import REPLICATES

NEIGHBOURS = 5
"""k, as in the paper."""

TEMPERATURE = 0.07
"""Of `softmax`, as in DINO's nearest-neighbour evaluation (Caron et al. 2021)."""


def retrieval(
    halves: Halves,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    replicates: int = REPLICATES,
    seed: int = 0,
    device: str = "auto",
) -> Outcome:
    """Classify each test image by its k nearest training images (cosine).

    Method `votes` is the paper's: scores are shares of the k votes, the label is the majority's.
    Of classes with equally many votes the one with the larger sum of similarities is said; of
    equal sums the first class. Its scores have k + 1 levels, so its AUROC has many ties.

    Method `softmax` weighs votes by exp(similarity / temperature); the label is the class of the
    highest score.

    Parameters
    ----------
    halves
        The gallery is its training half.
    device
        As for :func:`dermino_core.evaluation.neighbours.nearest`.

    Returns
    -------
    Outcome
        Measures of :func:`~dermino_core.evaluation.statistics.classification_measures` and
        predictions for both methods.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if the training half has fewer than k images; `MODEL_INVALID` if a feature
        is not finite; `DEVICE_UNAVAILABLE`.
    """
    train, test, n_classes = halves.train, halves.test, len(halves.classes)
    similarities, rows = nearest(test.features, train.features, k, device=device)
    labels = train.labels[rows]
    votes = sums_by_class(np.ones(labels.shape), labels, n_classes)
    weighted = neighbour_votes(similarities, labels, n_classes, temperature=temperature)
    methods = {
        "votes": (votes / k, majority(votes, similarities, labels)),
        "softmax": (weighted, weighted.argmax(axis=1)),
    }
    measures = [
        measure
        for method, (scores, predicted) in methods.items()
        for measure in classification_measures(
            test.labels,
            scores,
            test.units,
            method=method,
            n_classes=n_classes,
            predicted=predicted,
            replicates=replicates,
            seed=seed,
        )
    ]
    note = (
        f"`votes` are shares of {k} neighbours, so their AUROC rests on {k + 1} levels with many "
        f"ties; `softmax` weighs them by similarity (temperature {temperature:g})."
    )
    predictions = {method: scores for method, (scores, _) in methods.items()}
    return Outcome(measures, predictions, notes=[note])


def majority(votes: Floats, similarities: Floats, labels: Integers) -> Integers:
    """Class with most votes; of several, that with the largest sum of similarities, then the first.

    Parameters
    ----------
    votes
        How many of the neighbours are of each class, [n, C].
    similarities, labels
        Of the neighbours, [n, k].

    Returns
    -------
    Class indices, [n].
    """
    leads = votes == votes.max(axis=1, keepdims=True)
    sums = sums_by_class(similarities, labels, votes.shape[1])
    return np.where(leads, sums, -np.inf).argmax(axis=1)
