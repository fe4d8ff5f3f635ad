"""`dermino report RUN`: the page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, or a results.json.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; RUN/report.html if not given.", show_default=False),
    ] = None,
) -> None:
    """Write report.html from the results of a run: one file, readable without a network.

    Example: dermino report runs/2026-03-01
    """
    from dermino_core.reporting import write_report
    from dermino_core.results import read_results

    results = read_results(run)
    folder = run if run.is_dir() else run.parent
    say(str(write_report(results, out or folder / "report.html")))
