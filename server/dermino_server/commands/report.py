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

    RUN is the folder of a federation, of `dermino segmentation`, of `dermino evaluate`, or of
    `dermino pretrain`, also while that is running.

    Example: dermino report runs/2026-03-01
    """
    kind = _kind(run)
    if kind == "evaluation":
        from dermino_core.evaluation.results import read_evaluation
        from dermino_core.reporting.evaluation_page import write_evaluation_report

        say(str(write_evaluation_report(read_evaluation(run), out or run)))
        return
    if kind == "segmentation-federation":
        from dermino_core.reporting.segmentation_page import write_segmentation_report
        from dermino_core.segmentation_results import read_segmentation_results

        say(str(write_segmentation_report(read_segmentation_results(run), out or run)))
        return
    if kind == "pretraining":
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


def _kind(run: Path) -> str | None:
    """What a run folder says of itself."""
    try:
        content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None
