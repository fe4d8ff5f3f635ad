"""`dermino evaluate`: how good backbones are, on any data set, by every task of the paper."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from dermino_core.console import say, warn
from dermino_core.errors import DerminoError
from dermino_server.commands.options import Precision, parse_columns

if TYPE_CHECKING:
    import click

    from dermino_core.evaluation.cohort import Cohort
    from dermino_core.evaluation.results import EvaluationResults, Skipped

EXAMPLE = """\
Example: dermino evaluate --backbone demo weights/dinov2_vits14.safetensors
--manifest ph2/labels.csv --tasks retrieval,classification --out RUN

Every data set of the paper that is under one folder: dermino evaluate --suite paper --data DATA
--backbone demo --out RUN"""

_LISTS = ("--backbone", "--manifest", "--images", "--column")


class SpreadOptions(TyperCommand):
    """Lets several values follow one option: `--backbone A B` for `--backbone A --backbone B`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the option before each of its values."""
        spread: list[str] = []
        last: str | None = None
        for arg in args:
            if arg.startswith("-"):
                last = arg if arg in _LISTS else None
                if last is None:
                    spread.append(arg)
            elif last is not None:
                spread += [last, arg]
            else:
                spread.append(arg)
        if args and args[-1] in _LISTS:
            spread.append(args[-1])
        return super().parse_args(ctx, spread)


class Statistics(enum.StrEnum):
    """How intervals and p-values are made."""

    PERCENTILE = "percentile"
    PAPER = "paper"


class MasksAt(enum.StrEnum):
    """Where predicted masks are compared."""

    INPUT = "input"
    ORIGINAL = "original"


class Suite(enum.StrEnum):
    """A fixed list of data sets."""

    PAPER = "paper"


def evaluate(
    backbone: Annotated[
        list[str], typer.Option(help="Backbones to compare; see `dermino backbones`.")
    ],
    manifest: Annotated[
        list[str] | None,
        typer.Option(help="Tables of images, as FILE or NAME=FILE.", show_default=False),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Image folder of each table, or one for all; default: the table's own folder.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="FIELD=COLUMN for all tables, or NAME:FIELD=COLUMN for one.", show_default=False
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Classes in order, the positive one last: a,b. Default: all labels."),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Tasks, separated by commas; `all`: whatever the tables allow.")
    ] = "all",
    suite: Annotated[
        Suite | None, typer.Option(help="All data sets of the paper that are under --data.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with one download per data set, for --suite.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="runs/evaluate-DATE")
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="k of retrieval.")] = 5,
    class_weights: Annotated[
        bool, typer.Option(help="Weigh classes equally in the probes.")
    ] = False,
    language_model: Annotated[
        str, typer.Option(help="For captioning: a hub name or a folder.")
    ] = "BioMistral/BioMistral-7B",
    beams: Annotated[int, typer.Option(min=1, help="Of captioning; 1 is greedy.")] = 1,
    readers: Annotated[
        Path | None, typer.Option(help="CSV of readers' answers to test images.")
    ] = None,
    masks_at: Annotated[
        MasksAt,
        typer.Option(help="Where segmentation is scored: 224 pixels or the mask's own size."),
    ] = MasksAt.INPUT,
    federation: Annotated[
        Path | None, typer.Option(help="Run folder of a federation, to be shown in the report.")
    ] = None,
    statistics: Annotated[
        Statistics, typer.Option(help="`paper`: mean +- variance and t-tests on replicates.")
    ] = Statistics.PERCENTILE,
    replicates: Annotated[int, typer.Option(min=10, help="Bootstrap replicates.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the backbone.")] = (
        Precision.AUTO
    ),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Where features are kept.")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
) -> None:
    """Evaluate backbones on labelled images: embed each image once, run every task.

    Writes results.json, results.csv, tables.md, tables.tex and report.html to RUN. With --out, the
    same command again goes on where an interrupted one stopped.

    Tasks: retrieval, classification, label_efficiency, calibration, fairness, segmentation (masks),
    captioning (captions), survival (time and event), longitudinal (date), reader_study (--readers).
    """
    from dermino_core.evaluation.run import Plan, evaluate, write_configuration
    from dermino_core.evaluation.suite import paper_suite
    from dermino_core.evaluation.tables import write_tables
    from dermino_core.evaluation.tasks import chosen_tasks
    from dermino_core.evaluation.work import Options
    from dermino_core.paths import default_cache
    from dermino_core.results import read_results

    if bool(manifest) == bool(suite):
        raise typer.BadParameter("give --manifest FILE..., or --suite paper with --data FOLDER")
    names = chosen_tasks(tasks)
    folder = out or Path("runs") / datetime.now(UTC).strftime("evaluate-%Y%m%d-%H%M%S")
    missing: Sequence[Skipped] = ()
    if suite is not None:
        if data is None:
            raise typer.BadParameter("--suite paper needs --data FOLDER")
        if images or column or classes:
            raise typer.BadParameter("--suite knows its own images, columns and classes")
        cohorts, missing = paper_suite(data, folder / "manifests")
    else:
        wanted = tuple(part.strip() for part in (classes or "").split(",") if part.strip())
        cohorts = _cohorts(manifest or [], images or [], column or [], wanted)
    plan = Plan(
        backbones=list(dict.fromkeys(backbone)),
        cohorts=cohorts,
        tasks=names,
        cache=cache or default_cache(),
        options=Options(
            seed=seed,
            replicates=replicates,
            neighbours=neighbours,
            class_weights=class_weights,
            language_model=language_model,
            beams=beams,
            readers=readers,
            score_masks_at=masks_at.value,
            device=device,
            precision=precision.value,
        ),
        whatever_fits=tasks == "all",
        statistics=statistics.value,
        missing=missing,
        federation=None if federation is None else read_results(federation),
    )
    write_configuration(plan, folder)
    results = evaluate(plan, folder)
    write_tables(results, folder)
    _show(results)
    if report:
        from dermino_core.reporting.evaluation_page import write_evaluation_report

        say(f"report    {write_evaluation_report(results, folder)}")
    say(f"results   {folder / 'results.json'}")


def _cohorts(
    manifests: Sequence[str],
    images: Sequence[Path],
    columns: Sequence[str],
    classes: tuple[str, ...],
) -> list[Cohort]:
    from dermino_core.evaluation.cohort import open_cohort
    from dermino_core.manifest import read_manifest

    if len(images) not in (0, 1, len(manifests)):
        raise typer.BadParameter(
            f"{len(images)} folders for {len(manifests)} tables: give one for all, or one for each",
            param_hint="--images",
        )
    named = [_named(text) for text in manifests]
    for_all = [pair for pair in columns if ":" not in pair.partition("=")[0]]
    for_one = [pair.partition(":") for pair in columns if pair not in for_all]
    if strange := {name for name, _, _ in for_one} - {name for name, _ in named}:
        raise typer.BadParameter(
            f"there is no table called {min(strange)!r}; there are "
            f"{', '.join(name for name, _ in named)}",
            param_hint="--column",
        )
    cohorts = []
    for place, (name, file) in enumerate(named):
        own = parse_columns([*for_all, *(pair for whose, _, pair in for_one if whose == name)])
        root = images[place if len(images) > 1 else 0] if images else None
        table = read_manifest(file, root=root, columns=own)
        cohorts.append(open_cohort(name, table, classes=classes, columns=own))
    return cohorts


def _named(text: str) -> tuple[str, Path]:
    """A table's name and file, from FILE or NAME=FILE."""
    name, equals, rest = text.partition("=")
    file = Path(rest if equals else text)
    if equals:
        return name, file
    # labels.csv says nothing; its folder's name does.
    telling = file.stem not in ("labels", "manifest", "metadata")
    return (file.stem if telling else file.absolute().parent.name), file


def _show(results: EvaluationResults) -> None:
    """The main numbers, and what was not done."""
    from dermino_core.evaluation.tables import as_text

    say(as_text(results))
    for skipped in results.skipped:
        who = f" with {skipped.backbone}" if skipped.backbone else ""
        warn(f"skipped {skipped.task} on {skipped.dataset}{who}: {skipped.sentence}")
    for warning in results.warnings:
        warn(warning)
    if not results.scores:
        raise DerminoError(
            "DATA_TOO_FEW",
            "Nothing could be measured.",
            fix="The lines above say why; the report holds them too.",
        )
