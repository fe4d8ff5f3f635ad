"""FedAvgM: federated averaging with momentum at the coordinator.

Hsu, Qi & Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification", section 4.3: `v <- beta v + Delta`, `w <- w + eta v`, where `Delta` is
FedAvg's mean head minus the global head. With `beta = 0` and `eta = 1` it is FedAvg.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images, and the mean training loss. The momentum stays at the
coordinator.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dermino_strategies.fedavg import FedAvgSettings
from dermino_strategies.server_optimisers import Moments, ServerOptimiser


class FedAvgMSettings(FedAvgSettings):
    """FedAvg's for the sites, and the coordinator's momentum."""

    server_learning_rate: float = Field(default=1.0, gt=0, le=100, description="eta")
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="beta; the paper tries 0, 0.7, 0.9, 0.97, 0.99, 0.997"
    )


class FedAvgM(ServerOptimiser):
    """Momentum on the mean change of the heads."""

    name = "fedavgm"

    def __init__(self, settings: FedAvgMSettings | None = None) -> None:
        self.settings = settings or FedAvgMSettings()
        super().__init__(self.settings, {"momentum": 0.0})

    def step(self, change: npt.NDArray[np.float64], moments: Moments) -> npt.NDArray[np.float64]:
        """`v = beta v + Delta`; adds `eta v`."""
        moments["momentum"] = self.settings.momentum * moments["momentum"] + change
        return self.settings.server_learning_rate * moments["momentum"]
