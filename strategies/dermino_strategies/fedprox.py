"""FedProx: federated averaging that keeps each hospital near the global model.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (MLSys), Algorithm 2: site k
minimises `F_k(w) + mu/2 ||w - w_t||^2` (equation 2) from the global head `w_t`; the coordinator
averages. With `mu = 0` it is FedAvg, bit for bit. The square is the paper's; it belongs to the
whole head, bias included.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images, and the mean training loss (without the proximal term).
"""

from __future__ import annotations

import zlib

from pydantic import Field

from dermino_core.heads import HeadRecipe, LinearHead, fit_head
from dermino_strategies.base import Arrays, SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvgSettings
from dermino_strategies.local_training import MeanTraining, head_arrays


class FedProxSettings(FedAvgSettings):
    """FedAvg's, and the weight of the proximal term."""

    mu: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="pull towards the global head; the paper tries 0.001 to 1, 0 is FedAvg",
    )


class FedProx(MeanTraining):
    """FedAvg with a proximal term in the local objective."""

    name = "fedprox"

    def __init__(self, settings: FedProxSettings | None = None) -> None:
        self.settings = settings or FedProxSettings()
        super().__init__(self.settings)

    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """FedAvg's local training on the proximal objective, same batches in the same order."""
        recipe = HeadRecipe(
            epochs=self.settings.local_epochs,
            learning_rate=self.settings.learning_rate,
            batch_size=self.settings.batch_size,
            proximal=self.settings.mu,
        )
        head, loss = fit_head(
            LinearHead.from_arrays(head_arrays(arrays)),
            data.features,
            data.labels,
            recipe,
            seed=(seed, round_, zlib.crc32(data.site.encode())),
            device=data.device,
        )
        return SiteUpdate(head.arrays(), examples=len(data.labels), metrics={"train-loss": loss})

    def server_step(self, arrays: Arrays, mean: Arrays) -> Arrays:
        """The mean is the next head."""
        del arrays
        return mean
