"""`dermino-client budget`: what this site's patients' privacy was spent on, and what is left."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_client.commands.audit import FolderOption, SiteOption, open_site
from dermino_core.console import say, warn
from dermino_core.errors import DerminoError

if TYPE_CHECKING:
    from dermino_client.ledger import Ledger, Limits, RunSpending
    from dermino_client.site import Site

EXAMPLE = "Example: dermino-client budget --site mednode"
"""Epilog for whoever adds the command."""


def budget(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    close: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Give back what a run reserved and will not use: it has ended."
        ),
    ] = None,
) -> None:
    """Show the privacy budget: its limits, what each run and the last 365 days cost, what is left.

    An open run counts with all the rounds it reserved, a closed one with those it began.

    Example: dermino-client budget --site mednode
    """
    from dermino_client.ledger import Ledger

    found = open_site(context, site, sites_dir)
    limits = _limits(found)
    ledger = Ledger(found.folder / "ledger")
    if close is not None:
        _close(ledger, close)
    verified = ledger.verify()
    now = datetime.now(UTC)
    runs = ledger.by_run()
    spent = ledger.spent(now, limits.delta)
    say(f"{found.name}: a run may cost epsilon {_limit(limits.per_run)}")
    say(
        f"{found.name}: 365 days may cost epsilon {_limit(limits.per_year)} at delta "
        f"{limits.delta:g}"
    )
    for run in runs:
        say(_line(run))
    if not runs:
        say(f"{found.name}: no run has reserved anything yet")
    say(f"{found.name}: the last 365 days cost epsilon {spent:.4g} at delta {limits.delta:g}")
    if limits.per_year is not None:
        say(f"{found.name}: left of the year: epsilon {max(0.0, limits.per_year - spent):.4g}")
    if runs:
        say(f"ledger: entry {verified.entries}, hash {verified.head}")
    if any(run.last_at > now for run in runs):
        warn(
            "The ledger holds events dated in the future, which keep counting: check this "
            "machine's clock with timedatectl."
        )


def _close(ledger: Ledger, run: str) -> None:
    """End a run that its coordinator abandoned; what it began stays spent."""
    if run not in {known.run for known in ledger.by_run()}:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The ledger knows no run {run}.",
            where=ledger.folder,
            fix="Without --close this command lists the runs.",
        )
    ledger.close(run)


def _limits(site: Site) -> Limits:
    from dermino_client.ledger import Limits

    policy = getattr(site, "policy", None)
    default = Limits()
    return Limits(
        per_run=getattr(policy, "epsilon_per_run", default.per_run),
        per_year=getattr(policy, "epsilon_per_year", default.per_year),
        delta=getattr(policy, "delta", default.delta),
    )


def _limit(value: float | None) -> str:
    return "without limit ([policy] of the site file sets none)" if value is None else f"{value:g}"


def _line(run: RunSpending) -> str:
    from dermino_core.manifest_table import printable

    state = "open" if run.is_open else "closed"
    cost = f"epsilon {run.epsilon:.4g} at delta {run.delta:g}"
    if run.epsilon_begun != run.epsilon:
        cost += f" (begun so far: {run.epsilon_begun:.4g})"
    return printable(
        f"  {run.reserved_at:%Y-%m-%d}  run {run.run}  {run.strategy}  {state}, {run.begun} of "
        f"{run.rounds} rounds begun  {cost}"
    )
