"""What is measured on frozen features: neighbours, a linear probe, their rank."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.evaluation.neighbours import nearest, neighbour_votes
from dermino_core.files import write_atomically
from dermino_core.metrics import macro_auroc, paired_difference
from dermino_core.results import Estimate

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

TEMPERATURE = 0.07
"""Of the neighbours' votes, as in DINO's kNN evaluation."""

PENALTIES = tuple(10.0**power for power in range(-3, 7))
"""Ridge penalties to choose from, for features of variance 1."""

_SAVED = ("neighbour_scores", "linear_scores", "test_labels")


@dataclass(frozen=True)
class ProbeResult:
    """One measurement. Scores and labels of the test half, features of all images.

    Attributes
    ----------
    rank_me
        Effective rank of the features.
    neighbour_scores, linear_scores
        [n_test, C].
    test_labels, test_groups
        Class index, and patient or lesion, of each test image.
    features
        float32 [n, D].
    labels
        Class index of each image, [n].
    classes
        C names.
    """

    rank_me: float
    neighbour_scores: Floats
    linear_scores: Floats
    test_labels: Labels
    test_groups: tuple[str, ...]
    features: npt.NDArray[np.float32]
    labels: Labels
    classes: tuple[str, ...]

    @property
    def knn_auroc(self) -> float:
        """Macro AUROC of the neighbours' votes."""
        return _auroc(self.test_labels, self.neighbour_scores)

    @property
    def linear_auroc(self) -> float:
        """Macro AUROC of the linear probe."""
        return _auroc(self.test_labels, self.linear_scores)

    def record(self) -> dict[str, float | int]:
        """The numbers that are logged."""
        return {
            "knn_auroc": self.knn_auroc,
            "linear_auroc": self.linear_auroc,
            "rank_me": self.rank_me,
            "test_images": len(self.test_labels),
            "classes": len(self.classes),
        }

    def gain_over(self, start: ProbeStart) -> dict[str, float]:
        """AUROC minus that of `start` on the same images, with paired 95 % bootstrap intervals.

        Returns
        -------
        `knn_gain`, `knn_gain_low`, `knn_gain_high` and the same for `linear`; nothing where a
        number is undefined.

        Raises
        ------
        DerminoError
            CHECKPOINT_INVALID if `start` was measured on other images.
        """
        start.check(self.test_labels)
        gains: dict[str, float] = {}
        for name, before, after in (
            ("knn", start.neighbour_scores, self.neighbour_scores),
            ("linear", start.linear_scores, self.linear_scores),
        ):
            if np.isfinite(before).all() and np.isfinite(after).all():
                gains.update(_gain(name, self, before, after))
        return gains

    def start(self) -> ProbeStart:
        """What later measurements are compared with."""
        return ProbeStart(self.neighbour_scores, self.linear_scores, self.test_labels)


@dataclass(frozen=True)
class ProbeStart:
    """Test scores of the first measurement of a run, small enough to keep in a file."""

    neighbour_scores: Floats
    linear_scores: Floats
    test_labels: Labels

    def check(self, test_labels: Labels) -> None:
        """Refuse to be compared with a measurement on other images.

        Raises
        ------
        DerminoError
            CHECKPOINT_INVALID.
        """
        if not np.array_equal(self.test_labels, test_labels):
            raise DerminoError(
                "CHECKPOINT_INVALID",
                "The probe at the start of this run was measured on other images.",
                where="monitor.manifest",
                fix="Continue with the manifest and images that the run was started with.",
            )

    def save(self, path: Path) -> None:
        """Write an .npz file, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(self, name) for name in _SAVED})
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> ProbeStart:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DerminoError
            CHECKPOINT_INVALID if the file is missing, damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(*(arrays[name] for name in _SAVED))
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise DerminoError(
                "CHECKPOINT_INVALID",
                "The probe at the start of this run cannot be read.",
                where=path,
                fix="Remove the file: the run then goes on without comparing to its start.",
            ) from error


def neighbour_scores(
    train: Floats,
    train_labels: Labels,
    test: Floats,
    n_classes: int,
    *,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> npt.NDArray[np.float64]:
    """Votes of the nearest training images by cosine, weighted by exp(similarity / temperature).

    Wu et al. 2018 and Caron et al. 2021 (DINO). Plain votes of five neighbours would give an AUROC
    of six levels only.

    Parameters
    ----------
    train, test
        Features [m, D] and [n, D].
    train_labels
        Class indices [m].
    neighbours
        k; all of them if `train` is smaller.

    Returns
    -------
    Shares of the votes [n, C], rows summing to 1.
    """
    k = min(neighbours, len(train))
    similarities, chosen = nearest(test, train, k, device="cpu")
    return neighbour_votes(similarities, train_labels[chosen], n_classes, temperature=temperature)


def ridge_scores(
    train: Floats, train_labels: Labels, test: Floats, n_classes: int
) -> npt.NDArray[np.float64]:
    """Ridge regression from features to one column of zeros and ones per class.

    Features are standardised by the training half. The penalty is the one of :data:`PENALTIES`
    whose leave-one-out error on the training half is least (Golub, Heath & Wahba 1979 give the
    closed form), so that no test image has a say.

    Returns
    -------
    Scores [n, C]; larger is likelier. Not probabilities.
    """
    x = train.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-12 * max(1.0, float(np.abs(x).max(initial=0.0)))] = 1.0
    x = (x - mean) / scale
    targets = np.eye(n_classes)[train_labels]
    level = targets.mean(axis=0)
    values, vectors = np.linalg.eigh(x @ x.T)
    values = values.clip(min=0.0)
    rotated = vectors.T @ (targets - level)
    best, weights = np.inf, np.zeros_like(rotated)
    for penalty in PENALTIES:
        inverse = 1.0 / (values + penalty)
        dual = vectors @ (inverse[:, None] * rotated)
        # Of (I - H) / penalty; the intercept's leverage is 1/n at every image.
        diagonal = (vectors**2) @ inverse - 1.0 / (penalty * len(x))
        with np.errstate(divide="ignore", invalid="ignore"):
            error = float(np.square(dual / diagonal[:, None]).mean())
        if error < best:
            best, weights = error, dual
    return ((test.astype(np.float64) - mean) / scale) @ (x.T @ weights) + level


def rank_me(features: Floats) -> float:
    """Effective rank: exp of the entropy of the singular values, between 1 and min(n, D).

    RankMe, Garrido et al. 2023, equation (1), on the features as they are (not centred).

    Parameters
    ----------
    features
        [n, D].
    """
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    total = values.sum()
    if total == 0.0:
        return 1.0
    shares = values / total
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _auroc(labels: Labels, scores: Floats) -> float:
    return float(macro_auroc(labels, scores)[0]) if np.isfinite(scores).all() else float("nan")


def _gain(name: str, result: ProbeResult, before: Floats, after: Floats) -> Mapping[str, float]:
    estimate: Estimate = paired_difference(
        result.test_labels, after, before, groups=result.test_groups
    ).auroc
    found = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
    return {f"{name}_gain{end}": value for end, value in found.items() if value is not None}
