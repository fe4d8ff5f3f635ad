"""Who is in the federation: `federation.json` and `roster.json` of a provisioned folder.

The roster is the truth about enrolments. Nothing is ever taken out of it: a revoked site stays in
it, so that its keys cannot come back under any name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dermino_core.enrolment import Address, Certificate, IdentityKey, NodeKey, SiteName
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.public_keys import identity_key, key_digest, node_key

FEDERATION_FILE = "federation.json"
ROSTER_FILE = "roster.json"

M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Federation(_Strict):
    """What `dermino provision init` was told."""

    format: Literal["dermino-federation"] = "dermino-federation"
    version: Literal[1] = 1
    name: SiteName
    address: Address
    """HOST:PORT that the hospitals connect to."""
    superlink: Address
    """HOST:PORT of the SuperLink on the coordinator's own machine."""
    connection: SiteName
    """Name of the Flower connection to `superlink`."""


class FormerNode(_Strict):
    """A node key that a renewal replaced."""

    node_key: NodeKey
    node_id: str | None
    unregistered: bool


class Entry(_Strict):
    """One enrolment of one site."""

    name: SiteName
    status: Literal["member", "revoked"] = "member"
    identity_key: IdentityKey
    node_key: NodeKey
    request: str
    """Digest of the last request that was accepted."""
    requested: AwareDatetime
    certificate: Certificate
    enrolled: AwareDatetime
    expires: AwareDatetime
    revoked: AwareDatetime | None = None
    node_id: str | None = None
    """At the SuperLink; None while it is not registered, or was registered by hand."""
    unregistered: bool = False
    """Whether the SuperLink was told that this site is revoked."""
    former_nodes: list[FormerNode] = []

    @property
    def identity_digest(self) -> str:
        """SHA-256 of the identity key."""
        return key_digest(identity_key(self.identity_key))

    @property
    def node_digest(self) -> str:
        """SHA-256 of the node key."""
        return key_digest(node_key(self.node_key))

    @property
    def node_keys(self) -> set[str]:
        """Every node key this enrolment ever had."""
        return {self.node_key, *(former.node_key for former in self.former_nodes)}


class Roster(_Strict):
    """Every enrolment there ever was, the oldest first."""

    format: Literal["dermino-roster"] = "dermino-roster"
    version: Literal[1] = 1
    sites: list[Entry] = []

    @property
    def members(self) -> list[Entry]:
        """Sites that may take part, by name."""
        current = (entry for entry in self.sites if entry.status == "member")
        return sorted(current, key=lambda entry: entry.name)

    def member(self, name: str) -> Entry | None:
        """The current member of that name."""
        return next((entry for entry in self.members if entry.name == name), None)

    def revoked_identities(self) -> list[str]:
        """Digests of identity keys that are no longer accepted."""
        gone = (entry for entry in self.sites if entry.status == "revoked")
        return sorted({entry.identity_digest for entry in gone})


def read_federation(folder: Path) -> Federation:
    """What `dermino provision init` wrote.

    Raises
    ------
    DerminoError
        `CONFIG_NOT_FOUND` if it did not fill this folder; `ENROLMENT_INVALID` if the file is
        damaged.
    """
    file = folder / FEDERATION_FILE
    if not file.is_file() or not (folder / "ca.crt").is_file():
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            "this is not the folder of a federation",
            where=folder,
            fix="fill it with: dermino provision init --out DIR --host coordinator.example.org",
        )
    return _read(file, Federation)


def read_roster(folder: Path) -> Roster:
    """The roster; an empty one before the first enrolment.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if the file is damaged.
    """
    file = folder / ROSTER_FILE
    return _read(file, Roster) if file.exists() else Roster()


def write_roster(folder: Path, roster: Roster) -> None:
    """Write `roster.json`, whole or not at all."""
    write_atomically(folder / ROSTER_FILE, roster.model_dump_json(indent=2) + "\n")


def _read(file: Path, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    except OSError as error:
        reason = str(error.strerror)
    raise DerminoError(
        "ENROLMENT_INVALID",
        f"the file is damaged: {reason}",
        where=file,
        fix="bring it back from your backup of this folder",
    )
