"""Label efficiency: how good a classifier gets with labels for a share of the training half.

Paper, Fig. 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dermino_core.evaluation.classification import require_learnable
from dermino_core.evaluation.examples import Halves, Integers
from dermino_core.evaluation.logistic import fit_logistic, unit_classes
from dermino_core.evaluation.measure import Measure, Outcome, measured
from dermino_core.evaluation.statistics import classification_measures
from dermino_core.metrics import REPLICATES

METHOD = "logistic regression"
SHARES = (0.01, 0.05, 0.10, 0.20, 0.50, 1.0)
SEEDS = 5


def label_efficiency(
    halves: Halves,
    *,
    shares: Sequence[float] = SHARES,
    seeds: int = SEEDS,
    class_weights: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Outcome:
    """Fit the logistic regression on shares of the training half, each drawn several times.

    The penalty is chosen anew inside each draw
    (:func:`~dermino_core.evaluation.logistic.fit_logistic`), so that a small share knows
    nothing of the labels it does not have; features are standardised by all images of the training
    half. A value is the mean over the draws. The bootstrap replicates are divided among the draws
    and make one interval: it holds the chance of which images were labelled and of which were
    tested.

    Parameters
    ----------
    shares
        In (0, 1]. One with fewer images than classes is not scored; a note says so.
    seeds
        Draws of each share; all of the training half is one.
    replicates
        Of all draws together.
    seed
        Of draws, folds and the bootstrap.

    Returns
    -------
    Outcome
        Measures of :func:`~dermino_core.evaluation.statistics.classification_measures` with
        setting `share=0.05`. Notes name the numbers of training images.

    Raises
    ------
    DerminoError
        As :func:`~dermino_core.evaluation.classification.require_learnable`.
    ValueError
        If a share is not in (0, 1], or `seeds` < 1.
    """
    if seeds < 1 or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares in (0, 1] and seeds from 1, not {shares} and {seeds}")
    require_learnable(halves)
    train, test = halves.train, halves.test
    n_classes = len(np.unique(train.labels))
    measures: list[Measure] = []
    sizes: list[str] = []
    too_small: list[str] = []
    for share in sorted(shares):
        if round(share * len(train)) < n_classes:
            too_small.append(f"{share:g}")
            continue
        draws = [
            stratified_share(train.labels, train.units, share, seed=[seed, number])
            for number in range(1 if share == 1 else seeds)
        ]
        found = [
            classification_measures(
                test.labels,
                fit_logistic(
                    train.take(rows),
                    len(halves.classes),
                    unlabelled=train.features,
                    class_weights=class_weights,
                    seed=seed,
                ).probabilities(test.features),
                test.units,
                method=METHOD,
                n_classes=len(halves.classes),
                replicates=-(-replicates // len(draws)),
                seed=seed + number,
                setting=f"share={share:g}",
            )
            for number, rows in enumerate(draws)
        ]
        measures += [_over_draws(several) for several in zip(*found, strict=True)]
        sizes.append(f"{share:g}: {_range([len(rows) for rows in draws])}")
    notes = [
        f"Labelled training images by share: {'; '.join(sizes) or 'none'}. Each share below 1 was "
        f"drawn {seeds} times; features are standardised by all {len(train)}."
    ]
    if too_small:
        notes.append(
            f"Not scored, as it would be fewer images than the {n_classes} classes: "
            f"share {', '.join(too_small)} of {len(train)} training images."
        )
    return Outcome(measures, notes=notes)


def stratified_share(
    labels: Integers, units: Sequence[str], share: float, *, seed: Sequence[int]
) -> Integers:
    """Rows of a share of the images, in order: whole units, and each class as often as in all.

    Units of each class are shuffled and taken from the front until their images come nearest to
    the class's share, one unit at least. Where units are of one class, a larger share of
    one seed holds the smaller ones. Another unit counts for its most frequent class; a class that
    is in none of the units taken is added with its first.

    Parameters
    ----------
    labels, units
        Class index, and patient or lesion, of each image.
    share
        In (0, 1].
    """
    unit_of, class_of = unit_classes(labels, units)
    sizes = np.bincount(unit_of)
    shuffled = np.random.default_rng(list(seed)).permutation(len(sizes))
    chosen = np.zeros(len(sizes), bool)
    for label in np.unique(labels):
        of_class = shuffled[class_of[shuffled] == label]
        if not len(of_class):
            continue
        taken = np.cumsum(sizes[of_class])
        nearest = np.abs(taken - share * taken[-1]).argmin()
        chosen[of_class[: nearest + 1]] = True
    for label in np.setdiff1d(labels, labels[chosen[unit_of]]):
        with_label = np.isin(shuffled, unit_of[labels == label])
        chosen[shuffled[with_label][0]] = True
    return np.flatnonzero(chosen[unit_of])


def _over_draws(several: Sequence[Measure]) -> Measure:
    """Mean of the draws' values, and all their replicates."""
    first = several[0]
    values = [m.value for m in several if m.value is not None]
    pooled = [m.replicates for m in several if m.replicates is not None]
    return measured(
        first.method,
        first.metric,
        float(np.mean(values)) if values else np.nan,
        np.concatenate(pooled) if pooled else None,
        n=first.n,
        setting=first.setting,
        why_undefined=first.undefined_because or "undefined",
    )


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
