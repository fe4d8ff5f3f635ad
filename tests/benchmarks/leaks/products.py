"""What ridge's sums of outer products tell of an image, without any shadow run.

With P the sum of x x^T over all images that took part, the leverage x^T P^-1 x of an image that
took part is at most 1 (it is the diagonal of a projection), and a stranger's has no bound. With
fewer images than features P has no inverse: the members span its image, and what sticks out of it
is infinitely far away, so that members are told without error. Ridge sends such a sum of every
fold, and "fewer" counts the images of a fold; it holds of the sum over hospitals as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dermino_core.moments import Moments, matrix_of
from dermino_strategies.base import Arrays
from tests.benchmarks.leaks.scores import Figures, measure
from tests.benchmarks.leaks.victims import Federation, Floats, Hospital

OWN = "one hospital's sums, by fold"
OWN_TOTAL = "one hospital's sums, in all"
ALL = "all hospitals' sums, by fold (the coordinator, also under secure aggregation)"
TOTAL = "all hospitals' sums, in all (what the coordinator keeps)"

_ROUNDING = 1e-6
"""Share of the largest eigenvalue below which one is rounding: folds travel as float32."""

_TOLERANCE = 0.1


def fold_matrices(sums: Arrays) -> list[Floats]:
    """The outer products of every fold, [D, D] each; the last one is the total less the others."""
    total = Moments.from_arrays(sums, "total.").matrix()
    sent = sums["fold.products"].astype(np.float64)
    folds = [matrix_of(fold.sum(axis=0), len(total)) for fold in sent]
    return [*folds, total - np.sum(folds, axis=0)]


def leverage_scores(matrices: Sequence[Floats], features: Floats) -> Floats:
    """How far the smallest leverage of each image in a matrix is below 1, as a log, [n].

    Above 0, with a tenth for rounding: took part. Below: surely did not.
    """
    smallest = np.full(len(features), np.inf)
    for matrix in matrices:
        values, vectors = np.linalg.eigh(matrix)
        floor = _ROUNDING * max(float(values[-1]), np.finfo(float).tiny)
        leverage = (features @ vectors) ** 2 @ (1 / np.maximum(values, floor))
        smallest = np.minimum(smallest, leverage)
    return _TOLERANCE - np.log(np.maximum(smallest, np.finfo(float).tiny))


def attack_sums(
    federation: Federation, hospitals: Sequence[Hospital], *, targets: int, seed: int = 0
) -> Mapping[str, Mapping[str, Figures]]:
    """Place -> hospital -> the leverage attack's figures on so many runs."""
    rng = np.random.default_rng([seed, 4])
    member = {hospital.name: [] for hospital in hospitals}
    scores: dict[tuple[str, str], list[Floats]] = {}
    for run in range(targets):
        chosen = {hospital.name: hospital.draw(rng) for hospital in hospitals}
        sites = [hospital.data(chosen[hospital.name]) for hospital in hospitals]
        updates, total = federation.summed(sites, seed=run)
        everyone = {
            ALL: fold_matrices(total),
            TOTAL: [Moments.from_arrays(total, "total.").matrix()],
        }
        for hospital in hospitals:
            member[hospital.name].append(chosen[hospital.name])
            features = hospital.features.astype(np.float64)
            sent = federation.strategy.summand(updates[hospital.name])
            own = {
                OWN: fold_matrices(sent),
                OWN_TOTAL: [Moments.from_arrays(sent, "total.").matrix()],
            }
            for where, matrices in (own | everyone).items():
                found = leverage_scores(matrices, features)
                scores.setdefault((where, hospital.name), []).append(found)
    return {
        where: {
            hospital.name: measure(
                np.array(scores[where, hospital.name]),
                np.array(member[hospital.name]),
                hospital.groups,
                seed=seed,
            )
            for hospital in hospitals
        }
        for where in (OWN, OWN_TOTAL, ALL, TOTAL)
    }
