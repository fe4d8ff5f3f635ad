"""`dermino-client enrol` and `dermino-client members`: into the federation, and with whom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_client.commands.audit import FolderOption, SiteOption
from dermino_core.console import say, warn
from dermino_core.errors import DerminoError

if TYPE_CHECKING:
    from dermino_client.enrol import Installed
    from dermino_client.members import NewMembers

ENROL_EXAMPLE = "Example: dermino-client enrol --site mednode"
MEMBERS_EXAMPLE = "Example: dermino-client members --site mednode"

BundleOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The join bundle that the coordinator sent."),
]
FingerprintOption = Annotated[
    str | None,
    typer.Option(metavar="XXXX...", help="The fingerprint, as told by phone, to compare with."),
]
YesOption = Annotated[bool, typer.Option("--yes", help="It was compared by phone already.")]


def enrol(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Ask for a new membership certificate.")
    ] = False,
    new_node_key: Annotated[
        bool, typer.Option("--new-node-key", help="With --renew: and for a new node key.")
    ] = False,
    bundle: BundleOption = None,
    fingerprint: FingerprintOption = None,
    yes: YesOption = False,
) -> None:
    """Make this site's keys and a request for the coordinator; with --bundle, take its answer over.

    The keys never leave this machine. Running it again changes nothing.

    Example: dermino-client enrol --site mednode
    """
    from dermino_client.enrol import enrol as make_request
    from dermino_core.enrolment import grouped

    name, folder, new_members = _site(context, site, sites_dir)
    if bundle is not None:
        if renew or new_node_key:
            raise DerminoError(
                "CONFIG_INVALID", "--bundle answers a request and makes none", fix="give one only"
            )
        install(folder, name, bundle, new_members, fingerprint=fingerprint, yes=yes)
        return
    done = make_request(folder, name, renew=renew, new_node_key=new_node_key)
    for file in done.made:
        say(f"made {file}")
    say(f"{'the request is' if done.again else 'made'} {done.file}")
    say("next: send it to the coordinator, and read its fingerprint to them by phone:")
    say()
    say(f"    {grouped(done.request.digest)}")
    say()
    say(f"They answer with {name}.bundle.json: dermino-client --site {name} --bundle FILE")


def install(
    folder: Path,
    name: str,
    bundle: Path,
    new_members: NewMembers,
    *,
    fingerprint: str | None = None,
    yes: bool = False,
) -> Installed:
    """Take a join bundle over, and say what that means.

    Raises
    ------
    DerminoError
        As :func:`dermino_client.enrol.install_bundle`.
    """
    from dermino_client.enrol import install_bundle

    done = install_bundle(
        folder, name, bundle, new_members=new_members, fingerprint=fingerprint, yes=yes
    )
    federation = done.bundle.federation
    say(f"{name}: {'joined' if done.first else 'still in'} the federation {federation}")
    say(f"{name}: the coordinator is at {done.bundle.address}")
    if done.added:
        say(f"{name}: members known from now on: {', '.join(done.added)}")
    for member in done.waiting:
        warn(
            f"{name}: {member} is new and waits: compare its fingerprint, then: dermino-client "
            f"members --site {name} --accept {member}"
        )
    if done.old_node_key is not None:
        say(f"{name}: connects with its new node key; the old one is {done.old_node_key}")
    return done


def members(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    accept: Annotated[
        str | None, typer.Option(metavar="NAME", help="Trust a member that the bundle names.")
    ] = None,
    forget: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Forget a member's key, because it has a new one."),
    ] = None,
    bundle: BundleOption = None,
    fingerprint: FingerprintOption = None,
    yes: YesOption = False,
) -> None:
    """Show the members whose identity this site trusts; accept or forget one.

    Example: dermino-client members --site mednode
    """
    from dermino_client.members import forget_member
    from dermino_client.membership import accept_member
    from dermino_core.enrolment import grouped

    name, folder, new_members = _site(context, site, sites_dir)
    if bundle is not None:
        install(folder, name, bundle, new_members)
    if forget is not None:
        pin = forget_member(folder, forget)
        say(f"{name}: forgot {forget}, which was {grouped(pin.digest)}")
    if accept is not None:
        accept_member(folder, accept, fingerprint=fingerprint, yes=yes)
        say(f"{name}: trusts {accept} from now on")
    if bundle is None and forget is None and accept is None:
        _list(folder, name)


def _list(folder: Path, name: str) -> None:
    from dermino_client.members import list_members
    from dermino_client.membership import waiting_members
    from dermino_core.enrolment import grouped
    from dermino_core.public_keys import identity_key, key_digest

    listed = list_members(folder)
    reasons = {
        "bundle": "from a bundle",
        "authority": "vouched for by the authority",
        "accepted": "accepted here",
        "given": "given",
    }
    for member in listed:
        until = f", until {member.expires:%Y-%m-%d}" if member.expires else ""
        gone = ", REVOKED" if member.revoked else ""
        say(f"{member.name}: {reasons[member.how]} on {member.since:%Y-%m-%d}{until}{gone}")
        say(f"    {grouped(member.digest)}")
    for member in waiting_members(folder):
        say(f"{member.name}: waits; dermino-client members --site {name} --accept {member.name}")
        say(f"    {grouped(key_digest(identity_key(member.identity_key)))}")
    if not listed:
        say(f"{name} knows no members yet: install the coordinator's bundle")


def _site(
    context: typer.Context, site: str | None, sites_dir: Path | None
) -> tuple[str, Path, NewMembers]:
    """Name and folder of a site, and whom it trusts; its site file need not be there yet."""
    from dermino_client.site import find_site

    before = context.obj or (None, None)
    name, folder = site or before[0], sites_dir or before[1]
    if name is None:
        raise DerminoError(
            "CONFIG_INVALID", "Which site?", fix=f"{context.command_path} --site NAME"
        )
    try:
        found = find_site(name, folder)
    except DerminoError as error:
        if error.code != "CONFIG_NOT_FOUND":
            raise
        parent = folder or Path(os.environ.get("DERMINO_SITES") or "sites")
        return name, parent.absolute() / f"{name}.site", "authority"
    return name, found.folder, found.policy.new_members
