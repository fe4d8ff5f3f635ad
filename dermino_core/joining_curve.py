"""What joining gives one hospital, against the number of its labels.

Computed inside the hospital, on its own test half, from its features and from the moments of all
sites less its own: the model it reaches alone (:func:`dermino_core.heads.fit_converged`), the
federated one, and its personal one (:mod:`dermino_core.personal`), as if it had labelled only so
many of its training images. Nothing is sent, and no other site is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from dermino_core.evaluation.label_efficiency import stratified_share
from dermino_core.heads import fit_converged
from dermino_core.metrics import REPLICATES, bootstrap_weights, macro_auroc
from dermino_core.moments import Float64, Integers, Moments
from dermino_core.personal import personal_model
from dermino_core.results import Estimate
from dermino_core.ridge import ScoreMoments, calibrate, solve

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


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class JoiningPoint(_Model):
    """AUROC with so many labels. Means over the draws, with 95 % intervals.

    The intervals hold the chance of which images were tested and, but for all labels, of which
    were labelled. Differences are paired: same draw, same test images.
    """

    labels: int = Field(ge=0, description="labelled training images, mean over the draws")
    draws: int = Field(ge=1)
    alone: Estimate
    federated: Estimate
    personal: Estimate
    personal_minus_alone: Estimate
    federated_minus_alone: Estimate
    personal_minus_federated: Estimate


class JoiningCurve(_Model):
    """One hospital's points, from no label to all it has."""

    n_train: int
    n_test: int
    points: list[JoiningPoint]

    @property
    def all_labels(self) -> JoiningPoint:
        """The point of all labels that the hospital has."""
        return self.points[-1]


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
    penalty, held_out, standardise
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
                train.take(rows), test, others, penalty, held_out, standardise=standardise
            )
            for name in _MODELS:
                scores = models[name]
                found[name].append(
                    (np.nan, np.full(len(part), np.nan))
                    if scores is None
                    else (
                        float(macro_auroc(test.labels, scores)[0]),
                        macro_auroc(test.labels, scores, part),
                    )
                )
        labels = round(float(np.mean([len(rows) for rows in choices])))
        points.append(_point(labels, found))
    return JoiningCurve(n_train=n, n_test=len(test.labels), points=points)


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
) -> dict[str, Float64 | None]:
    """Probabilities of each model on the test half; None where there is no model."""
    n_classes = others.n_classes
    own = Moments.of(labelled.features, labelled.labels, n_classes, per_class=others.per_class)
    total = others + own
    federated = solve(total, penalty, standardise=standardise)
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
    )
    found: dict[str, Float64 | None] = {
        "alone": None,
        "federated": calibrate(federated, held_out).probabilities(test.features),
        "personal": personal.head.probabilities(test.features),
    }
    if len(np.unique(labelled.labels)) > 1:
        alone = fit_converged(labelled.features, labelled.labels, n_classes, penalty=ALONE_PENALTY)
        found["alone"] = alone.probabilities(test.features)
    return found


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
    """With two decimals, and without a minus before 0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _verdict(change: Estimate) -> str:
    if change.low is not None and change.low > 0:
        return "That is more than chance explains."
    if change.high is not None and change.high < 0:
        return "That is a loss, more than chance explains: keep the model you train alone."
    return "That may be chance."
