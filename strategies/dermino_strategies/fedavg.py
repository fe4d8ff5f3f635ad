"""FedAvg: every site trains the global head on its own images; the coordinator averages.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
Algorithm 1, with the schedule of the DermINO paper, section 4.2.4: two local epochs of Adam from
2e-4, annealed by a cosine, two global rounds, a linear layer on a frozen encoder.

What leaves the building, per round: the head's weights and biases after local training, the number
of training images, and the mean training loss. (`protocol` lists what surrounds every method.)
In a private run: the head after DP-SGD, and nothing else (`private_sgd`).
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
from pydantic import Field

from dermino_core.heads import HeadRecipe, LinearHead, fit_head
from dermino_core.privacy.plan import PrivacyPlan, PrivacyRequest
from dermino_strategies.base import Additive, Arrays, Private, SiteData, SiteUpdate
from dermino_strategies.private_sgd import (
    PrivateSettings,
    plan_private_rounds,
    train_privately,
)

LARGEST_WEIGHT = 2.0**10
LARGEST_SITE = 2.0**24
"""What one site may send under secure aggregation: entries of a head, and training images."""


class FedAvgSettings(PrivateSettings):
    """The paper's numbers; batch size and initial head are ours, because the paper is silent."""

    local_epochs: int = Field(default=2, ge=1, le=1000)
    learning_rate: float = Field(default=2e-4, gt=0, le=10)
    batch_size: int = Field(default=32, ge=1)
    initial_head: Literal["uniform", "zeros"] = "uniform"


class FedAvg(Additive, Private):
    """Example-weighted federated averaging of linear heads."""

    name = "fedavg"

    def __init__(self, settings: FedAvgSettings | None = None) -> None:
        self.settings = settings or FedAvgSettings()

    def initial_arrays(self, n_classes: int, width: int, seed: int) -> Arrays:
        """A seeded head: `weight` [C, D] and `bias` [C]."""
        how = self.settings.initial_head
        return LinearHead.initial(n_classes, width, how=how, seed=seed).arrays()

    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """Train the global head for the local epochs; send it with the number of images."""
        recipe = HeadRecipe(
            epochs=self.settings.local_epochs,
            learning_rate=self.settings.learning_rate,
            batch_size=self.settings.batch_size,
        )
        head, loss = fit_head(
            LinearHead.from_arrays(arrays),
            data.features,
            data.labels,
            recipe,
            seed=(seed, round_, zlib.crc32(data.site.encode())),
            device=data.device,
        )
        return SiteUpdate(head.arrays(), examples=len(data.labels), metrics={"train-loss": loss})

    def privacy_plan(self, data: SiteData, request: PrivacyRequest, rounds: int) -> PrivacyPlan:
        """The noise of DP-SGD, fixed once for all rounds."""
        return plan_private_rounds(self.settings, data, request, rounds)

    def private_site_update(
        self, data: SiteData, arrays: Arrays, round_: int, plan: PrivacyPlan
    ) -> SiteUpdate:
        """Train the global head by DP-SGD; send it as one example, whatever the site's size."""
        return train_privately(self.settings, data, arrays, plan)

    def summand_like(self, arrays: Arrays) -> Arrays:
        """The head times its images, and the number of images."""
        like = {name: np.zeros(array.shape) for name, array in arrays.items()}
        return like | {"examples": np.zeros(1)}

    def summand_limits(self, arrays: Arrays) -> dict[str, float]:
        """No head has entries above 2^10, no site more than 2^24 images."""
        limits = dict.fromkeys(arrays, LARGEST_WEIGHT * LARGEST_SITE)
        return limits | {"examples": LARGEST_SITE}

    def summand(self, update: SiteUpdate) -> Arrays:
        """The head times its images, and the number of images."""
        weighted = {
            name: array.astype(np.float64) * update.examples
            for name, array in update.arrays.items()
        }
        return weighted | {"examples": np.array([float(update.examples)])}

    def from_sum(self, arrays: Arrays, total: Arrays) -> Arrays:
        """The weighted mean: the sum of the weighted heads over the sum of the images."""
        images = float(total["examples"][0])
        return {name: (total[name] / images).astype(arrays[name].dtype) for name in arrays}

    def head(self, arrays: Arrays) -> LinearHead:
        """The averaged head itself."""
        return LinearHead.from_arrays(arrays)
