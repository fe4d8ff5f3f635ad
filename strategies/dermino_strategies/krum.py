"""Krum and Multi-Krum: only the heads with the closest company count.

Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"
(NIPS), section 4: a site's score is the sum of squared distances from its update to the n - f - 2
nearest others; Krum takes the update with the lowest score, Multi-Krum the mean of the `keep`
lowest. Resilience needs n > 2 f + 2. Scores and choice are Flower's. Every chosen site counts the
same, however many images it has or claims.

Its price: what the others learned is left out, an honest hospital with unusual patients first.

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


class KrumSettings(FedAvgSettings):
    """FedAvg's for the sites, the paper's `f` and `m`."""

    malicious: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="f, bad sites survived of 2 malicious + 3 or more",
    )
    keep: int = Field(
        default=1, ge=1, le=1000, description="m, updates averaged: 1 is Krum, more Multi-Krum"
    )


class Krum(LocalTraining):
    """The mean of the updates that lie closest to their neighbours."""

    name = "krum"

    def __init__(self, settings: KrumSettings | None = None) -> None:
        self.settings = settings or KrumSettings()
        super().__init__(self.settings)

    def chosen(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> list[str]:
        """The sites whose updates count, sorted by name; at most `keep`, at most n - f."""
        from flwr.app import Array, ArrayRecord, RecordDict
        from flwr.serverapp.strategy.multikrum import select_multikrum

        sites = sorted(updates)
        malicious = survivable("Krum", self.settings.malicious, sites=len(sites), besides=3)
        # Changes in float64, not heads in float32: Flower's distances are differences of squares.
        contents = {
            site: RecordDict(
                {
                    "arrays": ArrayRecord(
                        {name: Array(a) for name, a in _change(arrays, updates[site]).items()}
                    )
                }
            )
            for site in sites
        }
        selected = select_multikrum(
            list(contents.values()), malicious, min(self.settings.keep, len(sites) - malicious)
        )
        return [site for site in sites if any(contents[site] is content for content in selected)]

    def aggregate(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> Arrays:
        """The mean head of the chosen sites."""
        chosen = self.chosen(arrays, updates)
        return {
            name: np.mean(
                [updates[site].arrays[name] for site in chosen], axis=0, dtype=np.float64
            ).astype(arrays[name].dtype)
            for name in self.update_like(arrays)
        }


def _change(arrays: Arrays, update: SiteUpdate) -> Arrays:
    return {name: array.astype(np.float64) - arrays[name] for name, array in update.arrays.items()}
