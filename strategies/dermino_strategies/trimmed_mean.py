"""Trimmed mean: each number of the head without the most extreme ones that were sent.

Yin et al. 2018, "Byzantine-Robust Distributed Learning: Optimal Statistical Rates" (ICML),
Definition 2 and Algorithm 1 (option II), on local models instead of gradients: of each coordinate
the `malicious` largest and as many smallest values are left out (the paper's `beta` is `malicious`
over the number of sites), and the rest are averaged, by Flower's `trim_mean`. Every site counts
the same, however many images it has or claims.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images, and the mean training loss. The coordinator has to see
each site's head, so it cannot run under secure aggregation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from dermino_strategies.base import Arrays, SiteUpdate
from dermino_strategies.fedavg import FedAvgSettings
from dermino_strategies.local_training import LocalTraining, survivable


class TrimmedMeanSettings(FedAvgSettings):
    """FedAvg's for the sites, and how many of them may be wrong."""

    malicious: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="values left out at each end, bad sites survived of 2 malicious + 1 or more",
    )


class TrimmedMean(LocalTraining):
    """Coordinate-wise mean without the extremes."""

    name = "trimmed_mean"

    def __init__(self, settings: TrimmedMeanSettings | None = None) -> None:
        self.settings = settings or TrimmedMeanSettings()
        super().__init__(self.settings)

    def aggregate(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> Arrays:
        """The trimmed mean of each coordinate; with too few sites, less is left out."""
        from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

        cut = survivable("the trimmed mean", self.settings.malicious, sites=len(updates), besides=1)
        # Flower leaves out int(share * sites): the quarter keeps rounding from losing one.
        share = (cut + 0.25) / len(updates) if cut else 0.0
        return {
            name: trim_mean(
                np.stack([updates[site].arrays[name] for site in sorted(updates)]), share
            ).astype(arrays[name].dtype)
            for name in self.update_like(arrays)
        }
