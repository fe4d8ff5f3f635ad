"""`dermino-client receipt`: what a coordinator erased after this site left a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_client.commands.audit import FolderOption, SiteOption, open_site
from dermino_client.commands.enrol import FingerprintOption, YesOption
from dermino_core.console import say, warn

EXAMPLE = "Example: dermino-client receipt receipt.json --site ph2"
"""Epilog for whoever adds the command."""


def receipt(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="receipt.json", help="What the coordinator sent.")
    ],
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    fingerprint: FingerprintOption = None,
    yes: YesOption = False,
) -> None:
    """Check a coordinator's receipt that this site was taken out of a run; exit code 8 if not so.

    Whose signature it is, the authority tells that this site trusts since it joined; that the sums
    it names are those that left here, this site's own audit log.

    Example: dermino-client receipt receipt.json --site ph2
    """
    from dermino_client.receipt import check_at_site
    from dermino_core.comparison import compare_by_phone

    found = open_site(context, site, sites_dir)
    checked = check_at_site(found, file)
    if checked.receipt.certificate is None:
        compare_by_phone(
            "the key that signed the receipt",
            checked.receipt.fingerprint,
            whom="the coordinator",
            given=fingerprint,
            yes=yes,
        )
    for line in checked.receipt.lines:
        say(line)
    if checked.sent is None:
        warn(
            f"{found.name}: the audit log does not tell of run {checked.receipt.sent_in}, so whose "
            "sums these are rests on the coordinator's word"
        )
    else:
        say(
            f"{found.name}: the audit log has these very sums, sent at "
            f"{checked.sent:%Y-%m-%d %H:%M:%S} UTC"
        )
    say(f"{found.name}: the receipt is as the coordinator signed it")
