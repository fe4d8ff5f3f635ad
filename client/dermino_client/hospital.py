"""A hospital ready to answer: its prepared data, its policy, and the folder of what it keeps.

Everything that is kept lies in files below `folder`, because a fresh process answers every Flower
message; nothing here is held open between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dermino_client.audit import AuditLog
from dermino_client.ledger import Ledger, Limits
from dermino_client.policy import PolicySection
from dermino_client.prepare import PreparedSite, load_prepared
from dermino_client.segmentation_prepare import PreparedMasks, load_masks, no_masks
from dermino_client.site import Site


@dataclass(frozen=True)
class Hospital:
    """One site of the federation, on its own machine or in a simulation.

    `load` is called at the first look at the data, so that a message can be recorded and refused
    without it.
    """

    name: str
    policy: PolicySection
    folder: Path
    load: Callable[[], PreparedSite]
    load_masks: Callable[[], PreparedMasks] = no_masks

    @cached_property
    def prepared(self) -> PreparedSite:
        """Features, labels and split.

        Raises
        ------
        DerminoError
            `DATA_CHANGED` if the site was not prepared or its files changed since.
        """
        return self.load()

    @cached_property
    def masks(self) -> PreparedMasks:
        """Patch features and masks.

        Raises
        ------
        DerminoError
            `REQUEST_MISMATCH` if the site takes no part in segmentation; `DATA_CHANGED` if it was
            not prepared or its files changed since.
        """
        return self.load_masks()

    @property
    def audit(self) -> AuditLog:
        """Every message in and out."""
        return AuditLog(self.folder / "audit")

    @property
    def ledger(self) -> Ledger:
        """What differential privacy has cost so far."""
        return Ledger(self.folder / "ledger")

    @property
    def limits(self) -> Limits:
        """What differential privacy may cost."""
        return Limits(
            per_run=self.policy.epsilon_per_run,
            per_year=self.policy.epsilon_per_year,
            delta=self.policy.delta,
        )


def hospital_of(site: Site) -> Hospital:
    """The hospital of a site file."""
    return Hospital(
        site.name,
        site.policy,
        site.folder,
        lambda: load_prepared(site),
        lambda: load_masks(site),
    )
