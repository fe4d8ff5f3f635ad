"""`dermino report RUN`: the page of a finished run."""

from __future__ import annotations

import json
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

    RUN is a federation's folder or that of `dermino pretrain`, also while it is running.

    Example: dermino report runs/2026-03-01
    """
    if _is_pretraining(run):
        from dermino_core.reporting.pretraining_page import write_pretraining_report

        if out is not None:
            raise typer.BadParameter("the report of pretraining stays in its run folder")
        say(str(write_pretraining_report(run)))
        return
    from dermino_core.reporting import write_report
    from dermino_core.results import read_results

    results = read_results(run)
    folder = run if run.is_dir() else run.parent
    say(str(write_report(results, out or folder / "report.html")))


def _is_pretraining(run: Path) -> bool:
    try:
        content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == "pretraining"
