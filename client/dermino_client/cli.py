"""The `dermino-client` command of a hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_client.commands.audit import FolderOption, SiteOption, audit_app
from dermino_client.commands.budget import budget
from dermino_client.commands.enrol import (
    ENROL_EXAMPLE,
    MEMBERS_EXAMPLE,
    BundleOption,
    FingerprintOption,
    YesOption,
    enrol,
    install,
    members,
)
from dermino_client.commands.preview import EXAMPLE as PREVIEW_EXAMPLE
from dermino_client.commands.preview import preview
from dermino_client.commands.receipt import EXAMPLE as RECEIPT_EXAMPLE
from dermino_client.commands.receipt import receipt
from dermino_client.commands.results import EXAMPLE as RESULTS_EXAMPLE
from dermino_client.commands.results import results
from dermino_core import __version__
from dermino_core.console import EXIT_CODES_HELP, say
from dermino_core.errors import DerminoError

app = typer.Typer(
    name="dermino-client",
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES_HELP,
)

app.add_typer(audit_app, name="audit")
app.command()(budget)
app.command(epilog=ENROL_EXAMPLE)(enrol)
app.command(epilog=MEMBERS_EXAMPLE)(members)
app.command(epilog=PREVIEW_EXAMPLE)(preview)
app.command(epilog=RECEIPT_EXAMPLE)(receipt)
app.command(epilog=RESULTS_EXAMPLE)(results)


def _print_version(value: bool) -> None:
    if value:
        say(f"dermino-client {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def join(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    bundle: BundleOption = None,
    fingerprint: FingerprintOption = None,
    yes: YesOption = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere on the line.")
    ] = False,
) -> None:
    """Join a federation as a hospital: check the site, embed its images once, and connect.

    Images, file names and labels stay on this machine.

    Example:

        dermino-client --site mednode --bundle mednode.bundle.json    # the first time

        dermino-client --site mednode
    """
    if context.invoked_subcommand is not None:
        context.obj = (site, sites_dir)
        return
    if site is None:
        raise DerminoError(
            "CONFIG_INVALID",
            "Which site is this?",
            fix="dermino-client --site NAME, or dermino-client --help",
        )
    from dermino_client.check import check_site
    from dermino_client.site import find_site
    from dermino_client.supernode import exec_supervisor, preflight

    found = find_site(site, sites_dir)
    if bundle is not None:
        new_members = found.policy.new_members
        install(found.folder, site, bundle, new_members, fingerprint=fingerprint, yes=yes)
    coordinator = preflight(found)
    check_site(found)
    say(f"{found.name}: joining {coordinator.address}; stop with Ctrl-C")
    exec_supervisor(found)


@app.command()
def check(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
) -> None:
    """Do all that joining does, except connect: site file, data, features.

    Example:

        dermino-client check --site mednode
    """
    from dermino_client.check import check_site
    from dermino_client.site import find_site

    before = context.obj or (None, None)
    name, folder = site or before[0], sites_dir or before[1]
    if name is None:
        raise DerminoError("CONFIG_INVALID", "Which site?", fix="dermino-client check --site NAME")
    check_site(find_site(name, folder))


@app.command()
def init(
    site: Annotated[str, typer.Option("--site", metavar="NAME", help="Name of the hospital.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    labels: Annotated[Path, typer.Option(help="CSV or Parquet table with an image column.")],
    task: Annotated[str, typer.Option(help="What is to be learned.")] = "malignancy",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="Our name = the table's column; repeatable."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone the federation uses: a file or a timm name.")
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The coordinator's address.")
    ] = None,
    sites_dir: Annotated[Path, typer.Option(help="Where to write the site file.")] = Path("sites"),
) -> None:
    """Look at the data and write a commented site file with a proposed label map.

    Example:

        dermino-client init --site mednode --images /data/mednode --labels mednode.csv
    """
    from dermino_client.init import Proposal, write_proposal

    proposal = Proposal(
        name=site,
        images=images,
        table=labels,
        task=task,
        columns=_pairs(column or []),
        backbone=backbone,
        coordinator=coordinator,
    )
    file, notes = write_proposal(proposal, sites_dir)
    say(f"wrote {file}")
    for note in notes:
        say(f"  - {note}")
    say(f"next: read it, mend it, then: dermino-client check --site {site} --sites-dir {sites_dir}")


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = dict(item.split("=", 1) for item in items if "=" in item)
    if len(pairs) < len(items):
        raise DerminoError(
            "CONFIG_INVALID", "--column takes NAME=COLUMN.", fix="For example: --column label=dx"
        )
    return pairs
