"""`dermino-client audit`: what came, what left, and that nobody changed the list."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_core.console import EXIT_CODES_HELP, say
from dermino_core.errors import DerminoError

if TYPE_CHECKING:
    from dermino_client.audit import AuditRecord
    from dermino_client.journal import Entry
    from dermino_client.site import Site

SiteOption = Annotated[
    str | None, typer.Option("--site", metavar="NAME", help="Name of this hospital's site file.")
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        help="Where site files are.",
        show_default="$DERMINO_SITES, ./sites, /etc/dermino/sites",
    ),
]

audit_app = typer.Typer(
    name="audit",
    no_args_is_help=True,
    help="Show and check the log of every message that came to this site and left it.",
    epilog=EXIT_CODES_HELP,
)


def open_site(context: typer.Context, site: str | None, sites_dir: Path | None) -> Site:
    """The site that an option before or after the command's name asks for.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if there is none, and as `find_site`.
    """
    from dermino_client.site import find_site

    before = context.obj or (None, None)
    name, folder = site or before[0], sites_dir or before[1]
    if name is None:
        raise DerminoError(
            "CONFIG_INVALID", "Which site?", fix=f"{context.command_path} --site NAME"
        )
    return find_site(name, folder)


@audit_app.command(epilog="Example: dermino-client audit verify --site mednode")
def verify(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    contains: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="A hash that was written down before: is it still in the log?"
        ),
    ] = None,
) -> None:
    """Check every line of the audit log; exit code 8 if one was changed or removed.

    Write down the last hash it prints, on paper or where this machine cannot change it. Later,
    --contains HASH shows that the log up to there is the one of that day.
    """
    from dermino_client.audit import AuditLog

    found = open_site(context, site, sites_dir)
    log = AuditLog(found.folder / "audit")
    verified = log.verify()
    times = [record.time for _, record in log.records()]
    if not times:
        say(f"{found.name}: nothing was recorded yet in {log.folder}")
    else:
        say(
            f"{found.name}: {verified.entries:,} entries in {verified.files} files are unchanged, "
            f"{times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}"
        )
        if verified.interrupted:
            say("The last write was interrupted; the next one mends that.")
        say(f"Write down: entry {verified.entries}, hash {verified.head}")
    if contains is None:
        return
    wanted = contains.strip().lower()
    for entry, record in log.records():
        if entry.hash == wanted:
            say(f"The hash is that of entry {entry.seq}, of {record.time:%Y-%m-%d %H:%M} UTC.")
            return
    raise DerminoError(
        "AUDIT_INVALID",
        f"No entry of the log has the hash {wanted}.",
        where=log.folder,
        fix="Compare it with what was written down. If it is right, this is not the log of that "
        "day: it was written anew, or an old copy was put in its place.",
    )


@audit_app.command(epilog="Example: dermino-client audit show --site mednode --last 50")
def show(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    last: Annotated[
        int, typer.Option(metavar="N", min=0, help="Only the N newest lines; 0 for all.")
    ] = 20,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Only lines of this run.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Whole records, one JSON object per line.")
    ] = False,
) -> None:
    """Show the audit log, the newest line at the end."""
    from dermino_client.audit import AuditLog

    found = open_site(context, site, sites_dir)
    chosen = (
        (entry, record)
        for entry, record in AuditLog(found.folder / "audit").records()
        if run is None or record.run == run
    )
    for entry, record in deque(chosen, maxlen=last or None):
        if as_json:
            say(json.dumps({"seq": entry.seq, "hash": entry.hash, **entry.record}))
        else:
            for line in _lines(entry, record):
                say(line)


def _lines(entry: Entry, record: AuditRecord) -> list[str]:
    from dermino_core.manifest_table import printable

    parts = [f"{entry.seq:>6}", f"{record.time:%Y-%m-%d %H:%M:%S}", f"{record.direction:<4}"]
    parts.append(record.kind)
    if record.run is not None:
        parts.append(f"run {record.run}")
    if record.round is not None:
        parts.append(f"round {record.round}")
    if record.direction != "note":
        parts += [f"{record.bytes:,} bytes", record.decision]
    if record.epsilon is not None:
        parts.append(f"epsilon {record.epsilon:.4g}")
    if record.note:
        parts.append(record.note)
    # Kind, run and names of arrays may come from the other side: no control characters.
    return [printable("  ".join(parts))] + [
        printable(
            f"{'':>8}{name}  {array.dtype} {list(array.shape)}  {array.bytes:,} bytes  "
            f"sha256 {array.sha256[:16]}"
        )
        for name, array in record.digests.items()
    ]
