"""Multinomial logistic regression at its optimum, its L2 penalty chosen by cross-validation.

The same model as scikit-learn's `StandardScaler` and `LogisticRegression`. The many small fits of a
cross-validation spend most of their time in a general solver's overhead, so the objective is
written out here and the features are rotated into as many dimensions as there are images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dermino_core.evaluation.examples import Examples, Floats, Integers
from dermino_core.evaluation.measure import FloatArray

STRENGTHS = tuple(10.0**power for power in range(-5, 2))
"""C to choose from, for features of variance 1; the smaller, the stronger the penalty."""

USUAL_STRENGTH = 1.0
"""C where a class has a single patient or lesion, so that none can be held out: scikit-learn's."""

FOLDS = 5
MOST_ITERATIONS = 1000

_ROUGH, _FINE = 1e-4, 1e-9
"""Largest component of the mean loss's gradient at which a solver ends."""


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic regression.

    Attributes
    ----------
    weight, bias
        [C, D] and [C], for features less `mean` over `scale` (each [D]). A class without training
        images has bias -inf: its probability is 0.
    strength
        C: the penalty is |weight|^2 / (2 C) on the summed cross-entropy; |w|^2 / (2 C) of the
        difference w of both weights for two classes, as in scikit-learn.
    folds
        How many the cross-validation had that chose it; 0 where it is :data:`USUAL_STRENGTH`.
    converged
        Whether the solver got to the optimum within :data:`MOST_ITERATIONS`.
    """

    weight: FloatArray
    bias: FloatArray
    mean: FloatArray
    scale: FloatArray
    strength: float
    folds: int = 0
    converged: bool = True

    def logits(self, features: Floats) -> FloatArray:
        """[n, C] of features [n, D]."""
        return ((features - self.mean) / self.scale) @ self.weight.T + self.bias

    def probabilities(self, features: Floats) -> FloatArray:
        """Class probabilities [n, C] of features [n, D]."""
        logits = self.logits(features)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    @property
    def sentence(self) -> str:
        """How the penalty was chosen."""
        how = (
            f"by {self.folds}-fold cross-validation over patients or lesions of the training half"
            if self.folds
            else "beforehand, as a class has too few patients or lesions for cross-validation"
        )
        ending = "" if self.converged else f" Stopped after {MOST_ITERATIONS} iterations."
        return f"L2 penalty C = {self.strength:g}, chosen {how}.{ending}"


def fit_logistic(
    train: Examples,
    n_classes: int,
    *,
    unlabelled: Floats | None = None,
    class_weights: bool = False,
    seed: int = 0,
) -> Logistic:
    """Fit with the C of :data:`STRENGTHS` whose log loss on held-out images is least.

    C rises until that loss has grown twice running. Folds are those of :func:`stratified_folds`.
    Features are standardised by the training images; in cross-validation, by those outside the
    held-out fold.

    Parameters
    ----------
    train
        Of two classes at least.
    unlabelled
        Features [m, D] to standardise by instead. The spread of few training images says little:
        of two, each feature's would be the same number.
    class_weights
        Whether all classes count the same, in fitting and in choosing.
    seed
        Of the folds.
    """
    counts = np.bincount(train.labels)
    weights = len(train) / np.count_nonzero(counts) / counts[train.labels]
    if not class_weights:
        weights = np.ones(len(train))
    whole = _Problem(train, weights, n_classes, unlabelled)
    held_out = list(stratified_folds(train.labels, train.units, seed=seed))
    if not held_out:
        return whole.fit(USUAL_STRENGTH, tolerance=_FINE)
    folds = []
    for rows in held_out:
        rest = np.setdiff1d(np.arange(len(train)), rows)
        problem = _Problem(train.take(rest), weights[rest], n_classes, unlabelled)
        folds.append((problem, train.take(rows), weights[rows]))
    losses: list[float] = []
    for strength in STRENGTHS:
        losses.append(0.0)
        for problem, images, counted in folds:
            model = problem.fit(strength, tolerance=_ROUGH)
            losses[-1] += float(_log_loss(model, images) @ counted)
        if len(losses) > 2 and losses[-3] < losses[-2] < losses[-1]:
            break
    fitted = whole.fit(STRENGTHS[int(np.argmin(losses))], tolerance=_FINE)
    return replace(fitted, folds=len(folds))


class _Problem:
    """Images to fit, rotated so that no dimension is spent where they do not vary.

    A penalised optimum lies in the span of the training images, so with the QR decomposition
    X^T = Q R the weights are those of the features R^T times Q^T.
    """

    def __init__(
        self, train: Examples, weights: FloatArray, n_classes: int, unlabelled: Floats | None
    ) -> None:
        self.mean, self.scale = _spread(train.features if unlabelled is None else unlabelled)
        x = (train.features - self.mean) / self.scale
        self.basis: FloatArray | None = None
        if len(x) < x.shape[1]:
            self.basis, triangle = np.linalg.qr(x.T)
            x = triangle.T
        self.present, position = np.unique(train.labels, return_inverse=True)
        self.n_classes = n_classes
        self.inputs = np.hstack([x, np.ones((len(x), 1))])
        self.weights = weights / weights.sum()
        self.targets = np.eye(len(self.present))[position] * self.weights[:, None]
        self.images = float(weights.sum())
        self.start = np.zeros(len(self.present) * self.inputs.shape[1])

    def fit(self, strength: float, *, tolerance: float) -> Logistic:
        """The optimum for C = `strength`, from the one found before."""
        from scipy.optimize import minimize

        # Two weights that differ by w need |w|^2 / 2 between them.
        halved = strength / 2 if len(self.present) == 2 else strength
        found = minimize(
            self._loss_and_gradient,
            self.start,
            args=(1 / (halved * self.images),),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MOST_ITERATIONS, "gtol": tolerance, "ftol": 0, "maxls": 50},
        )
        self.start = found.x
        theta = found.x.reshape(len(self.present), -1)
        rotated = theta[:, :-1]
        weight = np.zeros((self.n_classes, len(self.mean)))
        bias = np.full(self.n_classes, -np.inf)
        weight[self.present] = rotated if self.basis is None else rotated @ self.basis.T
        bias[self.present] = theta[:, -1]
        converged = found.nit < MOST_ITERATIONS
        return Logistic(weight, bias, self.mean, self.scale, strength, converged=converged)

    def _loss_and_gradient(self, flat: FloatArray, penalty: float) -> tuple[float, FloatArray]:
        """Of the weighted mean cross-entropy plus penalty / 2 * |W|^2."""
        theta = flat.reshape(len(self.present), -1)
        logits = self.inputs @ theta.T
        highest = logits.max(axis=1, keepdims=True)
        shares = np.exp(logits - highest)
        sums = shares.sum(axis=1, keepdims=True)
        loss = float(self.weights @ (np.log(sums) + highest)[:, 0] - np.vdot(self.targets, logits))
        shares *= self.weights[:, None] / sums
        gradient = (shares - self.targets).T @ self.inputs
        gradient[:, :-1] += penalty * theta[:, :-1]
        return loss + penalty / 2 * float(np.square(theta[:, :-1]).sum()), gradient.ravel()


def _spread(features: Floats) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each feature; 1 for one that does not change."""
    exact = features.astype(np.float64)
    mean, scale = exact.mean(axis=0), exact.std(axis=0)
    scale[scale <= 1e-12 * np.abs(exact).max(axis=0, initial=0.0)] = 1.0
    return mean, scale


def _log_loss(model: Logistic, images: Examples) -> FloatArray:
    """Of each image, [n]."""
    logits = model.logits(images.features)
    of_label = np.take_along_axis(logits, images.labels[:, None], axis=1)[:, 0]
    return np.logaddexp.reduce(logits, axis=1) - of_label


def stratified_folds(
    labels: Integers, units: Sequence[str], *, seed: int, most: int = FOLDS
) -> Iterator[Integers]:
    """Rows held out in turn; every unit once and whole, units of a class dealt out evenly.

    Parameters
    ----------
    labels, units
        Class index, and patient or lesion, of each image.
    most
        Folds wanted. There are fewer where a class has fewer units, and none where it has one. A
        unit counts for its most frequent class.

    Returns
    -------
    Rows of each fold whose complement has images of all classes.
    """
    unit_of, class_of = unit_classes(labels, units)
    folds = min(most, int(np.unique(class_of, return_counts=True)[1].min()))
    if folds < 2 or len(np.unique(class_of)) < len(np.unique(labels)):
        return
    rng = np.random.default_rng([seed, len(class_of)])
    shuffled = rng.permutation(len(class_of))
    fold_of = np.empty(len(class_of), int)
    fold_of[shuffled[class_of[shuffled].argsort(kind="stable")]] = np.arange(len(class_of)) % folds
    present = len(np.unique(labels))
    for fold in range(folds):
        held_out = fold_of[unit_of] == fold
        if len(np.unique(labels[~held_out])) == present:
            yield np.flatnonzero(held_out)


def unit_classes(labels: Integers, units: Sequence[str]) -> tuple[Integers, Integers]:
    """Unit of each image [n], and most frequent class of each unit (of several, the first)."""
    names, unit_of = np.unique(np.asarray(units), return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1), int)
    np.add.at(counts, (unit_of, labels), 1)
    return unit_of, counts.argmax(axis=1)
