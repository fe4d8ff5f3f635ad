"""FedYogi: Yogi at the coordinator.

Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 2 with
`v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2)`: the second moment moves by the
size of the newest square, and not by its distance to it, so it forgets large changes slowly.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images, and the mean training loss. The moments stay at the
coordinator.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dermino_strategies.server_optimisers import Adaptive, AdaptiveSettings


class FedYogiSettings(AdaptiveSettings):
    """The paper's letters; `beta_1`, `beta_2` and `tau` from its section 5.2."""


class FedYogi(Adaptive):
    """Yogi's step along the mean change of the heads."""

    name = "fedyogi"

    def __init__(self, settings: FedYogiSettings | None = None) -> None:
        super().__init__(settings or FedYogiSettings())

    def second_moment(
        self, before: npt.NDArray[np.float64], squared: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Towards the newest square, by a share of its size."""
        return before - (1 - self.settings.beta_2) * squared * np.sign(before - squared)
