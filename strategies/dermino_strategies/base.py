"""What a federated method is: a site half and a coordinator half, free of transport.

Arrays are plain dictionaries of numpy arrays. The client packs a :class:`SiteUpdate` into a
Flower reply, the server unpacks it; a method never sees a message, a path or a site's images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from dermino_core.heads import LinearHead

Arrays = dict[str, npt.NDArray]


@dataclass(frozen=True)
class SiteData:
    """What a site half may look at: features [n, D], labels [n], and the number of classes."""

    site: str
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.integer]
    n_classes: int
    device: str = "cpu"


@dataclass(frozen=True)
class SiteUpdate:
    """What leaves the building in one round."""

    arrays: Arrays
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)


class Settings(BaseModel):
    """Base of every method's settings: typed, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Strategy(ABC):
    """One federated method."""

    name: str

    @abstractmethod
    def initial_arrays(self, n_classes: int, width: int, seed: int) -> Arrays:
        """What the first round starts from."""

    @abstractmethod
    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """Site half: what a hospital computes from the global arrays and sends."""

    @abstractmethod
    def aggregate(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> Arrays:
        """Coordinator half: the next global arrays.

        `updates` maps site names to checked updates; at least one. Implementations go through
        the sites in sorted order, so that the sum does not depend on who answered first.
        """

    @abstractmethod
    def head(self, arrays: Arrays) -> LinearHead:
        """The linear head that the global arrays stand for."""

    def check_update(self, arrays: Arrays, update: SiteUpdate) -> None:
        """Refuse an update that would poison the model.

        Raises
        ------
        ValueError
            In words that name no path, if names, shapes, types or values are wrong.
        """
        if set(update.arrays) != set(arrays):
            raise ValueError(f"sent the arrays {sorted(update.arrays)}, not {sorted(arrays)}")
        for name, array in update.arrays.items():
            expected = arrays[name]
            if array.shape != expected.shape or array.dtype != expected.dtype:
                raise ValueError(
                    f"array '{name}' has shape {array.shape} and type {array.dtype}, "
                    f"not {expected.shape} and {expected.dtype}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"array '{name}' holds NaN or infinite values")
        if update.examples < 1:
            raise ValueError(f"claims to have trained on {update.examples} images")
        for name, value in update.metrics.items():
            if not np.isfinite(value):
                raise ValueError(f"its {name} is not finite")
