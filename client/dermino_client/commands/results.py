"""`dermino-client results`: what a run gave this hospital, from its own records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_client.commands.audit import FolderOption, SiteOption, open_site
from dermino_core.console import say
from dermino_core.errors import DerminoError

if TYPE_CHECKING:
    from dermino_client.own_results import OwnResults
    from dermino_core.results import Estimate

EXAMPLE = "Example: dermino-client results --site mednode"
"""Epilog for whoever adds the command."""


def results(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Which run, or the first letters of it.", show_default="the newest"
        ),
    ] = None,
) -> None:
    """Show this hospital's own test results of a run, and what joining changes for it.

    They are kept here whatever the run: after a private or secure one nobody else has them.

    Example: dermino-client results --site mednode
    """
    from dermino_client.own_results import personal_folder, read_own

    found = open_site(context, site, sites_dir)
    files = _files(found.folder)
    file = _chosen(found.folder, files, run)
    kept = read_own(file)
    say(f"{found.name}: run {file.stem}")
    if kept is None:
        say(f"  of another kind, for you to read: {file}")
    else:
        for line in lines_of(kept):
            say(line)
    model = personal_folder(found.folder, file.stem)
    if (model / "model.json").is_file():
        say(f"personal model: {model}")
        say(f"  dermino predict --model {model} IMAGE...")
    if others := [other.stem for other in files if other != file]:
        say(f"other runs, newest first: {', '.join(others)}")


def _files(folder: Path) -> list[Path]:
    """Results of every run, newest first."""
    from dermino_client.own_results import FOLDER

    files = (folder / FOLDER).glob("*.json")
    return sorted(files, key=lambda file: (file.stat().st_mtime, file.name), reverse=True)


def _chosen(folder: Path, files: list[Path], run: str | None) -> Path:
    fitting = files if run is None else [file for file in files if file.stem.startswith(run)]
    if not files or not fitting:
        raise DerminoError(
            "RESULTS_INVALID",
            "This site has no results yet." if not files else f"There are no results of {run}.",
            where=folder,
            fix="They are written at the end of a run; without --run the command lists all.",
        )
    if run is not None and len(fitting) > 1:
        raise DerminoError("CONFIG_INVALID", f"{len(fitting)} runs begin with {run}: give more.")
    return fitting[0]


def lines_of(kept: OwnResults) -> list[str]:
    """What to print: how the run was, every model with its intervals, and the sentence."""
    from dermino_client.own_results import TITLES

    counts = ", ".join(f"{label} {n}" for label, n in kept.train_class_counts.items())
    lines = [f"  {_how(kept)}"] if kept.task else []
    lines += [
        f"  trained on {kept.n_train} images ({counts}), tested on {kept.n_test}; "
        "95 % intervals of the test images",
        "",
    ]
    shown = [key for key in TITLES if key in kept.evaluations]
    width = max((len(TITLES[key]) for key in shown), default=0)
    lines.append(f"  {'':<{width}}  {'AUROC':<22}F1")
    for key in shown:
        scored = kept.evaluations[key]
        lines.append(f"  {TITLES[key]:<{width}}  {_cell(scored.auroc):<22}{_cell(scored.f1)}")
    if kept.joining is not None and len(kept.joining.points) > 1:
        lines += [
            "",
            f"  {'AUROC by your labels':<{width}}  {'alone':<22}{'federated':<22}personal",
        ]
        lines += [
            f"  {point.labels:<{width}}  {_cell(point.alone):<22}{_cell(point.federated):<22}"
            f"{_cell(point.personal)}"
            for point in kept.joining.points
        ]
    return [*lines, "", *([kept.sentence] if kept.sentence else [])]


def _how(kept: OwnResults) -> str:
    task = kept.task
    if task is None:
        return ""
    rounds = "1 round" if task.rounds == 1 else f"{task.rounds} rounds"
    how = [f"{task.name} by {task.strategy}, {rounds}", (kept.date or "")[:10]]
    if task.secure_aggregation:
        how.append("secure aggregation: these numbers left only in a sum")
    if task.privacy:
        how.append(f"epsilon {task.privacy.epsilon:g}: the other models' numbers did not leave")
    return "; ".join(part for part in how if part)


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.2f} to {estimate.high:.2f})"
