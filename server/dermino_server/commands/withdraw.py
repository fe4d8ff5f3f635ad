"""`dermino withdraw`: a hospital leaves a finished run, with a signed receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say, warn
from dermino_core.errors import DerminoError

EXAMPLE = (
    "Example: dermino withdraw --run runs/first --site ph2 --key keys/server.key. "
    "Example: dermino withdraw --verify receipt.json --ca ca.crt"
)
"""Epilog for whoever adds the command."""


def withdraw(
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder of the finished run.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="The site that leaves it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder to make.", show_default="RUN-without-NAME"),
    ] = None,
    keep_original: Annotated[
        bool,
        typer.Option("--keep-original", help="Erase nothing in RUN; the receipt will say so."),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key to sign with; best server.key of the consortium, with server.pem beside it.",
            show_default="server.key where RUN is in the consortium's folder, else an own key",
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate of --key.", show_default="KEY.pem"),
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(metavar="receipt.json", help="Check a receipt instead.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="ca.crt", help="With --verify: the consortium's authority."),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            metavar="XXXX...",
            help="With --verify: the fingerprint of an own key, as told by phone.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --verify: it was compared by phone already.")
    ] = False,
) -> None:
    """Take a site out of a finished run: the model as if it had never been asked, to the bit.

    Makes a new run folder from what the other sites had sent; nobody is asked to compute anything.
    Then erases all sums and checkpoints of RUN, and signs a receipt that says what was erased and
    what this does not undo. For methods that keep sums, such as ridge; not under secure
    aggregation, where nobody but a site ever has its sums: there, run again without it.

    Interrupted, the same command ends what it began.

    Examples:

        dermino withdraw --run runs/first --site ph2

        dermino withdraw --run runs/first --site ph2 --key keys/server.key --out runs/second

        dermino withdraw --verify runs/second/receipt.json --ca keys/ca.crt
    """
    if verify is not None:
        _verify(verify, ca, fingerprint=fingerprint, yes=yes)
        return
    if run is None or site is None:
        raise DerminoError(
            "CONFIG_INVALID",
            "Who leaves which run?",
            fix="dermino withdraw --run RUN --site NAME, or dermino withdraw --verify receipt.json",
        )
    from dermino_core.enrolment import grouped
    from dermino_server.receipt_key import find_signer
    from dermino_server.withdraw import withdraw as take_out

    signer = find_signer(run, key, certificate)
    done = take_out(run, site, signer, out=out, keep_original=keep_original)
    if done.again:
        say(f"{site} was withdrawn from {run} before; nothing is left to do")
    for line in done.receipt.lines:
        say(line)
    say(f"run folder: {done.folder}")
    say(f"model:      {done.folder / 'model'}  (not evaluated yet: --resume does that)")
    say(f"receipt:    {done.folder / 'receipt.json'}: send it to {site}")
    if done.receipt.certificate is None:
        if signer.made:
            say(f"made the key {signer.file}; keep it")
        warn(
            "signed with a key of this machine that no authority vouches for; when asked, read "
            f"its fingerprint by phone: {grouped(done.receipt.fingerprint)}"
        )
    else:
        say(f"there:      dermino-client receipt receipt.json --site {site}")


def _verify(file: Path, ca: Path | None, *, fingerprint: str | None, yes: bool) -> None:
    from dermino_core.certificate_checks import read_certificate
    from dermino_core.comparison import compare_by_phone
    from dermino_core.withdrawal_receipt import check_receipt, read_receipt
    from dermino_server.certificates import read_file

    receipt = read_receipt(file)
    authority = None if ca is None else read_certificate(read_file(ca), where=ca)
    check_receipt(receipt, authority)
    if receipt.certificate is None:
        compare_by_phone(
            "the key that signed the receipt",
            receipt.fingerprint,
            whom="the coordinator",
            given=fingerprint,
            yes=yes,
        )
    for line in receipt.lines:
        say(line)
    say("the receipt is as the coordinator signed it")
