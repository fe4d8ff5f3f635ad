"""q-FFL: hospitals where the model is worse count for more.

Li, Sanjabi, Beirami & Smith 2020, "Fair Resource Allocation in Federated Learning" (ICLR),
Algorithm 2 (q-FedAvg) for the objective `sum_k p_k / (q + 1) F_k(w)^(q + 1)` (equation 2) with
`p_k` the site's share of all training images. `F_k` is site k's mean loss of the global head
before training, `d_k = w_t - w_k` its change:

    w_{t+1} = w_t - L sum_k p_k F_k^q d_k / sum_k p_k h_k,
    h_k = q F_k^(q-1) L^2 ||d_k||^2 + L F_k^q.

With `q = 0` it is FedAvg. The paper takes `L` as one over the step of local gradient descent. Our
sites run Adam, whose change is no gradient times a step, so `lipschitz` is a setting of its own:
small, it weighs the sites by `p_k F_k^q`; large, it also shortens the step.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images and the mean training loss; and two more numbers, the mean
loss of the global head on the training images (`loss-before`) and the squared length of the head's
change (`moved`).

All that is needed of the sites are sums, so it can run under secure aggregation. It trusts what a
site says of its own loss: a bad site gains weight by claiming a large one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from dermino_core.heads import LinearHead
from dermino_strategies.base import Additive, Arrays, SiteData, SiteUpdate
from dermino_strategies.fedavg import LARGEST_SITE, LARGEST_WEIGHT, FedAvgSettings
from dermino_strategies.local_training import LocalTraining, head_arrays

SMALLEST_LOSS, LARGEST_LOSS = 1e-4, 16.0
"""Losses are held to this range: for q < 1 the step divides by a power of the loss, and under
secure aggregation a summand has to have a largest value."""

LARGEST_MOVE = 2.0**10
"""Largest squared length of a head's change under secure aggregation."""


class QFFLSettings(FedAvgSettings):
    """FedAvg's for the sites, and how much more a badly served site counts."""

    q: float = Field(default=1.0, ge=0, le=5, description="fairness; 0 is FedAvg")
    lipschitz: float = Field(
        default=1.0, gt=0, le=1e6, description="L; larger takes shorter steps where q > 0"
    )


class QFFL(LocalTraining, Additive):
    """q-FedAvg, its objective weighted by the sites' images."""

    name = "qffl"

    def __init__(self, settings: QFFLSettings | None = None) -> None:
        self.settings = settings or QFFLSettings()
        super().__init__(self.settings)

    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """FedAvg's local training; also the global head's loss, and how far the head moved."""
        update = super().site_update(data, arrays, round_, seed)
        shares = LinearHead.from_arrays(head_arrays(arrays)).probabilities(data.features)
        right = shares[np.arange(len(data.labels)), data.labels]
        loss = float(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean())
        more = {"loss-before": loss, "moved": _squared_length(arrays, update)}
        return SiteUpdate(update.arrays, update.examples, update.metrics | more)

    def check_update(self, arrays: Arrays, update: SiteUpdate) -> None:
        """As for every method; the two more numbers must be there and fit the head.

        Raises
        ------
        ValueError
            In words that name no path.
        """
        super().check_update(arrays, update)
        missing = {"loss-before", "moved"} - set(update.metrics)
        if missing:
            raise ValueError(f"lacks the numbers {sorted(missing)}")
        if update.metrics["loss-before"] < 0:
            raise ValueError("claims a negative loss")
        moved = _squared_length(arrays, update)
        if not np.isclose(update.metrics["moved"], moved, rtol=1e-3, atol=1e-12):
            raise ValueError(
                f"says its head moved by {update.metrics['moved']:.3g}, not {moved:.3g}"
            )

    def aggregate(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> Arrays:
        """The step from the sum over the sites, added up in the order of their names."""
        total = self.summand_like(arrays)
        for site in sorted(updates):
            for name, part in self.summand(updates[site]).items():
                total[name] += part
        return self.from_sum(arrays, total)

    def summand_like(self, arrays: Arrays) -> Arrays:
        """`n F^q w` for weight and bias; `n F^q`; `n h`."""
        head = {name: np.zeros(array.shape) for name, array in head_arrays(arrays).items()}
        return head | {"share": np.zeros(1), "step": np.zeros(1)}

    def summand_limits(self, arrays: Arrays) -> dict[str, float]:
        """From the largest head, number of images, loss and change."""
        share = LARGEST_SITE * LARGEST_LOSS**self.settings.q
        step = LARGEST_SITE * max(self._h(f, LARGEST_MOVE) for f in (SMALLEST_LOSS, LARGEST_LOSS))
        head = dict.fromkeys(head_arrays(arrays), share * LARGEST_WEIGHT)
        return head | {"share": share, "step": step}

    def summand(self, update: SiteUpdate) -> Arrays:
        """`n F^q w` for weight and bias; `n F^q`; `n h`."""
        loss = min(max(update.metrics["loss-before"], SMALLEST_LOSS), LARGEST_LOSS)
        share = update.examples * loss**self.settings.q
        step = update.examples * self._h(loss, update.metrics["moved"])
        head = {name: share * array.astype(np.float64) for name, array in update.arrays.items()}
        return head | {"share": np.array([share]), "step": np.array([step])}

    def _h(self, loss: float, moved: float) -> float:
        """`h_k`: how fast the objective's gradient can change along the site's direction."""
        q, lipschitz = self.settings.q, self.settings.lipschitz
        return q * loss ** (q - 1) * lipschitz**2 * moved + lipschitz * loss**q

    def from_sum(self, arrays: Arrays, total: Arrays) -> Arrays:
        """`w - L (w sum n F^q - sum n F^q w_k) / sum n h_k`."""
        share, step = float(total["share"][0]), float(total["step"][0])
        following = {}
        for name, array in head_arrays(arrays).items():
            delta = self.settings.lipschitz * (array.astype(np.float64) * share - total[name])
            following[name] = (array - delta / step).astype(array.dtype)
        return following


def _squared_length(arrays: Arrays, update: SiteUpdate) -> float:
    """`||w_k - w_t||^2`, weight and bias together."""
    return sum(
        float(np.square(array.astype(np.float64) - arrays[name]).sum())
        for name, array in update.arrays.items()
    )
