"""Classification: a linear layer on frozen features (paper, section 4.2).

Two ways to fit it. `linear probe` is the paper's: cross-entropy, Adam with learning rate 5e-3
annealed by a cosine, 50 epochs. `logistic regression` is the same model at its optimum, with an L2
penalty chosen inside the training half, so that its numbers depend on features and not on where a
schedule stopped.
"""

from __future__ import annotations

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.examples import Examples, Halves, Integers
from dermino_core.evaluation.logistic import fit_logistic
from dermino_core.evaluation.measure import Outcome
from dermino_core.evaluation.neighbours import require_finite
from dermino_core.evaluation.statistics import classification_measures, draw_units
from dermino_core.heads import HeadRecipe, LinearHead, fit_head
from dermino_core.metrics import REPLICATES, roc_curve

PROBE = HeadRecipe(epochs=50, learning_rate=5e-3, batch_size=32)
"""The paper's; it does not say the batch size, so that of its federated heads here is taken."""


def classification(
    halves: Halves,
    *,
    class_weights: bool = False,
    probe: HeadRecipe = PROBE,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Outcome:
    """Fit both methods on the training half and measure them on the test half.

    Parameters
    ----------
    class_weights
        Whether all classes count the same, however many images they have: by weighing images
        (`logistic regression`), or repeating them until classes are equal (`linear probe`).
    probe
        How the linear probe is trained, on features as they are.

    Returns
    -------
    Outcome
        Measures of :func:`~dermino_core.evaluation.statistics.classification_measures`,
        predictions (probabilities) and ROC curves for both methods.

    Raises
    ------
    DerminoError
        As :func:`require_learnable`.
    """
    require_learnable(halves)
    train, test, n_classes = halves.train, halves.test, len(halves.classes)
    logistic = fit_logistic(train, n_classes, class_weights=class_weights, seed=seed)
    head = _linear_probe(train, n_classes, probe, class_weights=class_weights, seed=seed)
    predictions = {
        "logistic regression": logistic.probabilities(test.features),
        "linear probe": head.probabilities(test.features),
    }
    measures = [
        measure
        for method, scores in predictions.items()
        for measure in classification_measures(
            test.labels,
            scores,
            test.units,
            method=method,
            n_classes=n_classes,
            replicates=replicates,
            seed=seed,
        )
    ]
    rocs = {}
    if len(np.unique(test.labels)) > 1:
        draws = draw_units(test.units, replicates=replicates, seed=seed)
        rocs = {name: roc_curve(test.labels, p, draws) for name, p in predictions.items()}
    notes = [
        f"Logistic regression: {logistic.sentence}",
        f"Linear probe: Adam, learning rate {probe.learning_rate:g} annealed by a cosine, "
        f"{probe.epochs} epochs, batches of {probe.batch_size}.",
    ]
    if class_weights:
        notes.append(
            "All classes count the same: logistic regression weighs images, the linear probe "
            "repeats them."
        )
    return Outcome(measures, predictions, rocs, notes=notes)


def require_learnable(halves: Halves) -> None:
    """Refuse halves that no classifier can be fitted on and measured.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if the training half has images of fewer than two classes, or a class is in
        the test half only; `MODEL_INVALID` if a feature is not finite.
    """
    known = np.unique(halves.train.labels)
    if len(known) < 2:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"The training half has images of {len(known)} classes; two are needed.",
            fix="Give more images, or another division into halves.",
        )
    if unknown := set(halves.test.labels.tolist()) - set(known.tolist()):
        raise DerminoError(
            "DATA_TOO_FEW",
            f"{halves.classes[min(unknown)]!r} is in the test half only: nothing can be learned "
            "about it.",
            fix="Divide the images so that each class is in both halves, or leave it out.",
        )
    require_finite(halves.train.features, halves.test.features)


def _linear_probe(
    train: Examples, n_classes: int, recipe: HeadRecipe, *, class_weights: bool, seed: int
) -> LinearHead:
    rows = _balanced(train.labels, seed) if class_weights else np.arange(len(train))
    start = LinearHead.initial(n_classes, train.features.shape[1], seed=seed)
    return fit_head(start, train.features[rows], train.labels[rows], recipe, seed=[seed])[0]


def _balanced(labels: Integers, seed: int) -> Integers:
    """Rows, repeated until every class present has as many as the largest."""
    rng = np.random.default_rng([seed, len(labels)])
    most = np.bincount(labels).max()
    members = (rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels))
    return np.concatenate([np.resize(rows, most) for rows in members])
