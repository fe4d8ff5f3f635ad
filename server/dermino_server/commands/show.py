"""Results at the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dermino_core.console import say, warn
from dermino_core.results import Estimate, Results, RoundRecord


def finish(folder: Path, results: Results, *, report: bool) -> None:
    """Print the table, write the report, and say where things are."""
    if report:
        from dermino_core.reporting import write_report

        write_report(results, folder / "report.html")
    print_table(results)
    say_where(folder, results.warnings, report=report)


def say_where(folder: Path, warnings: Iterable[str], *, report: bool, use: str = "") -> None:
    """What to bear in mind, and where things are; `use` says what the model is for."""
    for warning in warnings:
        warn(f"note: {warning}")
    say(f"run folder: {folder}")
    if report:
        say(f"report:     {folder / 'report.html'}")
    say(f"model:      {folder / 'model'}{use}")


def show_round(record: RoundRecord) -> None:
    """One exchange of a run that is going on: who took part, who did not and why."""
    names = {"statistics": "statistics", "evaluate": "evaluation"}
    what = names.get(record.kind, f"round {record.round}")
    say(f"{what}: {', '.join(record.sites)} in {record.seconds:.1f} s")
    for rejection in record.rejected:
        warn(f"{what}: without {rejection.site}: {rejection.sentence} ({rejection.code})")
    for found in record.suspicious:
        warn(f"{what}: {found.sentence}")


def print_table(results: Results) -> None:
    """AUROC with its 95 % interval: one row per model, one column per site, and the mean."""
    table = Table(title=f"AUROC (95 % interval), {results.title}")
    table.add_column("trained on", min_width=12)
    for site in results.sites:
        table.add_column(f"{site.name}\nn = {site.n_test}")
    table.add_column("mean")
    table.add_column("mean F1")
    many = len(results.classes) > 2
    if many:
        table.add_column("mean balanced accuracy")
    for model in results.models:
        mean = results.mean.get(model.key)
        table.add_row(
            model.title,
            *(cell(s.evaluations[model.key].auroc) for s in results.sites),
            cell(mean.auroc) if mean else "",
            cell(mean.f1) if mean else "",
            *([cell(mean.balanced_accuracy)] if many and mean and mean.balanced_accuracy else []),
        )
    for column in table.columns:
        column.overflow = "fold"  # a narrow column wraps; half an interval would be worse than none
    print_wide(table, max(120, 16 * len(table.columns)))


def print_wide(table: Table, width: int) -> None:
    """Print a table as wide as the terminal, or as `width` where there is none."""
    Console(width=None if Console().is_terminal else width).print(table)


def cell(estimate: Estimate) -> str:
    """`0.71 (0.65-0.77)`, or a dash where it is undefined."""
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.2f}–{estimate.high:.2f})"
