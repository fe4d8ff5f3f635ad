"""What is asked of a site's privacy, and what the site commits to. No arithmetic here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PrivacyRequest(BaseModel):
    """What a run promises each unit of a site's training data: (epsilon, delta), add or remove one.

    `unit` is what one person may contribute: `patient` bounds all images of one group to
    `images_per_patient`; `image` protects single images only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    clip: float = Field(default=1.0, gt=0, le=1e6, description="largest L2 norm of one unit's part")
    unit: Literal["patient", "image"] = "patient"
    images_per_patient: int = Field(default=4, ge=1, le=1000)


@dataclass(frozen=True)
class Mechanism:
    """`steps` Gaussian mechanisms on Poisson samples; `sampling_rate` 1 is no sampling.

    `noise_multiplier` is the standard deviation of the noise over the sensitivity.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int


@dataclass(frozen=True)
class PrivacyPlan:
    """What one run of `rounds` rounds costs this site: the same mechanism in every round."""

    request: PrivacyRequest
    rounds: int
    per_round: Mechanism
    units: int
    """Patients or images that take part."""
