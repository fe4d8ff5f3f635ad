"""How much of an image's features an upload gives back.

For one image x the gradient of a linear layer is r x^T for the weights and r for the biases, with
r the softmax's residual: a row of the one over an entry of the other is x, exactly, whatever the
loss (Geiping et al. 2020, "Inverting Gradients", Proposition 3.1; Zhu et al. 2019). Over several
images the quotient is a weighted mean of them. A head moved by Adam is not a gradient: after one
step only the signs are left.

A trial draws sites, lets them train and compares the quotient with the features of all images that
were trained on. Features of dermoscopic images all point much the same way (two strangers have a
median cosine of 0.82), so the mean of the pool is taken off both first: what is left is the
image's own.
`cosine` is the best over all images and candidates, which the attacker could not pick out by
itself; `guess` is the best of as many strangers; `named` says whether the image of the whole pool
that is most like a candidate took part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dermino_core.heads import LinearHead
from dermino_strategies.base import Arrays, SiteData
from tests.benchmarks.leaks.private_shadow import fast_private_training
from tests.benchmarks.leaks.scores import Measured, resampled
from tests.benchmarks.leaks.victims import Federation, Floats, Hospital

Rows = npt.NDArray[np.intp]


def invert(move: Arrays) -> Floats:
    """Guessed features, [C, D]: each row of the weights' move over its bias's (0 if that is 0)."""
    weight, bias = move["weight"].astype(np.float64), move["bias"].astype(np.float64)
    still = bias == 0
    return np.where(still[:, None], 0.0, weight / np.where(still, 1.0, bias)[:, None])


class Mover(Protocol):
    """What an attacker sees of a round: how far a head moved."""

    def move(self, sites: Sequence[SiteData], seed: int) -> Arrays:
        """The move of the (weighted mean) head of these sites, from a known start."""
        ...


@dataclass(frozen=True)
class Gradient:
    """One step down the plain gradient of all images together. dermino's FedAvg uses Adam."""

    def move(self, sites: Sequence[SiteData], seed: int) -> Arrays:
        """Minus the mean gradient of the cross-entropy, in a gradient step of length 1."""
        total = {"weight": np.zeros(0), "bias": np.zeros(0)}
        images = sum(len(site.labels) for site in sites)
        for number, site in enumerate(sites):
            width = site.features.shape[1]
            head = LinearHead.initial(site.n_classes, width, seed=seed)
            residual = np.eye(site.n_classes)[site.labels] - head.probabilities(site.features)
            step = {"weight": residual.T @ site.features / images, "bias": residual.sum(0) / images}
            total = step if number == 0 else {name: total[name] + step[name] for name in step}
        return total


@dataclass(frozen=True)
class Round:
    """The first round of a federation: of a single site its upload, of several the sum's head."""

    federation: Federation

    def move(self, sites: Sequence[SiteData], seed: int) -> Arrays:
        """Global arrays after the round minus before it."""
        with fast_private_training():
            trace = self.federation.play(sites, seed)
        before, after = trace.sent[0], trace.sums[0]
        return {name: after[name].astype(np.float64) - before[name] for name in before}


@dataclass(frozen=True)
class Returned:
    """What came back of the images, over the trials."""

    cosine: Measured
    guess: Measured
    named: Measured
    chance: float


def measure_return(
    hospital: Hospital,
    mover: Mover,
    *,
    images: int,
    sites: int = 1,
    trials: int = 200,
    seed: int = 0,
) -> Returned:
    """Sites of so many images each, of this hospital's pool, drawn anew for every trial."""
    count, rng = len(hospital.labels), np.random.default_rng([seed, images, sites])
    centre = hospital.features.mean(axis=0, dtype=np.float64)
    usual = np.abs(hospital.features).mean(axis=0, dtype=np.float64)
    own = _directions(hospital.features - centre)
    names = [f"{hospital.name}-{site}" for site in range(sites)]
    cosines, guesses, named = [], [], []
    for trial in range(trials):
        order = rng.permutation(count)
        true, others = order[: images * sites], order[images * sites :]
        parts = zip(true.reshape(sites, -1), names, strict=True)
        quotient = invert(mover.move([_site(hospital, *part) for part in parts], trial))
        candidates = np.concatenate([quotient, np.sign(quotient) * usual])
        alike = _directions(candidates - centre) @ own.T
        cosines.append(alike[:, true].max())
        named.append(alike.max(axis=0).argmax() in true)
        guesses.append((own[others[: len(candidates)]] @ own[true].T).max())
    return Returned(
        *(resampled(np.array(values, dtype=float)) for values in (cosines, guesses, named)),
        chance=images * sites / count,
    )


def _directions(vectors: Floats) -> Floats:
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(size > 0, size, 1)


def _site(hospital: Hospital, rows: Rows, name: str) -> SiteData:
    return SiteData(
        name,
        hospital.features[rows],
        hospital.labels[rows],
        n_classes=2,
        groups=tuple(hospital.groups[rows]),
    )
