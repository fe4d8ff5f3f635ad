"""What FedAvgM, FedAdam and FedYogi share: an optimiser at the coordinator.

Reddi et al. 2021, "Adaptive Federated Optimization" (ICLR), Algorithm 1 (FedOpt): the mean of the
sites' heads minus the global head is a pseudo-gradient `Delta_t`, and the coordinator takes an
optimiser's step along it.

The optimiser's state (momentum, second moments) is kept among the global arrays, under names that
begin with `server.`, so that a checkpoint of the arrays is all that a run needs to go on. It
stays at the coordinator: sites are sent the head alone.

Flower's own FedAvgM, FedAdam and FedYogi keep the same state in attributes of an object and take
Flower messages, so they cannot continue from arrays; the tests hold these here against them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dermino_strategies.base import Arrays
from dermino_strategies.fedavg import FedAvgSettings
from dermino_strategies.local_training import HEAD, MeanTraining

Moments = dict[str, npt.NDArray[np.float64]]


class ServerOptimiser(MeanTraining):
    """FedAvg whose coordinator steps along the mean change instead of taking the mean."""

    def __init__(self, settings: FedAvgSettings, state: Mapping[str, float]) -> None:
        """`state`: name of each part of the optimiser's state -> the value it starts from."""
        super().__init__(settings)
        self._state = dict(state)

    def initial_arrays(self, n_classes: int, width: int, seed: int) -> Arrays:
        """FedAvg's head, and one array like each of its two for each part of the state."""
        head = super().initial_arrays(n_classes, width, seed)
        return head | {
            f"server.{part}.{name}": np.full_like(head[name], start)
            for part, start in self._state.items()
            for name in HEAD
        }

    @abstractmethod
    def step(self, change: npt.NDArray[np.float64], moments: Moments) -> npt.NDArray[np.float64]:
        """What to add to one array, from its `Delta_t`; renews `moments` in place."""

    def server_step(self, arrays: Arrays, mean: Arrays) -> Arrays:
        """One step of the optimiser: the next head and the next state."""
        following = dict(arrays)
        for name in HEAD:
            moments = {
                part: arrays[f"server.{part}.{name}"].astype(np.float64) for part in self._state
            }
            change = mean[name].astype(np.float64) - arrays[name]
            added = self.step(change, moments)
            following[name] = (arrays[name] + added).astype(arrays[name].dtype)
            for part, moment in moments.items():
                key = f"server.{part}.{name}"
                following[key] = moment.astype(arrays[key].dtype)
        return following


class AdaptiveSettings(FedAvgSettings):
    """FedAvg's for the sites; the coordinator's in the paper's letters (Algorithm 2)."""

    server_learning_rate: float = Field(default=0.01, gt=0, le=100, description="eta")
    beta_1: float = Field(default=0.9, ge=0, lt=1, description="decay of the momentum")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="decay of the second moment")
    tau: float = Field(default=1e-3, gt=0, le=1, description="adaptivity: smaller adapts more")


class Adaptive(ServerOptimiser):
    """Algorithm 2 of Reddi et al.: momentum over the root of a second moment.

    As in the paper, and unlike Adam (and Flower's FedAdam), nothing corrects the bias of the
    moments' start, and the second moment starts from `tau^2`.
    """

    def __init__(self, settings: AdaptiveSettings) -> None:
        self.settings = settings
        super().__init__(settings, {"momentum": 0.0, "second": settings.tau**2})

    @abstractmethod
    def second_moment(
        self, before: npt.NDArray[np.float64], squared: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """`v_t` from `v_{t-1}` and `Delta_t^2`."""

    def step(self, change: npt.NDArray[np.float64], moments: Moments) -> npt.NDArray[np.float64]:
        """`m_t = beta_1 m + (1 - beta_1) Delta`; adds `eta m_t / (sqrt(v_t) + tau)`."""
        s = self.settings
        moments["momentum"] = s.beta_1 * moments["momentum"] + (1 - s.beta_1) * change
        moments["second"] = self.second_moment(moments["second"], change**2)
        return s.server_learning_rate * moments["momentum"] / (np.sqrt(moments["second"]) + s.tau)
