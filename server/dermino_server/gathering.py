"""The updates of one round on their way into the next global arrays."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict

from dermino_core.errors import DerminoError
from dermino_core.results import RoundRecord, Suspicion
from dermino_server.kept_sums import KeptSums
from dermino_strategies.base import Additive, Arrays, SiteUpdate, Strategy
from dermino_strategies.running_sum import RunningSum
from dermino_strategies.suspicion import Outline, compare, outline, suspicious

log = logging.getLogger("dermino.server")


class Gathering:
    """Takes each update as it comes; of a method that adds, only sum and outlines are kept.

    With `outlines` the updates can be compared afterwards. Not in a private run: there noise
    decides how long an update is, the more so the fewer images a site has.

    Updates that are `kept` go to the disk, and from there into the sum, with those of `earlier`
    sites that the run took over from another one.
    """

    def __init__(
        self,
        strategy: Strategy,
        arrays: Arrays,
        sites: Collection[str],
        *,
        outlines: bool = True,
        kept: KeptSums | None = None,
        earlier: Collection[str] = (),
    ) -> None:
        self._strategy = strategy
        self._arrays = arrays
        self._running = RunningSum(sites)
        self._updates: dict[str, SiteUpdate] = {}
        self._outlined = outlines
        self._outlines: dict[str, Outline] = {}
        self._kept = kept
        self._on_disk = set(earlier)
        self._failure: OSError | None = None

    def add(self, site: str, update: SiteUpdate) -> None:
        """Take a checked update."""
        seen = outline(self._strategy, self._arrays, update) if self._outlined else None
        if self._kept is not None:
            self._keep(self._kept, site, update)
        elif isinstance(self._strategy, Additive):
            self._running.add(site, self._strategy.summand(update))
        else:
            self._updates[site] = update
        if seen is not None:
            self._outlines[site] = seen

    def aggregate(self) -> Arrays:
        """The coordinator half of the method, on all that came.

        Raises
        ------
        DerminoError
            `RUN_FAILED` if an update could not be kept, `CHECKPOINT_INVALID` if one was changed.
        """
        if self._kept is not None:
            if self._failure is not None:
                raise DerminoError(
                    "RUN_FAILED",
                    f"What the sites sent cannot be kept: {self._failure.strerror}.",
                    where=self._kept.folder,
                    fix="Mend the disk, then continue with --resume.",
                )
            return self._strategy.aggregate(self._arrays, self._kept.updates(self._on_disk))
        if isinstance(self._strategy, Additive):
            return self._strategy.from_sum(self._arrays, self._running.total())
        return self._strategy.aggregate(self._arrays, self._updates)

    def compare(self, record: RoundRecord) -> None:
        """File in the round's record how the updates lie to each other, and warn of odd ones."""
        record.update_length = {s: seen.length for s, seen in sorted(self._outlines.items())}
        compared = sorted(compare(self._outlines).items())
        record.update_cosine = {site: seen.cosine for site, seen in compared}
        record.suspicious = [Suspicion(**asdict(found)) for found in suspicious(self._outlines)]
        for found in record.suspicious:
            log.warning("round %d: %s", record.round, found.sentence)

    def _keep(self, kept: KeptSums, site: str, update: SiteUpdate) -> None:
        """That this disk is full is no fault of the site: it is told when all have answered."""
        try:
            kept.write(site, update)
            self._on_disk.add(site)
        except OSError as error:
            self._failure = error
