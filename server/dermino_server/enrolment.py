"""A hospital becomes a member: its request is checked, signed for, and answered with a bundle.

What is written, and in which order: the roster, the request and the public node key, the bundles,
then the registration at the SuperLink. Each step can be repeated, so that after any interruption
the same command finishes what is missing.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from dermino_core.certificate_checks import (
    expiry_warning,
    utc_now,
)
from dermino_core.enrolment import (
    Request,
    check_request,
    read_signed,
)
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.private_files import locked, private_folder
from dermino_core.public_keys import identity_key
from dermino_server.bundles import bundle_file, refresh_bundles, site_folder
from dermino_server.certificates import MEMBER_DAYS, read_authority, read_file, sign_member
from dermino_server.flower_cli import flower_home
from dermino_server.flower_connection import write_connection
from dermino_server.flower_nodes import find_node, register_node, unregister_node
from dermino_server.roster import (
    Entry,
    Federation,
    FormerNode,
    Roster,
    read_federation,
    read_roster,
    write_roster,
)

Confirm = Callable[[Request, str], None]
"""Shown a request and what accepting it means; raises to refuse it."""


@dataclass(frozen=True)
class Accepted:
    """What `accept` did."""

    entry: Entry
    kind: str
    """`new`, `renewal`, or `same`: accepted before, nothing was signed again."""
    bundle: Path
    refreshed: tuple[Path, ...]
    """Bundles that tell of this change, `bundle` among them."""
    stale: bool
    """Whether some could not be written anew, because ca.key is not here."""


def accept(
    folder: Path,
    request_file: Path,
    *,
    confirm: Confirm,
    days: int = MEMBER_DAYS,
    ca_key: Path | None = None,
    register: bool = True,
    refresh: bool = True,
    now: datetime.datetime | None = None,
) -> Accepted:
    """Make the hospital of a request a member, or renew its membership.

    Parameters
    ----------
    folder
        A provisioned folder.
    request_file
        As `dermino-client enrol` wrote it.
    confirm
        Called once before anything is signed or written.
    days
        Lifetime of the membership certificate.
    ca_key
        Where `ca.key` is, if it is kept elsewhere.
    register
        Whether to register the node key at the SuperLink now.
    refresh
        Whether to write the other members' bundles anew, too, so that they name this one.
    now
        Instead of the clock, for the checks of the request.

    Raises
    ------
    DerminoError
        `ENROLMENT_INVALID` if the request is damaged, or its name or a key of it is another's, was
        revoked, or is older than what was accepted; `TLS_INVALID` if the authority cannot sign;
        what `confirm` raises. Nothing is written in these cases. `CONNECTION_FAILED` if the
        SuperLink does not answer: all else is done, and the same command registers later.
    """
    federation = read_federation(folder)
    request = read_signed(request_file, Request)
    check_request(request, now=now)
    kind = _judge(read_roster(folder), request)
    if kind != "same":
        read_authority(folder, ca_key)
        confirm(request, kind)
    with locked(folder):
        roster = read_roster(folder)
        kind = _judge(roster, request)
        if kind != "same":
            _enter(folder, roster, request, days, ca_key)
        _file(folder, request)
        refreshed, stale = _answer(folder, roster, request.name, ca_key, refresh)
        if register:
            register_member(folder, federation, roster, request.name)
    entry = _current(roster, request.name)
    return Accepted(entry, kind, bundle_file(folder, request.name), refreshed, stale)


def public_key_file(folder: Path, name: str) -> Path:
    """The public node key of a site, as `flwr supernode register` wants it."""
    return site_folder(folder, name) / f"{name}.pub"


def register_member(folder: Path, federation: Federation, roster: Roster, name: str) -> None:
    """Make a member's node key known to the SuperLink, and keys that it replaced unknown.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED` if the SuperLink does not answer; `ENROLMENT_INVALID` if it has
        unregistered the key.
    """
    entry = _current(roster, name)
    connect(folder, federation)
    try:
        entry.node_id = register_node(federation.connection, name, public_key_file(folder, name))
    except DerminoError as error:
        if error.code != "CONNECTION_FAILED":
            raise
        raise DerminoError(
            error.code,
            f"{error.what}. {name} is accepted and its bundle is written; only this is missing",
            where=error.where,
            fix=f"{error.fix}; then run the same command again",
        ) from error
    write_roster(folder, roster)
    for former in entry.former_nodes:
        if not former.unregistered:
            unregister(federation, former)
    write_roster(folder, roster)


def connect(folder: Path, federation: Federation) -> None:
    """Write the Flower connection of this federation where it is missing or says otherwise."""
    write_connection(flower_home(), federation.connection, federation.superlink, folder / "ca.crt")


def unregister(federation: Federation, node: Entry | FormerNode) -> None:
    """Unregister one node at the SuperLink, which may have to be asked for its id.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED` if the SuperLink does not answer.
    """
    node_id = node.node_id or find_node(federation.connection, node.node_key)[0]
    if node_id:
        node.node_id = node_id
        unregister_node(federation.connection, node_id)
    node.unregistered = True


def federation_warnings(
    folder: Path, roster: Roster, *, now: datetime.datetime | None = None
) -> list[str]:
    """What expires soon or has expired: the authority, the server certificate, memberships."""
    certificates = {
        "the authority's certificate": (folder / "ca.crt", "enrol every site in a new federation"),
        "the server certificate": (
            folder / "server.pem",
            "make a new one: dermino provision renew",
        ),
    }
    found = []
    for what, (file, fix) in certificates.items():
        if warning := expiry_warning(what, read_file(file), now=now):
            found.append(f"{warning}; {fix}")
    for entry in roster.members:
        what = f"the membership of {entry.name}"
        if warning := expiry_warning(what, entry.certificate, now=now):
            found.append(f"{warning}; that hospital: dermino-client enrol --renew")
    return found


def _judge(roster: Roster, request: Request) -> str:
    """What accepting a request would be: `new`, `renewal` or `same`."""
    for entry in roster.sites:
        shared = request.identity_key == entry.identity_key or request.node_key in entry.node_keys
        if not shared:
            continue
        if entry.status == "revoked":
            raise _refusal(
                f"the request of {request.name} has a key of {entry.name}, which was revoked on "
                f"{entry.revoked:%Y-%m-%d}, and revoked keys never come back",
                "the hospital moves keys/ and bundle.json of its site folder away and runs "
                "`dermino-client enrol` again",
            )
        if entry.name != request.name:
            raise _refusal(
                f"the request of {request.name} has a key that belongs to {entry.name}",
                "each site makes keys of its own, in a folder of its own",
            )
    current = roster.member(request.name)
    if current is None:
        return "new"
    if current.identity_key != request.identity_key:
        raise _refusal(
            f"the name {request.name} is taken: it was enrolled on {current.enrolled:%Y-%m-%d} "
            "with another identity key",
            "another hospital takes another name. If this one lost its keys: dermino provision "
            f"revoke {request.name}, then accept this request",
        )
    if current.request == request.digest:
        return "same"
    if request.created <= current.requested:
        raise _refusal(
            f"a newer request of {request.name} was accepted already, of "
            f"{current.requested:%Y-%m-%d %H:%M:%S} UTC",
            "use that, or let the hospital make a new one: dermino-client enrol --renew",
        )
    if request.node_key != current.node_key and request.node_key in current.node_keys:
        raise _refusal(
            f"the request of {request.name} goes back to a node key that was replaced",
            "the hospital makes a new one: dermino-client enrol --renew --new-node-key",
        )
    return "renewal"


def _enter(folder: Path, roster: Roster, request: Request, days: int, ca_key: Path | None) -> None:
    """Sign for a request and write it into the roster."""
    certificate = sign_member(
        folder, request.name, identity_key(request.identity_key), days=days, ca_key=ca_key
    )
    before = roster.member(request.name)
    entry = Entry(
        name=request.name,
        identity_key=request.identity_key,
        node_key=request.node_key,
        request=request.digest,
        requested=request.created,
        certificate=certificate.public_bytes(Encoding.PEM).decode(),
        enrolled=utc_now() if before is None else before.enrolled,
        expires=certificate.not_valid_after_utc,
    )
    if before is None:
        roster.sites.append(entry)
    else:
        entry.former_nodes = before.former_nodes
        entry.node_id = before.node_id
        if request.node_key != before.node_key:
            former = FormerNode(
                node_key=before.node_key, node_id=before.node_id, unregistered=False
            )
            entry.former_nodes = [*before.former_nodes, former]
            entry.node_id = None
        roster.sites[roster.sites.index(before)] = entry
    write_roster(folder, roster)


def _file(folder: Path, request: Request) -> None:
    """Keep a request, and its node key in the form that Flower wants."""
    name = request.name
    private_folder(folder / "sites")
    private_folder(site_folder(folder, name))
    write_atomically(site_folder(folder, name) / f"{name}.request.json", request.text())
    write_atomically(public_key_file(folder, name), f"{request.node_key} dermino-{name}\n")


def _answer(
    folder: Path, roster: Roster, name: str, ca_key: Path | None, refresh: bool
) -> tuple[tuple[Path, ...], bool]:
    only = None if refresh else name
    try:
        return refresh_bundles(folder, roster, only=only, ca_key=ca_key), False
    except DerminoError as error:
        if ca_key or error.code != "TLS_INVALID" or not bundle_file(folder, name).exists():
            raise
        return (), True


def _current(roster: Roster, name: str) -> Entry:
    entry = roster.member(name)
    if entry is None:
        raise _refusal(f"{name} is no member", "dermino provision list --out DIR shows who is")
    return entry


def _refusal(what: str, fix: str) -> DerminoError:
    return DerminoError("ENROLMENT_INVALID", what, fix=fix)
