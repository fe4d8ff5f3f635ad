"""The updates of one round on their way into the next global arrays."""

from __future__ import annotations

from collections.abc import Collection

from dermino_strategies.base import Additive, Arrays, SiteUpdate, Strategy
from dermino_strategies.running_sum import RunningSum


class Gathering:
    """Takes each update as it comes; of a method that adds, only the sum is kept."""

    def __init__(self, strategy: Strategy, arrays: Arrays, sites: Collection[str]) -> None:
        self._strategy = strategy
        self._arrays = arrays
        self._running = RunningSum(sites)
        self._updates: dict[str, SiteUpdate] = {}

    def add(self, site: str, update: SiteUpdate) -> None:
        """Take a checked update."""
        if isinstance(self._strategy, Additive):
            self._running.add(site, self._strategy.summand(update))
        else:
            self._updates[site] = update

    def aggregate(self) -> Arrays:
        """The coordinator half of the method, on all that came."""
        if isinstance(self._strategy, Additive):
            return self._strategy.from_sum(self._arrays, self._running.total())
        return self._strategy.aggregate(self._arrays, self._updates)
