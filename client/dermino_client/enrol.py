"""Enrolment, the hospital's side: keys and a request first, the coordinator's bundle then.

Layout of the site folder (0700)::

    keys/identity.key  keys/node.key   made here, 0600, never leave it
    NAME.request.json                  for the coordinator
    bundle.json                        the newest join bundle
    ca.crt                             the federation's authority
    members.json                       identity keys of other sites (dermino_client.members)
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from dermino_client.members import (
    AUTHORITY_FILE,
    NewMembers,
    Pins,
    add_pin,
    read_pins,
    write_pins,
)
from dermino_client.membership import BUNDLE_FILE, installed_bundle
from dermino_client.site_keys import (
    identity_file,
    make_keys,
    next_node_file,
    node_file,
    read_identity,
    read_node,
    take_next_node_key,
)
from dermino_core.certificate_checks import (
    certificate_digest,
    check_authority,
    check_validity,
    read_certificate,
    utc_now,
)
from dermino_core.comparison import compare_by_phone
from dermino_core.enrolment import (
    Bundle,
    Request,
    check_bundle,
    make_request,
    read_signed,
)
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.names import check_name
from dermino_core.private_files import locked
from dermino_core.public_keys import identity_key, identity_text, key_digest, node_text


@dataclass(frozen=True)
class Enrolment:
    """A site that has asked to become a member."""

    request: Request
    file: Path
    made: tuple[Path, ...]
    """Keys that were made by this call."""
    again: bool
    """Whether the request is the one that was there before."""


@dataclass(frozen=True)
class Installed:
    """What installing a bundle did."""

    bundle: Bundle
    authority: str
    """SHA-256 of the authority's certificate."""
    first: bool
    added: tuple[str, ...]
    """Members whose key is known from now on."""
    waiting: tuple[str, ...]
    """Members that somebody here has to accept first."""
    old_node_key: Path | None
    """Where the node key is that this bundle replaced."""


def enrol(
    folder: Path,
    name: str,
    *,
    renew: bool = False,
    new_node_key: bool = False,
    now: datetime.datetime | None = None,
) -> Enrolment:
    """Make this site's keys where they are missing, and the request that asks for membership.

    Called again it changes nothing, unless `renew` asks for a new membership certificate of the
    same identity key; `new_node_key` then asks for another node key, too.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a bad name or a folder that cannot be written; `TLS_INVALID` if a key
        is damaged, or missing where the site is a member already; `ENROLMENT_INVALID` if the
        folder belongs to another site.
    """
    check_name(name)
    if new_node_key and not renew:
        raise DerminoError(
            "CONFIG_INVALID", "a new node key is part of a renewal", fix="add --renew"
        )
    _check_folder(folder, name)
    try:
        made = make_keys(folder, new_node_key=new_node_key)
        with locked(folder):
            file = folder / f"{name}.request.json"
            before = _earlier(file, folder)
            if before is not None and not renew:
                return Enrolment(before, file, tuple(made), again=True)
            node = read_node(_newest_node_file(folder))
            request = make_request(name, read_identity(folder), node, now=now)
            write_atomically(file, request.text())
    except PermissionError as error:
        raise DerminoError(
            "CONFIG_INVALID",
            f"this site's folder cannot be written: {error.strerror}",
            where=error.filename or folder,
            fix="run this as the user that will run the client, and name a folder of that user in "
            "the site file ([node] folder) if this is not one",
        ) from error
    return Enrolment(request, file, tuple(made), again=False)


def install_bundle(
    folder: Path,
    name: str,
    bundle_file: Path,
    *,
    new_members: NewMembers = "authority",
    fingerprint: str | None = None,
    yes: bool = False,
    now: datetime.datetime | None = None,
) -> Installed:
    """Check a join bundle, show the authority's fingerprint once, and take the bundle over.

    Parameters
    ----------
    folder
        The site's folder, with the keys that `enrol` made.
    name
        The site.
    bundle_file
        As the coordinator sent it.
    new_members
        `ask`: members that a later bundle adds are not trusted before somebody here accepts them.
    fingerprint, yes
        For the first bundle, see :func:`dermino_core.comparison.compare_by_phone`.
    now
        Instead of the clock.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if the bundle is damaged, older than the one here, of another site, of
        other keys or of another federation, or gives another key for a member known here;
        `TLS_INVALID` if a certificate in it does not hold now; `CONFIG_INVALID` if the fingerprint
        must be compared without a terminal. Nothing is written in these cases.
    """
    bundle = read_signed(bundle_file, Bundle)
    authority = check_bundle(bundle)
    _check_own(folder, name, bundle, authority, now or utc_now())
    digest = certificate_digest(authority)
    if (before := _check_successor(folder, bundle)) is None:
        say_whose = f"the authority of {bundle.federation}"
        compare_by_phone(say_whose, digest, whom="the coordinator", given=fingerprint, yes=yes)
    with locked(folder):
        before = _check_successor(folder, bundle)
        pins = read_pins(folder)
        known = set(pins.members)
        waiting = _merge(pins, bundle, new_members, first=before is None, now=now)
        write_atomically(folder / AUTHORITY_FILE, bundle.authority)
        write_pins(folder, pins)
        old = take_next_node_key(folder) if _replaces_node_key(folder, bundle) else None
        write_atomically(folder / BUNDLE_FILE, bundle.text())
    added = tuple(sorted(set(pins.members) - known - {name}))
    return Installed(bundle, digest, before is None, added, waiting, old)


def _check_folder(folder: Path, name: str) -> None:
    others = [file.name for file in folder.glob("*.request.json")]
    if others and f"{name}.request.json" not in others:
        raise DerminoError(
            "ENROLMENT_INVALID",
            f"this folder belongs to another site: it holds {others[0]}",
            where=folder,
            fix="each site has a folder of its own, see [node] folder of the site file",
        )
    if (folder / BUNDLE_FILE).exists():
        read_identity(folder)
        read_node(node_file(folder))


def _earlier(file: Path, folder: Path) -> Request | None:
    """The request that is there, if it is one for the keys that are there."""
    if not file.exists():
        return None
    request = read_signed(file, Request)
    identity = identity_text(read_identity(folder).public_key())
    node = node_text(read_node(_newest_node_file(folder)).public_key())
    return request if (request.identity_key, request.node_key) == (identity, node) else None


def _newest_node_file(folder: Path) -> Path:
    following = next_node_file(folder)
    return following if following.exists() else node_file(folder)


def _check_own(
    folder: Path,
    name: str,
    bundle: Bundle,
    authority: x509.Certificate,
    now: datetime.datetime,
) -> None:
    if bundle.site != name:
        raise _wrong(f"is for {bundle.site}, and this site is {name}", "ask for the right one")
    if not identity_file(folder).exists():
        raise _wrong(
            "came before this site had keys", f"begin with: dermino-client enrol --site {name}"
        )
    own = identity_text(read_identity(folder).public_key())
    if [member.identity_key for member in bundle.members if member.name == name] != [own]:
        raise _wrong(
            "is for another identity key than this site's",
            f"send {name}.request.json of this folder to the coordinator, and ask for its bundle",
        )
    if bundle.node_key not in _own_node_digests(folder):
        raise _wrong(
            "is for another node key than this site's",
            f"send {name}.request.json of this folder to the coordinator, and ask for its bundle",
        )
    check_validity(authority, "the authority's certificate", now=now)
    certificate = read_certificate(bundle.certificate)
    check_validity(
        certificate,
        f"the membership certificate of {name}",
        now=now,
        renewal=f"make a new request: dermino-client enrol --renew --site {name}",
    )


def _check_successor(folder: Path, bundle: Bundle) -> Bundle | None:
    """The bundle that is here, if the new one may take its place; None if there is none."""
    before = installed_bundle(folder)
    file = folder / AUTHORITY_FILE
    if file.exists():
        known = check_authority(read_certificate(file.read_bytes(), where=file))
        if key_digest(known) != bundle.federation_id:
            raise _wrong(
                "is of another federation than the one this site is in: its authority is another",
                "call the coordinator. To leave this federation for that one, move bundle.json, "
                "ca.crt and members.json away from the site folder",
            )
    if before is not None and bundle.created < before.created:
        raise _wrong(
            f"is of {bundle.created:%Y-%m-%d %H:%M:%S} UTC, older than the one installed, of "
            f"{before.created:%Y-%m-%d %H:%M:%S} UTC",
            "ask the coordinator for the newest one",
        )
    return before


def _merge(
    pins: Pins,
    bundle: Bundle,
    new_members: NewMembers,
    *,
    first: bool,
    now: datetime.datetime | None,
) -> tuple[str, ...]:
    """Pin the members of a bundle, in memory; returns those that have to wait."""
    pins.revoked = list(bundle.revoked)
    own = pins.members.get(bundle.site)
    if own and own.identity_key not in [member.identity_key for member in bundle.members]:
        del pins.members[bundle.site]  # enrolled anew: one's own key is the one in the folder
    waiting = []
    for member in bundle.members:
        known = member.name in pins.members or member.name == bundle.site
        if new_members == "ask" and not first and not known:
            waiting.append(member.name)
            continue
        key = identity_key(member.identity_key)
        add_pin(pins, member.name, key, member.certificate, "bundle", now=now)
    return tuple(waiting)


def _replaces_node_key(folder: Path, bundle: Bundle) -> bool:
    following = next_node_file(folder)
    if not following.exists():
        return False
    return key_digest(read_node(following).public_key()) == bundle.node_key


def _own_node_digests(folder: Path) -> set[str]:
    files = (node_file(folder), next_node_file(folder))
    return {key_digest(read_node(file).public_key()) for file in files if file.exists()}


def _wrong(reason: str, fix: str) -> DerminoError:
    return DerminoError(
        "ENROLMENT_INVALID", f"this join bundle {reason}", fix=f"{fix}; nothing was taken over"
    )
