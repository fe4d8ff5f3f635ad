"""What one sum is about, and how many sites it needs. Everything else is bound to this."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation.encoding import digest

FEWEST_SITES = 3
"""A sum over two tells each of them what the other sent."""

MOST_SITES = 1000


class Session(BaseModel):
    """One attempt at one sum.

    `task_digest` binds all that decides what the sites compute: see :func:`task_digest`.
    `threshold` is the number of sites without which nothing can be unmasked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str = Field(min_length=1, max_length=128)
    round: int = Field(ge=0, lt=2**31)
    purpose: Literal["train", "evaluate"]
    attempt: int = Field(ge=0, lt=2**31)
    task_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    threshold: int = Field(ge=1, le=MOST_SITES)

    @property
    def id(self) -> bytes:
        """SHA-256 over all fields, 32 bytes."""
        return digest(
            "session",
            self.run,
            self.round,
            self.purpose,
            self.attempt,
            self.task_digest,
            self.threshold,
        )

    @property
    def round_key(self) -> str:
        """Hexadecimal name of the (run, round, purpose) that all attempts at one sum share."""
        return digest("round", self.run, self.round, self.purpose).hex()

    @property
    def title(self) -> str:
        """For people: which sum this is."""
        return f"{self.purpose} of round {self.round}, attempt {self.attempt}, run {self.run[:12]}"

    def next_attempt(self, threshold: int | None = None) -> Session:
        """The same sum, tried again with new keys."""
        changed = {"attempt": self.attempt + 1, "threshold": threshold or self.threshold}
        return self.model_copy(update=changed)


def task_digest(task: str, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over a task and the arrays that the sites start from, in hexadecimal.

    The arrays belong in it: a coordinator that gives every site other arrays can otherwise
    choose them so that only one site has anything to add, and reads that site's update off the
    sum (Pasquini et al. 2022, "Eluding Secure Aggregation in Federated Learning via Model
    Inconsistency", CCS). With them in it, sites that were given different arrays are in different
    sessions and never finish one.
    """
    fields: list[bytes | str | int] = [task, len(arrays)]
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        content = hashlib.sha256(little.reshape(-1).data).digest()
        fields += [name, little.dtype.str, str(array.shape), content]
    return digest("task", *fields).hex()


def default_threshold(sites: int) -> int:
    """More than two thirds of the sites, and at least 3.

    With t of n sites needed, an honest site's value stays hidden from a coordinator that lies and
    colludes with c sites as long as 2t > n + c (Bonawitz et al., Theorem 6.5): the two halves of
    what unmasks one site alone then cannot both find t confirmations, because honest sites
    confirm once. t > 2n/3 holds against c < n/3; t > n/2, the least that a site accepts, only
    against a lying coordinator on its own.
    """
    return max(FEWEST_SITES, 2 * sites // 3 + 1)


def check_threshold(threshold: int, sites: int) -> None:
    """Hold a threshold to the least that protects: n/2 < t <= n, and t >= 3.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` otherwise.
    """
    if not (FEWEST_SITES <= threshold <= sites and threshold > sites // 2):
        raise DerminoError(
            "SECURE_REFUSED",
            f"A threshold of {threshold} of {sites} sites does not protect or cannot be met.",
            fix=f"It must be above half of the sites and at least {FEWEST_SITES}; "
            f"{default_threshold(sites)} of {sites} is usual.",
        )
