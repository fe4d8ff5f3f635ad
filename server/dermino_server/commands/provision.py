"""`dermino provision`: the folder of a federation, its members, its certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.certificate_checks import certificate_digest, read_certificate, utc_now
from dermino_core.comparison import compare_by_phone
from dermino_core.console import say, warn
from dermino_core.enrolment import Request, grouped
from dermino_server.certificates import (
    LONGEST_DAYS,
    MEMBER_DAYS,
    SERVER_DAYS,
    read_file,
    renew_server_certificate,
)
from dermino_server.enrolment import Accepted, connect, federation_warnings, public_key_file
from dermino_server.enrolment import accept as accept_request
from dermino_server.provisioning import (
    CONNECTION,
    PORT,
    SUPERLINK_ADDRESS,
    next_steps,
)
from dermino_server.provisioning import provision as fill_folder
from dermino_server.revocation import revoke as revoke_site
from dermino_server.roster import Entry, Federation, read_federation, read_roster

provision_app = typer.Typer(
    no_args_is_help=True,
    help="Set up a federation, accept its hospitals, renew and revoke.",
)

OutOption = Annotated[
    Path,
    typer.Option(metavar="DIR", help="The federation's folder on the coordinator's machine."),
]
AuthorityKeyOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The authority's private key, where it is kept offline.",
        show_default="DIR/ca.key",
    ),
]
HostOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Host name or IP address of the coordinator; may be repeated."
    ),
]


@provision_app.command(
    epilog="Example: dermino provision init --out keys --host coordinator.example.org"
)
def init(
    out: OutOption,
    host: HostOption = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where hospitals connect.", show_default=str(PORT)),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the federation.", show_default="the first host")
    ] = None,
    superlink: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The SuperLink, for this machine's own commands.",
            show_default=SUPERLINK_ADDRESS,
        ),
    ] = None,
    connection: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the Flower connection to the SuperLink.",
            show_default=CONNECTION,
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=LONGEST_DAYS, help="Lifetime of a new server certificate.")
    ] = SERVER_DAYS,
    local: Annotated[
        bool,
        typer.Option(
            "--local/--no-local",
            help="Whether the server certificate also names localhost and 127.0.0.1, which the "
            "coordinator's own processes use.",
        ),
    ] = True,
    ca_key: AuthorityKeyOption = None,
) -> None:
    """Make the authority, the server certificate, a Flower connection and a run folder.

    Nothing that exists is overwritten; running again adds what is missing.
    """
    result = fill_folder(
        out,
        hosts=host or (),
        port=port,
        name=name,
        superlink=superlink,
        connection=connection,
        days=days,
        local=local,
        ca_key=ca_key,
    )
    for file in result.made:
        say(f"made {file}")
    if not result.made:
        say(f"nothing to make: {out} has all of it")
    connect(out, result.federation)
    say(f"connection {result.federation.connection} to {result.federation.superlink}")
    say()
    say(next_steps(result))


@provision_app.command(epilog="Example: dermino provision accept mednode.request.json --out keys")
def accept(
    request: Annotated[
        Path, typer.Argument(metavar="NAME.request.json", help="What the hospital sent.")
    ],
    out: OutOption,
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="XXXX...", help="The request's fingerprint, as told by phone."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="It was compared by phone already.")] = False,
    days: Annotated[
        int, typer.Option(min=1, max=LONGEST_DAYS, help="Lifetime of the membership.")
    ] = MEMBER_DAYS,
    ca_key: AuthorityKeyOption = None,
    register: Annotated[
        bool,
        typer.Option(
            "--register/--no-register",
            help="Whether to register the site at the running SuperLink now; later, run the same "
            "command again.",
        ),
    ] = True,
) -> None:
    """Make a hospital a member: compare its fingerprint, sign, register, write its bundle.

    The same request again changes nothing, and does what was left undone.
    """

    def compare(what: Request, kind: str) -> None:
        whom = f"{what.name}, the hospital"
        say(
            f"{what.name} asks to become a member"
            if kind == "new"
            else f"{what.name} is a member and asks for its renewal, signed with its identity key"
        )
        say(f"made at {what.created:%Y-%m-%d %H:%M:%S} UTC")
        compare_by_phone(
            f"the request of {what.name}", what.digest, whom=whom, given=fingerprint, yes=yes
        )

    accepted = accept_request(
        out, request, confirm=compare, days=days, ca_key=ca_key, register=register
    )
    federation = read_federation(out)
    _report(out, federation, accepted, register)
    _warn_of_expiry(out)


@provision_app.command(epilog="Example: dermino provision revoke mednode --out keys")
def revoke(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The site that leaves.")],
    out: OutOption,
    unregister: Annotated[
        bool,
        typer.Option(
            "--unregister/--no-unregister",
            help="Whether to unregister it at the running SuperLink now.",
        ),
    ] = True,
    ca_key: AuthorityKeyOption = None,
) -> None:
    """End a site's membership: it is disconnected, and its keys can never come back.

    The same name can be accepted again, with new keys.
    """
    done = revoke_site(out, site, at_superlink=unregister, ca_key=ca_key)
    when = f"{done.entry.revoked:%Y-%m-%d}"
    say(f"{site}: revoked on {when} already" if done.already else f"{site}: revoked")
    connection = read_federation(out).connection
    if unregister:
        say(f"{site}: unregistered at the SuperLink; its next message is refused")
    else:
        warn(
            f"{site} can still connect until this is run without --no-unregister, or by hand: "
            f"flwr supernode unregister {done.entry.node_id or 'NODE_ID'} {connection}"
        )
    for file in done.refreshed:
        say(f"wrote {file}")
    if done.stale:
        warn(
            "the other members' bundles still name it, as ca.key is not here: the next "
            "`dermino provision accept`, or this command with --ca-key FILE, writes new ones"
        )


@provision_app.command(epilog="Example: dermino provision renew --out keys")
def renew(
    out: OutOption,
    host: HostOption = None,
    days: Annotated[
        int, typer.Option(min=1, max=LONGEST_DAYS, help="Lifetime of the new certificate.")
    ] = SERVER_DAYS,
    ca_key: AuthorityKeyOption = None,
) -> None:
    """Make a new server certificate of the same authority; hospitals need nothing.

    It names what the old one did, and every --host. The old one is kept aside.
    """
    read_federation(out)
    for file in renew_server_certificate(out, host or (), days=days, ca_key=ca_key):
        say(f"the old one is now {file}")
    say(f"made {out / 'server.key'}")
    say(f"made {out / 'server.pem'}")
    say("next: install both where the SuperLink and the proxy read them, and restart the two")


@provision_app.command("list", epilog="Example: dermino provision list --out keys")
def list_(out: OutOption) -> None:
    """Show the authority and every site: status, end of membership, fingerprint of its identity."""
    federation, roster = read_federation(out), read_roster(out)
    authority = read_certificate(read_file(out / "ca.crt"), where=out / "ca.crt")
    server = read_certificate(read_file(out / "server.pem"), where=out / "server.pem")
    say(f"federation {federation.name}, hospitals connect to {federation.address}")
    say(f"authority   until {authority.not_valid_after_utc:%Y-%m-%d}")
    say(f"            {grouped(certificate_digest(authority))}")
    say(f"server      until {server.not_valid_after_utc:%Y-%m-%d}")
    say()
    for entry in roster.sites:
        say(f"{entry.name}: {_status(entry)}")
        say(f"    {grouped(entry.identity_digest)}")
    if not roster.sites:
        say("no site is enrolled yet")
    _warn_of_expiry(out)


def _status(entry: Entry) -> str:
    if entry.status == "revoked":
        gone = f"revoked on {entry.revoked:%Y-%m-%d}"
        return gone if entry.unregistered else f"{gone}, not yet unregistered at the SuperLink"
    state = "expired" if entry.expires < utc_now() else "member"
    registered = "" if entry.node_id else ", not registered at the SuperLink"
    return f"{state} until {entry.expires:%Y-%m-%d}{registered}"


def _report(out: Path, federation: Federation, accepted: Accepted, register: bool) -> None:
    entry = accepted.entry
    done = {
        "new": "is a member",
        "renewal": "has a new membership certificate",
        "same": "was accepted before",
    }
    say(f"{entry.name}: {done[accepted.kind]} until {entry.expires:%Y-%m-%d}")
    if register:
        say(f"{entry.name}: registered at the SuperLink as node {entry.node_id}")
    else:
        key = public_key_file(out, entry.name)
        say(f"{entry.name}: register it by running this again without --no-register, or with:")
        say(f"    flwr supernode register {key} {federation.connection} --name {entry.name}")
    authority = read_certificate(read_file(out / "ca.crt"), where=out / "ca.crt")
    say(f"next: send it {accepted.bundle}, and read it the authority's fingerprint by phone:")
    say()
    say(f"    {grouped(certificate_digest(authority))}")
    say()
    others = [file for file in accepted.refreshed if file != accepted.bundle]
    if others:
        say(f"other members need nothing; their bundles are up to date too: {len(others)}")
    if accepted.stale:
        warn(
            "the bundles are not up to date, as ca.key is not here: run this again with "
            "--ca-key FILE"
        )


def _warn_of_expiry(out: Path) -> None:
    for warning in federation_warnings(out, read_roster(out)):
        warn(f"warning: {warning}")
