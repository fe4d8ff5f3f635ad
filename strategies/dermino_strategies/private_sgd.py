"""The hospital's half with differential privacy, for methods whose sites train a linear head.

What leaves the building, per round: the head's weights and biases after DP-SGD
(`dermino_core.privacy.sgd`). No loss, and no number of images: every site claims one example, so
that all of them weigh the same, because the true number would tell whether a patient is there.

The noise is fixed once for all rounds. It depends on the settings, the request and the number of
rounds, not on the data: two sites with the same budget add the same noise, however many patients
they have.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, FiniteFloat

from dermino_core.errors import DerminoError
from dermino_core.heads import LinearHead
from dermino_core.privacy.accounting import noise_multiplier
from dermino_core.privacy.plan import Mechanism, PrivacyPlan, PrivacyRequest
from dermino_core.privacy.units import number_units
from dermino_strategies.base import Arrays, Settings, SiteData, SiteUpdate

FEWEST_UNITS = 2
"""One patient alone cannot hide among others."""


class PrivateSettings(Settings):
    """How a site trains when the run is private; ignored when it is not.

    Found on the training halves of three real sites (DINOv2 ViT-S features), for two rounds and
    epsilon from 1 to 8; see `tests/benchmarks/private_auroc.py`.
    """

    private_steps: int = Field(default=40, ge=1, le=100_000)
    """Steps of one round."""
    private_sampling_rate: float = Field(default=0.5, gt=0, le=1)
    """Probability of each unit to take part in a step."""
    private_learning_rate: float = Field(default=0.02, gt=0, le=10)
    """For features whose coordinates are of the order of 1, as a final LayerNorm leaves them."""
    centre: tuple[FiniteFloat, ...] = Field(default=(), max_length=65536)
    """A public point among the features, such as the mean of drawn images; the origin if empty.
    Whatever it is, the promise holds: it only decides how much is learned."""


def plan_private_rounds(
    settings: PrivateSettings, data: SiteData, request: PrivacyRequest, rounds: int
) -> PrivacyPlan:
    """The noise that keeps all rounds together within the requested epsilon.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` with fewer than :data:`FEWEST_UNITS` units, `CONFIG_INVALID` if no noise is
        enough or the centre does not fit the features.
    """
    units = number_units(data.groups, len(data.labels), request.unit)
    count = len(np.unique(units))
    if count < FEWEST_UNITS:
        raise DerminoError(
            "DATA_TOO_FEW",
            f"The site's training half has {count} {request.unit}s: too few for a private run.",
            fix="Add data, or take part in runs without privacy only.",
        )
    width = data.features.shape[1]
    if len(settings.centre) not in (0, width):
        raise DerminoError(
            "CONFIG_INVALID",
            f"The run's centre has {len(settings.centre)} numbers, the features {width}.",
            fix="Make it from features of the run's backbone, or leave it out.",
        )
    rate, steps = settings.private_sampling_rate, settings.private_steps
    noise = noise_multiplier(request.epsilon, request.delta, rate, steps * rounds)
    return PrivacyPlan(request, rounds, Mechanism(noise, rate, steps), count)


def train_privately(
    settings: PrivateSettings, data: SiteData, arrays: Arrays, plan: PrivacyPlan
) -> SiteUpdate:
    """One round of DP-SGD from the global head, with the plan's noise and fresh randomness.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if the plan is for other settings than these.
    """
    from dermino_core.privacy.sgd import fit_private_head

    mechanism, request = plan.per_round, plan.request
    if (mechanism.sampling_rate, mechanism.steps) != (
        settings.private_sampling_rate,
        settings.private_steps,
    ):
        raise DerminoError("CONFIG_INVALID", "The privacy plan was made for other settings.")
    head = fit_private_head(
        LinearHead.from_arrays(arrays),
        data.features,
        data.labels,
        number_units(data.groups, len(data.labels), request.unit),
        mechanism,
        learning_rate=settings.private_learning_rate,
        clip=request.clip,
        images_per_unit=request.images_per_patient,
        centre=np.array(settings.centre) if settings.centre else None,
    )
    return SiteUpdate(head.arrays(), examples=1)
