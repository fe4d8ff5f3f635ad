"""The hospital's half that most methods share: FedAvg's local training, to the letter.

What differs from method to method is then the coordinator's half alone, and what leaves the
building is what leaves it under FedAvg: a head, a number of images, a mean loss.
"""

from __future__ import annotations

import logging
from abc import abstractmethod

from dermino_core.heads import LinearHead
from dermino_strategies.base import Additive, Arrays, SiteData, SiteUpdate, Strategy
from dermino_strategies.fedavg import FedAvg, FedAvgSettings

log = logging.getLogger("dermino.strategies")

HEAD = ("weight", "bias")
"""The global arrays that are the model. Others are the coordinator's own and never leave it."""


def head_arrays(arrays: Arrays) -> Arrays:
    """The model among the global arrays: `weight` [C, D] and `bias` [C]."""
    return {name: arrays[name] for name in HEAD}


class LocalTraining(Strategy):
    """A method whose sites train as FedAvg's do."""

    def __init__(self, settings: FedAvgSettings) -> None:
        self._fedavg = FedAvg(settings)

    def initial_arrays(self, n_classes: int, width: int, seed: int) -> Arrays:
        """FedAvg's seeded head: `weight` [C, D] and `bias` [C]."""
        return self._fedavg.initial_arrays(n_classes, width, seed)

    def for_sites(self, arrays: Arrays) -> Arrays:
        """What a site needs of the global arrays: the head."""
        return head_arrays(arrays)

    def update_like(self, arrays: Arrays) -> Arrays:
        """A head."""
        return self._fedavg.update_like(head_arrays(arrays))

    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """FedAvg's: train the global head for the local epochs, send it."""
        return self._fedavg.site_update(data, head_arrays(arrays), round_, seed)

    def head(self, arrays: Arrays) -> LinearHead:
        """The global head itself."""
        return LinearHead.from_arrays(head_arrays(arrays))


class MeanTraining(LocalTraining, Additive):
    """... and whose coordinator needs no more than FedAvg's mean of the heads."""

    @abstractmethod
    def server_step(self, arrays: Arrays, mean: Arrays) -> Arrays:
        """The next global arrays, from the present ones and the sites' mean head."""

    def summand_like(self, arrays: Arrays) -> Arrays:
        """The head times its images, and the number of images."""
        return self._fedavg.summand_like(head_arrays(arrays))

    def summand_limits(self, arrays: Arrays) -> dict[str, float]:
        """FedAvg's."""
        return self._fedavg.summand_limits(head_arrays(arrays))

    def summand(self, update: SiteUpdate) -> Arrays:
        """The head times its images, and the number of images."""
        return self._fedavg.summand(update)

    def from_sum(self, arrays: Arrays, total: Arrays) -> Arrays:
        """FedAvg's mean of the sum, then the coordinator's step."""
        return self.server_step(arrays, self._fedavg.from_sum(head_arrays(arrays), total))


def survivable(method: str, malicious: int, *, sites: int, besides: int) -> int:
    """How many bad sites can be survived: `malicious`, or as many as these few sites allow.

    `besides` is how many sites a method needs besides two for each bad one. That fewer than were
    expected gave a usable update must not end the run: else one site that sends rubbish, and is
    refused, would. `--min-sites` is what holds a run to its promise.
    """
    possible = max(0, (sites - besides) // 2)
    if possible < malicious and sites > 1:
        log.warning(
            "%s survives %d bad sites among %d, not the %d that were asked for; %d sites would do",
            method,
            possible,
            sites,
            malicious,
            2 * malicious + besides,
        )
    return min(malicious, possible)
