"""Did a lesion change between two dated images? (PanDerm's longitudinal monitoring.)

A pair is described by the difference of its frozen features (what became more, what less), the
absolute difference (how much) and the product (what both have), and a logistic regression says
whether that is a change. The distance of the two features alone, without training, is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.examples import Floats, Integers
from dermino_core.evaluation.measure import FloatArray, Outcome
from dermino_core.evaluation.statistics import classification_measures, draw_units
from dermino_core.evaluation.visits import Pairs
from dermino_core.manifest import Record
from dermino_core.metrics import calibration, roc_curve
from dermino_core.splits import split_records, torn_units

LEARNED, DISTANCE = "logistic regression", "distance"

STRENGTH = 0.01
"""Inverse of the L2 penalty. Small: pairs are few, and have three times an image's features."""


def pair_features(before: Floats, after: Floats) -> FloatArray:
    """Difference, absolute difference and product side by side, [P, 3 D], of features [P, D]."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    difference = after - before
    return np.concatenate([difference, np.abs(difference), before * after], axis=1)


def longitudinal(
    features: Floats,
    pairs: Pairs,
    *,
    strength: float = STRENGTH,
    replicates: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Learn on half of the pairs, test on the other; no patient (or lesion) is in both.

    Parameters
    ----------
    features
        Of each visit that `pairs` was made from, [n, D]; not finite where an image could not be
        read: its pairs are left out.
    strength
        Inverse of the L2 penalty on standardised pair features.

    Returns
    -------
    Outcome
        Method `logistic regression`: AUROC and the other metrics of a classification, ROC curve
        and calibration; method `distance` (cosine): AUROC. `n` counts pairs. There are no
        `predictions`, because these belong to images.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` if a half has no changed or no unchanged pair; `MANIFEST_INVALID` if only
        some pairs have a split of their own.
    ValueError
        If `features` has too few rows or `strength` is not above 0.
    """
    if features.ndim != 2 or len(features) <= max(pairs.before.max(), pairs.after.max()):
        raise ValueError(f"features {list(features.shape)} do not cover the visits of the pairs")
    if not strength > 0:
        raise ValueError(f"strength must be above 0, not {strength}")
    notes = list(pairs.notes)
    readable = np.asarray(np.isfinite(features).all(axis=1))
    kept = np.flatnonzero(readable[pairs.before] & readable[pairs.after])
    if left_out := len(pairs) - len(kept):
        notes.append(f"{left_out} pairs have an image that cannot be read and are left out.")
    labels = pairs.labels[kept]
    units = [pairs.units[row] for row in kept]
    halves = _halves(pairs, kept, labels, units, seed, notes)
    before, after = features[pairs.before[kept]], features[pairs.after[kept]]
    train, test = np.flatnonzero(halves != "test"), np.flatnonzero(halves == "test")
    _check_classes(labels, train, test)
    inputs = pair_features(before, after)
    scores = _learn(inputs[train], labels[train], inputs[test], strength)
    apart = _cosine_distance(before[test], after[test])
    of_test, units_of_test = labels[test], [units[row] for row in test]
    learned, measured = (
        classification_measures(
            of_test,
            columns,
            units_of_test,
            method=method,
            n_classes=2,
            replicates=replicates,
            seed=seed,
        )
        for method, columns in (
            (LEARNED, scores),
            (DISTANCE, np.stack([-apart, apart], axis=1)),
        )
    )
    draws = draw_units(units_of_test, replicates=replicates, seed=seed)
    notes.append(
        f"{len(train)} training pairs ({int(labels[train].sum())} changed), {len(test)} test pairs "
        f"({int(of_test.sum())} changed)."
    )
    # A distance has no threshold of its own: only AUROC means something.
    return Outcome(
        [*learned, *(one for one in measured if one.metric == "auroc")],
        rocs={LEARNED: roc_curve(of_test, scores, draws)},
        calibrations={LEARNED: calibration(of_test, scores)},
        notes=notes,
    )


def _halves(
    pairs: Pairs,
    kept: Integers,
    labels: Integers,
    units: Sequence[str],
    seed: int,
    notes: list[str],
) -> np.ndarray:
    """`train`, `val` or `test` for each pair kept."""
    records = [
        Record(f"{pairs.before[row]} {pairs.after[row]}", group=unit, split=pairs.splits[row])
        for row, unit in zip(kept, units, strict=True)
    ]
    own = any(record.split is not None for record in records)
    halves = split_records(records, [str(label) for label in labels], seed=seed)
    if own and (torn := torn_units(units, halves)):
        notes.append(
            f"The data set's own split puts {len(torn)} patients or lesions into both halves: its "
            "numbers flatter."
        )
    return np.array(halves)


def _check_classes(labels: Integers, train: Integers, test: Integers) -> None:
    for half, rows in (("training", train), ("test", test)):
        for number, name in enumerate(("unchanged", "changed")):
            if not (labels[rows] == number).any():
                raise DerminoError(
                    "DATA_TOO_FEW",
                    f"The {half} half has no pair of images of a lesion that is {name}.",
                    fix="Give more lesions, or a column split with both kinds in both halves.",
                )


def _learn(inputs: FloatArray, labels: Integers, tested: FloatArray, strength: float) -> FloatArray:
    """Probabilities [n_test, 2] of a logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
    return np.asarray(model.fit(inputs, labels).predict_proba(tested), dtype=np.float64)


def _cosine_distance(before: Floats, after: Floats) -> FloatArray:
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return 1.0 - (before * after).sum(axis=1) / np.maximum(lengths, 1e-12)
