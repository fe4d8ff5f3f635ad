"""Median: each number of the head is the middle one of what the sites sent.

Yin et al. 2018, "Byzantine-Robust Distributed Learning: Optimal Statistical Rates" (ICML),
Definition 1 and Algorithm 1 (option I), on local models instead of gradients. Fewer than half of
the sites can send what they like without moving it outside the range of the honest ones. Every
site counts the same, however many images it has or claims. With two sites it is their mean, and
survives nothing.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images, and the mean training loss. The coordinator has to see
each site's head, so it cannot run under secure aggregation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dermino_strategies.base import Arrays, SiteUpdate
from dermino_strategies.fedavg import FedAvgSettings
from dermino_strategies.local_training import LocalTraining


class MedianSettings(FedAvgSettings):
    """FedAvg's for the sites; the median itself has none."""


class Median(LocalTraining):
    """Coordinate-wise median of the sites' heads."""

    name = "median"

    def __init__(self, settings: MedianSettings | None = None) -> None:
        self.settings = settings or MedianSettings()
        super().__init__(self.settings)

    def aggregate(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> Arrays:
        """The median of each coordinate."""
        return {
            name: np.median(
                np.stack([updates[site].arrays[name] for site in sorted(updates)]), axis=0
            ).astype(arrays[name].dtype)
            for name in self.update_like(arrays)
        }
