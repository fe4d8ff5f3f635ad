"""`dermino provision`: certificates and keys for a federation, and its sites made known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say
from dermino_server.certificates import SERVER_DAYS
from dermino_server.flower_cli import flower_home
from dermino_server.provisioning import (
    SUPERLINK_ADDRESS,
    next_steps,
    register_sites,
    write_connection,
)
from dermino_server.provisioning import provision as fill_folder


def provision(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new folder, or one that this command filled.")
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Host name or IP address of the coordinator; may be repeated."
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A site to make keys for; may be repeated."),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, help="Lifetime of a new server certificate.")
    ] = SERVER_DAYS,
    local: Annotated[
        bool,
        typer.Option(
            "--local/--no-local",
            help="Whether the server certificate also names localhost and 127.0.0.1, which the "
            "coordinator's own processes use.",
        ),
    ] = True,
    register: Annotated[
        str | None,
        typer.Option(
            metavar="CONNECTION",
            help="Write this Flower connection and register all sites at the running SuperLink.",
        ),
    ] = None,
    superlink: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="The SuperLink, for --register."),
    ] = SUPERLINK_ADDRESS,
) -> None:
    """Make a certificate authority, a server certificate and one key pair for each site.

    Nothing that exists is overwritten: run it again with a new --site to add that site.

    Example: dermino provision --out keys --host coordinator.example.org --site mednode --site ph2
    """
    result = fill_folder(out, hosts=host or (), sites=site or (), days=days, local=local)
    for file in result.made:
        say(f"made {file}")
    if not result.made:
        say(f"nothing to make: {out} has all of it")
    if register is None:
        say()
        say(next_steps(result))
        return
    connections = write_connection(flower_home(), register, superlink, out / "ca.crt")
    say(f"connection {register} to {superlink} in {connections}")
    for registration in register_sites(register, out):
        state = "its key was registered before" if registration.node_id is None else "registered"
        say(f"{registration.site}: {state}")
