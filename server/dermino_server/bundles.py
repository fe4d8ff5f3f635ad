"""The join bundles of all members, one file each, kept up to date with the roster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from dermino_core.certificate_checks import check_authority, read_certificate
from dermino_core.enrolment import Member, sign_bundle
from dermino_core.files import write_atomically
from dermino_core.public_keys import key_digest
from dermino_server.certificates import read_authority, read_file
from dermino_server.roster import Roster, read_federation


def site_folder(folder: Path, name: str) -> Path:
    """Where a provisioned folder keeps the files of one site."""
    return folder / "sites" / name


def bundle_file(folder: Path, name: str) -> Path:
    """The join bundle of a site."""
    return site_folder(folder, name) / f"{name}.bundle.json"


def refresh_bundles(
    folder: Path, roster: Roster, *, only: str | None = None, ca_key: Path | None = None
) -> tuple[Path, ...]:
    """Write anew the bundle of every member whose content has changed, and return those.

    Parameters
    ----------
    folder
        A provisioned folder.
    roster
        Its roster.
    only
        Look at the bundle of this member only.
    ca_key
        Where `ca.key` is, if it is kept elsewhere.

    Raises
    ------
    DerminoError
        `TLS_INVALID` if one has changed and the authority's key is not there.
    """
    federation = read_federation(folder)
    authority = read_certificate(read_file(folder / "ca.crt"), where=folder / "ca.crt")
    members = [
        Member(name=entry.name, identity_key=entry.identity_key, certificate=entry.certificate)
        for entry in roster.members
    ]
    common: dict[str, Any] = {
        "federation": federation.name,
        "address": federation.address,
        "revoked": roster.revoked_identities(),
    }
    says = common | {
        "authority": authority.public_bytes(Encoding.PEM).decode(),
        "federation_id": key_digest(check_authority(authority)),
        "members": [member.model_dump() for member in members],
    }
    written = []
    for entry in roster.members:
        file = bundle_file(folder, entry.name)
        own: dict[str, Any] = {"site": entry.name, "certificate": entry.certificate}
        if only not in (None, entry.name):
            continue
        if _holds(file, says | own | {"node_key": entry.node_digest}):
            continue
        _, key = read_authority(folder, ca_key)
        bundle = sign_bundle(
            authority, key, **common, **own, node_digest=entry.node_digest, members=members
        )
        write_atomically(file, bundle.text())
        written.append(file)
    return tuple(written)


def _holds(file: Path, content: dict[str, Any]) -> bool:
    """Whether the file is there and says just that."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(
        found.get(field) == value for field, value in content.items()
    )
