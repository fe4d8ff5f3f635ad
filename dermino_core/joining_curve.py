"""What joining gives one hospital, against the number of its labels.

Computed inside the hospital, on its own test half, from its features and from the moments of all
sites less its own: the model it reaches alone (:func:`dermino_core.heads.fit_converged`), the
federated one, and its personal one (:mod:`dermino_core.personal`), as if it had labelled only so
many of its training images. No image, label or score is needed from elsewhere, and no other site
is asked; where a run may, the curve's numbers then go to the coordinator, for its report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.label_efficiency import stratified_share
from dermino_core.heads import LinearHead, fit_converged
from dermino_core.metrics import REPLICATES, bootstrap_weights, macro_auroc
from dermino_core.moments import Float64, Integers, Moments
from dermino_core.personal import personal_model
from dermino_core.results import Estimate, JoiningCurve, JoiningPoint
from dermino_core.ridge import (
    Prior,
    ScoreMoments,
    Weighting,
    calibrate,
    class_weights,
    solve,
)

COUNTS = (0, 10, 20, 40, 80)
"""Numbers of labels, as far as the training half has more; all of it comes last."""

DRAWS = 5
"""Random choices of which images are labelled."""

ALONE_PENALTY = 0.1
"""Of the logistic regression that a hospital trains alone, on standardised features. Better on few
labels than one chosen by cross-validation, which few labels mislead."""

_MODELS = ("alone", "federated", "personal")
_PAIRS = {
    "personal_minus_alone": ("personal", "alone"),
    "federated_minus_alone": ("federated", "alone"),
    "personal_minus_federated": ("personal", "federated"),
}


@dataclass(frozen=True)
class Half:
    """Features [n, D], labels [n] and patients or lesions (may be empty) of one half."""

    features: npt.NDArray[np.float32]
    labels: Integers
    groups: tuple[str, ...] = ()

    def take(self, rows: Integers) -> Half:
        """Some of its images."""
        groups = tuple(self.groups[row] for row in rows) if self.groups else ()
        return Half(self.features[rows], self.labels[rows], groups)

    @property
    def units(self) -> list[str]:
        """Patient or lesion of each image."""
        return list(self.groups) if self.groups else [str(i) for i in range(len(self.labels))]


def joining_curve(
    train: Half,
    test: Half,
    total: Moments,
    *,
    own: Moments,
    penalty: float,
    held_out: ScoreMoments,
    standardise: bool = False,
    weighting: Weighting = "none",
    prior: Prior = "observed",
    counts: Sequence[int] = COUNTS,
    draws: int = DRAWS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> JoiningCurve:
    """The curve of one hospital.

    Parameters
    ----------
    train, test
        Its halves.
    total, own
        Moments of all sites, and what this site contributed to them.
    penalty, held_out, standardise, weighting, prior
        Of the federated ridge (:func:`dermino_core.ridge.cross_validate`).
    counts
        Numbers of labels. Each is drawn `draws` times: whole patients, the classes about as
        frequent as in all of the training half. 0 is others' labels only, drawn once.
    replicates
        Of the bootstrap over test patients, all draws of one count together.
    seed
        Of draws and bootstrap.
    """
    others = total - own
    groups = test.groups or None
    weights = bootstrap_weights(len(test.labels), groups=groups, replicates=replicates, seed=seed)
    n = len(train.labels)
    points = []
    for count in [*sorted({c for c in counts if 0 <= c < n}), n]:
        choices = _choices(train, count, draws=draws, seed=seed)
        found: dict[str, list[tuple[float, Float64]]] = {name: [] for name in _MODELS}
        for number, rows in enumerate(choices):
            part = weights[number :: len(choices)]
            models = _models(
                train.take(rows),
                test,
                others,
                penalty,
                held_out,
                standardise=standardise,
                weighting=weighting,
                prior=prior,
            )
            for name in _MODELS:
                found[name].append(_scored(models[name], test, part))
        labels = round(float(np.mean([len(rows) for rows in choices])))
        points.append(_point(labels, found))
    return JoiningCurve(n_train=n, n_test=len(test.labels), points=points)


def all_labels_only(
    test: Half,
    probabilities: Mapping[str, Float64 | None],
    *,
    labels: int,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> JoiningCurve:
    """A curve of one point, from finished models: where fewer labels cannot be played.

    Parameters
    ----------
    probabilities
        Of `alone`, `federated` and `personal` on the test half, [n, C]; None without a model.
    labels
        Labelled training images of the hospital.
    """
    weights = bootstrap_weights(
        len(test.labels), groups=test.groups or None, replicates=replicates, seed=seed
    )
    found = {name: [_scored(probabilities[name], test, weights)] for name in _MODELS}
    return JoiningCurve(n_train=labels, n_test=len(test.labels), points=[_point(labels, found)])


def alone_head(labelled: Half, n_classes: int) -> LinearHead | None:
    """What a hospital trains alone; None without two classes."""
    if len(np.unique(labelled.labels)) < 2:
        return None
    return fit_converged(labelled.features, labelled.labels, n_classes, penalty=ALONE_PENALTY)


def _scored(
    probabilities: Float64 | None, test: Half, weights: npt.NDArray[np.integer]
) -> tuple[float, Float64]:
    """AUROC, and that of every replicate; NaN without a model."""
    if probabilities is None:
        return np.nan, np.full(len(weights), np.nan)
    value = float(macro_auroc(test.labels, probabilities)[0])
    return value, macro_auroc(test.labels, probabilities, weights)


def _choices(train: Half, count: int, *, draws: int, seed: int) -> list[Integers]:
    n = len(train.labels)
    if count == 0:
        return [np.zeros(0, np.intp)]
    if count == n:
        return [np.arange(n)]
    return [
        stratified_share(train.labels, train.units, count / n, seed=[seed, i]) for i in range(draws)
    ]


def _models(
    labelled: Half,
    test: Half,
    others: Moments,
    penalty: float,
    held_out: ScoreMoments,
    *,
    standardise: bool,
    weighting: Weighting,
    prior: Prior,
) -> dict[str, Float64 | None]:
    """Probabilities of each model on the test half; None where there is no model."""
    n_classes = others.n_classes
    own = Moments.of(labelled.features, labelled.labels, n_classes, per_class=others.per_class)
    total = others + own
    each = class_weights(total.counts, weighting) if total.per_class else None
    federated = solve(total, penalty, weights=each, standardise=standardise)
    personal = personal_model(
        labelled.features,
        labelled.labels,
        labelled.groups,
        total,
        own=own,
        penalty=penalty,
        federated=federated,
        held_out=held_out,
        standardise=standardise,
        prior=prior,
    )
    alone = alone_head(labelled, n_classes)
    return {
        "alone": None if alone is None else alone.probabilities(test.features),
        "federated": calibrate(federated, held_out, prior=prior).probabilities(test.features),
        "personal": personal.head.probabilities(test.features),
    }


def _point(labels: int, found: dict[str, list[tuple[float, Float64]]]) -> JoiningPoint:
    draws = len(found["personal"])
    values = {name: np.array([value for value, _ in several]) for name, several in found.items()}
    drawn = {
        name: np.concatenate([replicates for _, replicates in several])
        for name, several in found.items()
    }
    single = {name: _estimate(values[name], drawn[name]) for name in _MODELS}
    pairs = {
        name: _estimate(values[one] - values[other], drawn[one] - drawn[other])
        for name, (one, other) in _PAIRS.items()
    }
    return JoiningPoint(labels=labels, draws=draws, **single, **pairs)


def _estimate(values: Float64, replicates: Float64) -> Estimate:
    """Mean of the draws' values, and the percentile interval of all their replicates."""
    known = values[~np.isnan(values)]
    if not len(known):
        why = "no labels of two classes, in training or in testing"
        return Estimate(value=None, undefined_because=why)
    value = float(known.mean())
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < 2:
        return Estimate(value=value)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        standard_error=float(defined.std(ddof=1)),
    )


def sentence(curve: JoiningCurve) -> str:
    """What joining gives this hospital, for the head of a department."""
    point = curve.all_labels
    change, alone, personal = point.personal_minus_alone, point.alone, point.personal
    if personal.value is None:
        return "Your test images are of one class, so that no AUROC can be told."
    if change.value is None or alone.value is None:
        return (
            f"Your {point.labels} labelled images are not of two classes, so that you could train "
            f"nothing alone. By joining you have a model with an AUROC of {personal.value:.2f}."
        )
    interval = (
        ""
        if change.low is None or change.high is None
        else (f" (95 % interval {_signed(change.low)} to {_signed(change.high)})")
    )
    text = (
        f"With your {point.labels} labelled images, joining changes your AUROC by "
        f"{_signed(change.value)}{interval}: {alone.value:.2f} alone, {personal.value:.2f} with "
        f"your personal model. {_verdict(change)}"
    )
    first = curve.points[0]
    if first.labels == 0 and first.federated.value is not None:
        text += (
            f" Without a single label of your own, the others' model would give you "
            f"{first.federated.value:.2f}."
        )
    return text


def _signed(value: float) -> str:
    """With two decimals, and without a sign before 0.00."""
    rounded = round(value, 2) + 0.0
    return f"{rounded:+.2f}" if rounded else "0.00"


def _verdict(change: Estimate) -> str:
    if change.low is not None and change.low > 0:
        return "That is more than chance explains."
    if change.high is not None and change.high < 0:
        return "That is a loss, more than chance explains: keep the model you train alone."
    return "That may be chance."
