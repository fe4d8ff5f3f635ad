"""What an enrolled site knows about its own membership, from the bundle in its folder."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dermino_client.members import AUTHORITY_FILE, add_pin, read_pins, write_pins
from dermino_client.site_keys import node_file, read_identity
from dermino_core.certificate_checks import expiry_warning
from dermino_core.comparison import compare_by_phone
from dermino_core.enrolment import Bundle, Member, read_signed
from dermino_core.errors import DerminoError
from dermino_core.private_files import locked
from dermino_core.public_keys import identity_key, key_digest

BUNDLE_FILE = "bundle.json"


def installed_bundle(folder: Path) -> Bundle | None:
    """The newest bundle of this site; None before the first.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if it is damaged.
    """
    file = folder / BUNDLE_FILE
    return read_signed(file, Bundle) if file.exists() else None


def enrolled_coordinator(folder: Path) -> tuple[str, Path, Path] | None:
    """Address, root certificates and private key to connect with; None before enrolment.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if the installed bundle is damaged.
    """
    bundle = installed_bundle(folder)
    if bundle is None:
        return None
    return bundle.address, folder / AUTHORITY_FILE, node_file(folder)


def own_identity(folder: Path) -> tuple[Ed25519PrivateKey, str]:
    """This site's identity key, and the membership certificate (PEM) that others want to see.

    Raises
    ------
    DerminoError
        `TLS_INVALID` without the key; `ENROLMENT_INVALID` before enrolment.
    """
    bundle = installed_bundle(folder)
    if bundle is None:
        raise DerminoError(
            "ENROLMENT_INVALID",
            "this site is not enrolled: it has no membership certificate",
            where=folder / BUNDLE_FILE,
            fix="dermino-client enrol --site NAME, then install the coordinator's bundle",
        )
    return read_identity(folder), bundle.certificate


def start_warnings(
    folder: Path,
    server_certificate: bytes | str | None = None,
    *,
    now: datetime.datetime | None = None,
) -> list[str]:
    """What expires within 30 days or has expired: the authority, the membership, the server.

    Parameters
    ----------
    folder
        The site's folder; before enrolment only the server's certificate is looked at.
    server_certificate
        The coordinator's, DER or PEM, such as `SSLSocket.getpeercert(binary_form=True)`.
    now
        Instead of the clock.
    """
    bundle = installed_bundle(folder)
    looked_at: list[tuple[str, bytes | str, str]] = []
    if server_certificate is not None:
        fix = "the coordinator should run `dermino provision renew`"
        looked_at.append(("the coordinator's server certificate", server_certificate, fix))
    if bundle is not None:
        fix = f"make a new request: dermino-client enrol --renew --site {bundle.site}"
        looked_at.append((f"the membership of {bundle.site}", bundle.certificate, fix))
        fix = "the coordinator has to set up a new federation"
        looked_at.append((f"the authority of {bundle.federation}", bundle.authority, fix))
    return [
        f"{warning}; {fix}"
        for what, certificate, fix in looked_at
        if (warning := expiry_warning(what, certificate, now=now))
    ]


def waiting_members(folder: Path) -> list[Member]:
    """Members that the installed bundle names and nobody here has accepted."""
    bundle, pins = installed_bundle(folder), read_pins(folder)
    return [m for m in bundle.members if m.name not in pins.members] if bundle else []


def accept_member(
    folder: Path, name: str, *, fingerprint: str | None = None, yes: bool = False
) -> None:
    """Trust a member that the installed bundle names, after a person compared its fingerprint.

    Raises
    ------
    DerminoError
        `MEMBER_UNKNOWN` if the bundle does not name it; `ENROLMENT_INVALID` if the name is bound
        to another key here; see :func:`dermino_core.comparison.compare_by_phone`.
    """
    bundle = installed_bundle(folder)
    members = {member.name: member for member in bundle.members} if bundle else {}
    if name not in members:
        raise DerminoError(
            "MEMBER_UNKNOWN",
            f"the installed bundle does not name {name}",
            where=folder / BUNDLE_FILE,
            fix="ask the coordinator for a newer one, and add --bundle FILE",
        )
    member = members[name]
    key = identity_key(member.identity_key)
    add_pin(read_pins(folder), name, key, member.certificate, "accepted")  # refuse before asking
    compare_by_phone(
        f"the identity key of {name}", key_digest(key), whom=name, given=fingerprint, yes=yes
    )
    with locked(folder):
        pins = read_pins(folder)
        add_pin(pins, name, key, member.certificate, "accepted")
        write_pins(folder, pins)
