"""Ridge: one round, and the head that training on all hospitals' pooled images would give.

Hoerl & Kennard 1970; the sums of :mod:`dermino_core.moments`, solved by :mod:`dermino_core.ridge`.
Every hospital sends sums over its training images; the coordinator adds them up, chooses the
penalty by cross-validation over folds of patients, solves, and calibrates. No learning rate, no
epochs, no drift: the result does not depend on how the images are spread over the hospitals, but
for which fold a patient is in. Further rounds give the same answer.

What leaves the building: how many training images there are of each class, the sum of their
features, and the sum of the features' outer products, in all and for each fold but the last.
With `class_weight = "balanced"` the products are per class, because only the coordinator learns
how many images of each class there are. For D features, C classes and F folds these are
(8 + 4 (F - 1)) P D (D + 1) / 2 bytes and some 8 F C D, with P = 1 or, if balanced, P = C:
1.8 MB for D = 384, F = 5, P = 1. The folds' products travel as float32, because they only decide
between penalties; the totals, which decide the head, as float64.

The private variant (:mod:`dermino_strategies.private_ridge`) sends noisy sums in few dimensions.

Sums over few images hide little: those of a fold with a single image of a class are its features.
Nor does adding up hide who is in a sum while a fold of all hospitals has fewer images than there
are features: the sum then still tells exactly of an image whether it is in it. Secure aggregation
hides every hospital's sums from the coordinator; the private variant bounds what all of this can
tell of a patient.

What comes back: the head. The sums of all hospitals stay with the coordinator, but for a run that
says beforehand that it makes personal models: there every hospital gets the total (not its folds),
takes out its own part and builds its model (:mod:`dermino_core.personal`). What is left is the sum
of the others, so that in a federation of two it would be the other's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat

from dermino_core.heads import LinearHead
from dermino_core.moments import Moments, class_contrast, fold_moments, fold_of_images
from dermino_core.personal import Personal, personal_model
from dermino_core.privacy.plan import PrivacyPlan, PrivacyRequest
from dermino_core.results import JoiningCurve
from dermino_core.ridge import (
    PENALTIES,
    CrossValidation,
    Prior,
    ScoreMoments,
    Scores,
    Weighting,
    calibrate,
    class_weights,
    cross_validate,
    solve,
)
from dermino_strategies.base import (
    Additive,
    Arrays,
    Personalises,
    Private,
    Settings,
    SiteData,
    SiteUpdate,
)
from dermino_strategies.private_ridge import (
    believable,
    plan_private_ridge,
    private_moments,
    private_penalty,
    unheld_scores,
    usual_dimensions,
)

LARGEST_FEATURE = 2.0**6
"""Largest absolute value of a feature under secure aggregation: ten times what layer norms give."""

LARGEST_SITE = 2.0**20
"""Most training images of a site under secure aggregation."""

LARGEST_NOISE = 2.0**48
"""Largest square of a site's noise under secure aggregation: epsilon 0.001 needs 2^42."""

USUAL_PENALTY = 0.3
"""Of personal models after a private run, which chooses none: what three real sites chose."""

PERSONAL_ARRAYS = (
    *("total.counts", "total.sums", "total.products"),
    *("noise", "penalty", "held_out.means", "held_out.spread"),
)
"""What a site gets of a run with personal models, beside the head."""

_ROUNDED = 0.5
"""Counts that come out of secure aggregation are rounded, to far less than half an image."""

Penalty = Annotated[float, Field(ge=1e-8, le=1e6)]


class RidgeSettings(Settings):
    """`penalties` are per image and for features of variance 1; the best one is taken.

    Features keep their relative scales unless `standardise`: a layer norm's scales are not
    arbitrary. `prior`: whether probabilities stand for the classes' shares among the training
    images of all sites, or for equal ones.
    """

    folds: int = Field(default=5, ge=2, le=20)
    penalties: tuple[Penalty, ...] = Field(default=PENALTIES, min_length=1, max_length=100)
    class_weight: Weighting = "none"
    standardise: bool = False
    prior: Prior = "observed"
    projection: int = Field(default=0, ge=0, le=4096)
    """Of a private run: random directions that features are projected on; 0 goes by epsilon."""
    centre: tuple[FiniteFloat, ...] = Field(default=(), max_length=65536)
    """Of a private run: a public point among the features; the origin if empty."""


class Ridge(Additive, Private, Personalises):
    """One-round closed-form ridge regression."""

    name = "ridge"
    usual_rounds = 1
    keeps_sums = True

    def __init__(self, settings: RidgeSettings | None = None) -> None:
        self.settings = settings or RidgeSettings()

    @property
    def per_class(self) -> bool:
        """Whether the outer products travel per class."""
        return self.settings.class_weight == "balanced"

    def initial_arrays(self, n_classes: int, width: int, seed: int) -> Arrays:
        """A head of zeros, and no images.

        `weight` [C, D] and `bias` [C]: the calibrated head, float32. `total.counts`,
        `total.sums`, `total.products`: moments of all sites' images. `penalties` [P], `errors`
        [P] and `penalty` [1]: the cross-validation. `held_out.means` [C, C] and
        `held_out.spread` [1]: its scores on images held out. `noise` [1]: the square of what all
        sites added together, 0 unless the run is private. `seed` [1]: of the run.
        """
        head = LinearHead.initial(n_classes, width, how="zeros", seed=seed)
        total = Moments.zeros(n_classes, width, per_class=self.per_class)
        grid = np.array(sorted(self.settings.penalties))
        held_out = ScoreMoments(np.zeros(n_classes), np.zeros((n_classes, n_classes)), 0.0)
        search = CrossValidation(grid, np.zeros(len(grid)), 0.0, held_out)
        rest = {"noise": np.zeros(1), "seed": np.array([seed])}
        return head.arrays() | total.arrays("total.") | _search_arrays(search) | rest

    def for_sites(self, arrays: Arrays) -> Arrays:
        """The head. The sums of all sites tell who is in them: see :meth:`for_personal`."""
        return {name: arrays[name] for name in ("weight", "bias", "seed")}

    def for_personal(self, arrays: Arrays) -> Arrays:
        """The total of all sites, how noisy it is, the penalty, and what calibration needs.

        (8 D (D + 1) / 2) P + 8 C D bytes and a few: 0.6 MB for D = 384, P = 1.
        """
        return {name: arrays[name] for name in PERSONAL_ARRAYS}

    def update_like(self, arrays: Arrays) -> Arrays:
        """`total.*` as float64; `fold.*` of all folds but the last, the products as float32."""
        like = self.summand_like(arrays)
        del like["examples"]
        return like | {"fold.products": like["fold.products"].astype(np.float32)}

    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """The site's sums. They depend on neither the global arrays nor the round.

        Raises
        ------
        ValueError
            If features are not finite.
        """
        settings = self.settings
        fold_of = fold_of_images(
            data.labels, data.groups, folds=settings.folds, seed=seed, site=data.site
        )
        folds = fold_moments(
            data.features,
            data.labels,
            fold_of,
            data.n_classes,
            folds=settings.folds,
            per_class=self.per_class,
        )
        total = folds[0]
        for fold in folds[1:]:
            total = total + fold
        sent = total.arrays("total.") | {
            "fold.counts": np.stack([fold.counts for fold in folds[:-1]]),
            "fold.sums": np.stack([fold.sums for fold in folds[:-1]]),
            "fold.products": np.stack([fold.products for fold in folds[:-1]]).astype(np.float32),
            "noise": np.zeros(1),
        }
        return SiteUpdate(sent, examples=len(data.labels))

    def privacy_plan(self, data: SiteData, request: PrivacyRequest, rounds: int) -> PrivacyPlan:
        """One Gaussian mechanism; one round."""
        return plan_private_ridge(data, self.settings.centre, request, rounds)

    def private_site_update(
        self, data: SiteData, arrays: Arrays, round_: int, plan: PrivacyPlan
    ) -> SiteUpdate:
        """Noisy sums in few dimensions; no folds, and one example, whatever the site's size."""
        moments, noise = private_moments(
            data,
            plan,
            centre=self.settings.centre,
            dimensions=self.settings.projection or usual_dimensions(plan.request.epsilon),
            seed=int(arrays["seed"][0]),
            per_class=self.per_class,
        )
        sent = self.update_like(arrays) | moments.arrays("total.") | {"noise": np.array([noise])}
        return SiteUpdate(sent, examples=1)

    def change(self, arrays: Arrays, update: SiteUpdate) -> Arrays:
        """How the classes differ there. The sums themselves tell little but the mean image."""
        sent = update.arrays
        contrast = class_contrast(sent["total.counts"], sent["total.sums"])
        return {} if contrast is None else {"contrast": contrast}

    def check_update(self, arrays: Arrays, update: SiteUpdate) -> None:
        """Refuse sums that are not those of any images: counts, and squares below zero.

        Raises
        ------
        ValueError
            In words that name no path.
        """
        super().check_update(arrays, update)
        if update.arrays["noise"][0] < 0:
            raise ValueError("its noise is below 0")
        if update.arrays["noise"][0] > 0:
            return  # noisy counts and squares may be anything
        counts, of_folds = update.arrays["total.counts"], update.arrays["fold.counts"]
        if (counts < 0).any() or (counts != np.round(counts)).any():
            raise ValueError("counts of images are not whole numbers")
        if counts.sum() != update.examples:
            raise ValueError(f"counts {counts.sum():g} images and trained on {update.examples}")
        if (of_folds < 0).any() or (of_folds.sum(axis=0) > counts).any():
            raise ValueError("the folds do not add up to all images")
        diagonal = np.cumsum([0, *range(len(arrays["weight"][0]), 1, -1)])
        for name in ("total.products", "fold.products"):
            if (update.arrays[name][..., diagonal] < 0).any():
                raise ValueError(f"array '{name}' has negative squares")

    def summand(self, update: SiteUpdate) -> Arrays:
        """What was sent, as float64, and the number of images."""
        sent = {name: array.astype(np.float64) for name, array in update.arrays.items()}
        return sent | {"examples": np.array([float(update.examples)])}

    def summand_like(self, arrays: Arrays) -> Arrays:
        """Moments in all, and of each fold but the last."""
        n_classes, width = arrays["weight"].shape
        none = Moments.zeros(n_classes, width, per_class=self.per_class).arrays("")
        folds = self.settings.folds - 1
        of_folds = {f"fold.{name}": np.zeros((folds, *a.shape)) for name, a in none.items()}
        rest = {"noise": np.zeros(1), "examples": np.zeros(1)}
        return {f"total.{name}": a for name, a in none.items()} | of_folds | rest

    def summand_limits(self, arrays: Arrays) -> dict[str, float]:
        """2^20 images, features up to 2^6 in size, products up to 2^12."""
        limits = {
            "counts": LARGEST_SITE,
            "sums": LARGEST_SITE * LARGEST_FEATURE,
            "products": LARGEST_SITE * LARGEST_FEATURE**2,
        }
        sums = {f"{part}.{name}": v for part in ("total", "fold") for name, v in limits.items()}
        return sums | {"noise": LARGEST_NOISE, "examples": LARGEST_SITE}

    def from_sum(self, arrays: Arrays, total: Arrays) -> Arrays:
        """The head, the total and the cross-validation. The arrays before do not matter."""
        moments = believable(Moments.from_arrays(total, "total."))
        noise = float(total["noise"][0])
        search = self.search(moments, total)
        scores = self.solve(moments, search.penalty, private=noise > 0)
        head = calibrate(scores, search.held_out, prior=self.settings.prior)
        rest = {"noise": np.array([noise]), "seed": arrays["seed"]}
        return head.arrays() | moments.arrays("total.") | _search_arrays(search) | rest

    def search(self, moments: Moments, total: Arrays) -> CrossValidation:
        """The cross-validation, from the sums in all and of each fold but the last.

        In a private run the penalty is the size of the noise, and nothing is held out.
        """
        noise = float(total["noise"][0])
        if noise > 0:
            grid = np.array(sorted(self.settings.penalties))
            penalty = private_penalty(moments, noise)
            return CrossValidation(grid, np.zeros(len(grid)), penalty, unheld_scores(moments))
        parts = [total[f"fold.{name}"] for name in ("counts", "sums", "products")]
        folds = [Moments(*fold) for fold in zip(*parts, strict=True)]
        last = moments
        for fold in folds:
            last = last - fold
        return cross_validate(
            [*folds, last],
            self.settings.penalties,
            weighting=self.settings.class_weight,
            standardise=self.settings.standardise,
        )

    def solve(self, moments: Moments, penalty: float, *, private: bool = False) -> Scores:
        """The uncalibrated ridge in float64, in the coordinates of the raw features.

        In a private run features keep their scales: noise would be taken for spread.
        """
        weighting = self.settings.class_weight
        weights = class_weights(moments.counts, weighting) if self.per_class else None
        standardise = self.settings.standardise and not private
        return solve(moments, penalty, weights=weights, standardise=standardise)

    def head(self, arrays: Arrays) -> LinearHead:
        """The calibrated head."""
        return LinearHead.from_arrays({name: arrays[name] for name in ("weight", "bias")})

    def personal(self, data: SiteData, arrays: Arrays, *, took_part: bool = True) -> Personal:
        """A hospital's own model from the final global arrays. Stays at the hospital.

        Of a private run nothing can be taken out, as only noisy sums are in it: what its own
        patients did to them is bounded, and judged as others' knowledge.
        """
        known = self._known(data, arrays, took_part=took_part)
        return personal_model(
            data.features,
            data.labels,
            data.groups,
            known.total,
            own=known.own,
            penalty=USUAL_PENALTY if known.noise else known.penalty,
            noise=known.noise,
            federated=self.solve(known.total, known.penalty, private=known.noise > 0),
            held_out=known.held_out,
            standardise=self.settings.standardise and not known.noise,
            prior=self.settings.prior,
        )

    def joining(
        self,
        train: SiteData,
        test: SiteData,
        arrays: Arrays,
        *,
        took_part: bool = True,
        replicates: int,
        seed: int,
    ) -> JoiningCurve:
        """The curve of one hospital; of a private run its last point."""
        # Bootstrap and logistic regression take time to import, and few runs come here.
        from dermino_core.joining_curve import Half, all_labels_only, alone_head, joining_curve

        mine = Half(train.features, train.labels, train.groups)
        judged = Half(test.features, test.labels, test.groups)
        known = self._known(train, arrays, took_part=took_part)
        if known.noise > 0:
            alone = alone_head(mine, train.n_classes)
            personal = self.personal(train, arrays, took_part=took_part).head
            models = {"alone": alone, "federated": self.head(arrays), "personal": personal}
            return all_labels_only(
                judged,
                {n: head and head.probabilities(test.features) for n, head in models.items()},
                labels=len(train.labels),
                replicates=replicates,
                seed=seed,
            )
        return joining_curve(
            mine,
            judged,
            known.total,
            own=known.own,
            penalty=known.penalty,
            held_out=known.held_out,
            standardise=self.settings.standardise,
            weighting=self.settings.class_weight,
            prior=self.settings.prior,
            replicates=replicates,
            seed=seed,
        )

    def _known(self, data: SiteData, arrays: Arrays, *, took_part: bool) -> _Known:
        """What a site reads in the final arrays.

        Raises
        ------
        ValueError
            If the totals cannot hold what this site sent, or the penalty is none.
        """
        total = Moments.from_arrays(arrays, "total.")
        noise = float(np.sqrt(max(arrays["noise"][0], 0.0)))
        own = Moments.zeros(data.n_classes, total.width, per_class=self.per_class)
        if took_part and not noise:
            own = Moments.of(data.features, data.labels, data.n_classes, per_class=self.per_class)
        if arrays["penalty"][0] <= 0:
            raise ValueError("the penalty is not above 0")
        if not noise and (total.counts - own.counts < -_ROUNDED).any():
            raise ValueError("the sums of all sites hold fewer images than this site sent")
        held_out = ScoreMoments(
            total.counts, arrays["held_out.means"], float(arrays["held_out.spread"][0])
        )
        return _Known(total, own, float(arrays["penalty"][0]), noise, held_out)


@dataclass(frozen=True)
class _Known:
    """Moments of all sites and this site's part in them; `noise` is 0 unless the run is private."""

    total: Moments
    own: Moments
    penalty: float
    noise: float
    held_out: ScoreMoments


def _search_arrays(search: CrossValidation) -> Arrays:
    return {
        "penalties": search.penalties,
        "errors": search.errors,
        "penalty": np.array([search.penalty]),
        "held_out.means": search.held_out.means,
        "held_out.spread": np.array([search.held_out.spread]),
    }
