"""Was this image part of a private ridge's noisy sums? The likelihood ratio, without shadow runs.

What is sent is `A m + noise`: a known column of A for each candidate, memberships m of 0 and 1 with
mean 1/2, and Gaussian noise of known size. With the other candidates' part taken for Gaussian too,
which a sum over hundreds is, the log likelihood ratio of one image is linear in what is seen
(Neyman & Pearson 1933): `a' S^-1 (seen - A / 2)`, S the noise's covariance and that of the others.
No attack with this knowledge does better. The columns are computed from the method's description,
not by its code, for one image a patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dermino_core.moments import Moments
from dermino_strategies.base import Arrays
from dermino_strategies.private_ridge import PARTS, directions, usual_dimensions
from dermino_strategies.ridge import Ridge
from tests.benchmarks.leaks.scores import Figures, measure
from tests.benchmarks.leaks.victims import Federation, Floats, Hospital

OWN, ALL = "one hospital's sums", "all hospitals' sums"


class Release:
    """The numbers that a private ridge really sends, in units of its noise.

    Parameters
    ----------
    federation
        A private ridge.
    width
        D of the features.
    """

    def __init__(self, federation: Federation, width: int) -> None:
        if federation.plan is None or not isinstance(federation.strategy, Ridge):
            raise TypeError(f"{federation.name} is no private ridge")
        settings = federation.strategy.settings
        plan = federation.plan
        dimensions = settings.projection or usual_dimensions(plan.request.epsilon)
        basis = directions(width, dimensions, 0)
        self._basis = basis / np.sqrt(basis.shape[1])
        self._middle = np.array(settings.centre) if settings.centre else np.zeros(width)
        self._units = [part / plan.per_round.noise_multiplier for part in PARTS]
        self._upper = np.triu_indices(basis.shape[1])

    def columns(self, hospital: Hospital) -> Floats:
        """What each image adds, [p, n]."""
        if len(np.unique(hospital.groups)) < len(hospital.groups):
            raise RuntimeError(f"{hospital.name} has patients with several images")
        z = (hospital.features.astype(np.float64) - self._middle) @ self._basis
        z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1)
        one_hot = np.eye(2)[hospital.labels]
        sums = (one_hot[:, :, None] * z[:, None, :]).reshape(len(z), -1)
        products = (z[:, :, None] * z[:, None, :])[:, self._upper[0], self._upper[1]]
        parts = zip(self._units, (one_hot, sums, products), strict=True)
        return np.hstack([unit * part for unit, part in parts]).T

    def seen(self, summand: Arrays) -> Floats:
        """What a summand, or a sum of them, tells, [p]: moved to the directions that were used."""
        moments = Moments.from_arrays(summand, "total.")
        counts, middle = moments.counts, self._middle
        sums = moments.sums - counts[:, None] * middle
        crossed = np.outer(sums.sum(axis=0), middle)
        square = counts.sum() * np.outer(middle, middle)
        matrix = self._basis.T @ (moments.matrix() - crossed - crossed.T - square) @ self._basis
        parts = (counts, (sums @ self._basis).ravel(), matrix[self._upper])
        return np.concatenate([u * p for u, p in zip(self._units, parts, strict=True)])


def likelihood_ratios(columns: Floats, seen: Floats, noises: int) -> Floats:
    """Log likelihood ratio of every candidate in every run, [T, n].

    Parameters
    ----------
    columns
        [p, n], in units of one site's noise.
    seen
        [T, p].
    noises
        How many sites added noise.
    """
    covariance = noises * np.eye(len(columns)) + columns @ columns.T / 4
    solved = np.linalg.solve(covariance, columns)
    of_itself = (columns * solved).sum(axis=0) / 4
    # Sherman & Morrison 1950: without the candidate's own part in the covariance.
    return (seen - columns.sum(axis=1) / 2) @ solved / (1 - of_itself)


def attack_noisy_sums(
    federation: Federation, hospitals: Sequence[Hospital], *, targets: int, seed: int = 0
) -> Mapping[str, Mapping[str, Figures]]:
    """Place -> hospital -> figures of the likelihood ratio on so many runs."""
    release = Release(federation, hospitals[0].features.shape[1])
    columns = {hospital.name: release.columns(hospital) for hospital in hospitals}
    rng = np.random.default_rng([seed, 6])
    member = {hospital.name: [] for hospital in hospitals}
    own = {hospital.name: [] for hospital in hospitals}
    together = []
    for run in range(targets):
        chosen = {hospital.name: hospital.draw(rng) for hospital in hospitals}
        sites = [hospital.data(chosen[hospital.name]) for hospital in hospitals]
        updates, total = federation.summed(sites, seed=run)
        together.append(release.seen(total))
        for name, update in updates.items():
            member[name].append(chosen[name])
            own[name].append(release.seen(federation.strategy.summand(update)))
    joint = likelihood_ratios(
        np.hstack([columns[one.name] for one in hospitals]), np.array(together), len(hospitals)
    )
    ends = np.cumsum([len(one.labels) for one in hospitals])[:-1]
    shared = dict(zip(member, np.split(joint, ends, axis=1), strict=True))
    found: dict[str, dict[str, Figures]] = {OWN: {}, ALL: {}}
    for one in hospitals:
        alone = likelihood_ratios(columns[one.name], np.array(own[one.name]), 1)
        truth = np.array(member[one.name])
        for where, scores in ((OWN, alone), (ALL, shared[one.name])):
            found[where][one.name] = measure(scores, truth, one.groups, seed=seed)
    return found
