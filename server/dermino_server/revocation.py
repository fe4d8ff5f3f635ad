"""A site leaves, or lost its keys: out of the roster's members, and out of the SuperLink.

The SuperLink refuses the next message of an unregistered node, which ends that hospital's client
within seconds, and it takes no public key twice. The roster refuses both keys for ever, under any
name. Other hospitals learn of it from bundles that are written later: these name the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dermino_core.certificate_checks import utc_now
from dermino_core.errors import DerminoError
from dermino_core.private_files import locked
from dermino_server.bundles import bundle_file, refresh_bundles
from dermino_server.enrolment import connect, unregister
from dermino_server.roster import Entry, Roster, read_federation, read_roster, write_roster


@dataclass(frozen=True)
class Revoked:
    """What `revoke` did."""

    entry: Entry
    already: bool
    """Whether it was revoked before this call."""
    refreshed: tuple[Path, ...]
    """Bundles of the other members that name it now."""
    stale: bool
    """Whether they could not be written, because ca.key is not here."""


def revoke(
    folder: Path, name: str, *, at_superlink: bool = True, ca_key: Path | None = None
) -> Revoked:
    """End the membership of a site, for good.

    Parameters
    ----------
    folder
        A provisioned folder.
    name
        The site.
    at_superlink
        Whether to unregister its node now.
    ca_key
        Where `ca.key` is; without it the other members' bundles are written by the next `accept`.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if there is no such site; `CONNECTION_FAILED` if the SuperLink does not
        answer: the roster is marked, and the same command unregisters it later.
    """
    federation = read_federation(folder)
    with locked(folder):
        roster = read_roster(folder)
        current = roster.member(name)
        entries = [entry for entry in roster.sites if entry.name == name]
        if not entries:
            raise _unknown(folder, name, roster)
        if current is not None:
            current.status = "revoked"
            current.revoked = utc_now()
            write_roster(folder, roster)
            bundle_file(folder, name).unlink(missing_ok=True)
        refreshed, stale = _tell(folder, roster, ca_key)
        if at_superlink:
            connect(folder, federation)
            _unregister(folder, roster, entries)
    return Revoked(entries[-1], current is None, refreshed, stale)


def _unregister(folder: Path, roster: Roster, entries: list[Entry]) -> None:
    federation = read_federation(folder)
    nodes = [
        node for entry in entries for node in (entry, *entry.former_nodes) if not node.unregistered
    ]
    try:
        for node in nodes:
            unregister(federation, node)
            write_roster(folder, roster)
    except DerminoError as error:
        raise DerminoError(
            error.code,
            f"{error.what}. {entries[-1].name} is revoked in the roster, and can still connect",
            where=error.where,
            fix=f"{error.fix}; then run the same command again",
        ) from error


def _tell(folder: Path, roster: Roster, ca_key: Path | None) -> tuple[tuple[Path, ...], bool]:
    try:
        return refresh_bundles(folder, roster, ca_key=ca_key), False
    except DerminoError as error:
        if ca_key or error.code != "TLS_INVALID":
            raise
        return (), True


def _unknown(folder: Path, name: str, roster: Roster) -> DerminoError:
    known = ", ".join(entry.name for entry in roster.members) or "none"
    return DerminoError(
        "CONFIG_INVALID",
        f"there is no site {name} in this federation",
        where=folder,
        fix=f"its members: {known}",
    )
