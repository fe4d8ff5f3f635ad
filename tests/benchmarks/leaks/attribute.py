"""What of a hospital as a whole can be told from what it gives out.

Property inference (Ateniese et al. 2015; Ganju et al. 2018, "Property Inference Attacks on Fully
Connected Neural Networks"; for federations, Melis et al. 2019): the attacker makes shadow sites
from images of its own, with and without the property, and learns to tell their uploads apart. The
attacked sites are made of other patients. Two properties: the share of malignant images, and the
share of women with the share of malignant images held still.

Differential privacy of a patient does not promise to hide this: a share is about all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.metrics import bootstrap_weights, macro_auroc
from tests.benchmarks.leaks.membership import decode
from tests.benchmarks.leaks.private_shadow import fast_private_training
from tests.benchmarks.leaks.scores import Measured
from tests.benchmarks.leaks.victims import Floats, Hospital

Rows = npt.NDArray[np.intp]

FEW, MANY = 0.3, 0.7
LEAST, MOST = 0.1, 0.9
"""Shares of women to tell apart, and the range of shares of malignant images."""


@dataclass(frozen=True)
class Sizes:
    """Splits of the patients into the attacker's and the attacked; sites of each; images a site."""

    splits: int = 8
    shadows: int = 512
    targets: int = 64
    images: int = 100


Upload = Callable[[Hospital, Rows, int], Floats]
"""What one site of these images gives out, as one vector; the last argument is a seed."""


def women(hospital: Hospital, upload: Upload, sizes: Sizes, *, seed: int = 0) -> Measured:
    """AUC of telling sites with 70 % women from sites with 30 %."""

    def draw(rng: np.random.Generator, pool: Rows) -> tuple[Rows, float]:
        share = MANY if rng.random() < 0.5 else FEW
        rows = [
            _pick(rng, pool, hospital, label, sex, part)
            for label in (0, 1)
            for sex, part in (
                (1, round(share * sizes.images / 2)),
                (0, round((1 - share) * sizes.images / 2)),
            )
        ]
        return np.concatenate(rows), float(share == MANY)

    said, truth = _guesses(hospital, upload, sizes, draw, seed)

    def auc(weights: npt.NDArray[np.integer] | None, split: int) -> Floats:
        scores = np.stack([-said[split], said[split]], axis=1)
        return macro_auroc(truth[split].astype(int), scores, weights)

    return _over_splits(auc, sizes, seed)


def malignant(
    hospital: Hospital, upload: Upload, sizes: Sizes, *, seed: int = 0
) -> tuple[Measured, Measured]:
    """Mean error of the guessed share of malignant images, and of always guessing the mean."""

    def draw(rng: np.random.Generator, pool: Rows) -> tuple[Rows, float]:
        count = round(rng.uniform(LEAST, MOST) * sizes.images)
        rows = [
            _pick(rng, pool, hospital, 1, None, count),
            _pick(rng, pool, hospital, 0, None, sizes.images - count),
        ]
        return np.concatenate(rows), count / sizes.images

    said, truth = _guesses(hospital, upload, sizes, draw, seed)
    middle = (LEAST + MOST) / 2

    def error(guess: Floats) -> Measured:
        off = np.abs(guess - truth)

        def mean(weights: npt.NDArray[np.integer] | None, split: int) -> Floats:
            if weights is None:
                return off[split].mean(keepdims=True)
            return weights @ off[split] / weights.sum(axis=1)

        return _over_splits(mean, sizes, seed)

    return error(np.clip(said, LEAST, MOST)), error(np.full_like(truth, middle))


def _pick(
    rng: np.random.Generator,
    pool: Rows,
    hospital: Hospital,
    label: int,
    sex: int | None,
    count: int,
) -> Rows:
    fits = hospital.labels[pool] == label
    if sex is not None:
        fits &= hospital.female[pool] == sex
    there = pool[fits]
    if len(there) < count:
        raise RuntimeError(
            f"{hospital.name} has {len(there)} images of class {label} and sex {sex} in a half, "
            f"not {count}"
        )
    return rng.choice(there, size=count, replace=False)


def _guesses(
    hospital: Hospital,
    upload: Upload,
    sizes: Sizes,
    draw: Callable[[np.random.Generator, Rows], tuple[Rows, float]],
    seed: int,
) -> tuple[Floats, Floats]:
    """What the attacker says and what is true of every target of every split, [S, T]."""
    said, truth = [], []
    patients, patient = np.unique(hospital.groups, return_inverse=True)
    for split in range(sizes.splits):
        rng = np.random.default_rng([seed, split, 2])
        own = (rng.permutation(len(patients)) % 2 == 0)[patient]
        sides = []
        for pool, count in ((own, sizes.shadows), (~own, sizes.targets)):
            drawn = [draw(rng, np.flatnonzero(pool)) for _ in range(count)]
            with fast_private_training():
                vectors = [upload(hospital, rows, int(rng.integers(2**31))) for rows, _ in drawn]
            sides.append((np.array(vectors), np.array([value for _, value in drawn])))
        (shadow, known), (target, asked) = sides
        said.append(decode(shadow, known[:, None], target)[1][:, 0])
        truth.append(asked)
    return np.array(said), np.array(truth)


def _over_splits(
    figure: Callable[[npt.NDArray[np.integer] | None, int], Floats], sizes: Sizes, seed: int
) -> Measured:
    """Mean over the splits; replicates draw splits, and targets within each."""
    replicates = 200
    each = [
        figure(bootstrap_weights(sizes.targets, replicates=replicates, seed=seed + split), split)
        for split in range(sizes.splits)
    ]
    value = float(np.mean([figure(None, split)[0] for split in range(sizes.splits)]))
    of_split = bootstrap_weights(sizes.splits, replicates=replicates, seed=seed)
    drawn = (of_split * np.stack(each, axis=1)).sum(axis=1) / sizes.splits
    return Measured(value, drawn)


def shares_known(hospitals: Sequence[Hospital]) -> list[Hospital]:
    """Those whose tables say who is a woman."""
    return [one for one in hospitals if np.isfinite(one.female).mean() > 0.5]
