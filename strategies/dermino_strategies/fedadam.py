"""FedAdam: Adam at the coordinator.

Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 2 with
`v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2`.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images, and the mean training loss. The moments stay at the
coordinator.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dermino_strategies.server_optimisers import Adaptive, AdaptiveSettings


class FedAdamSettings(AdaptiveSettings):
    """The paper's letters; `beta_1`, `beta_2` and `tau` from its section 5.2."""


class FedAdam(Adaptive):
    """Adam's step along the mean change of the heads."""

    name = "fedadam"

    def __init__(self, settings: FedAdamSettings | None = None) -> None:
        super().__init__(settings or FedAdamSettings())

    def second_moment(
        self, before: npt.NDArray[np.float64], squared: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """A decaying mean of the squares."""
        return self.settings.beta_2 * before + (1 - self.settings.beta_2) * squared
