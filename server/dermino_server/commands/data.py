"""`dermino data`: from the download of a data set to a checked table of images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_core.console import EXIT_CODES_HELP, say, warn
from dermino_core.datasets import DATASETS, DatasetInfo, find_dataset
from dermino_core.datasets.synthetic_sites import SITES
from dermino_core.errors import DerminoError
from dermino_server.commands.dataset_facts import facts, overview, reader_options
from dermino_server.commands.options import parse_columns

if TYPE_CHECKING:
    from dermino_core.manifest_checks import ManifestReport, Problem

_FEDERATED = ("malignancy", "diagnosis")
"""Tasks whose labels a site file can map onto benign and malignant."""

ROWS_SHOWN = 5
"""Problems of one kind that `check` shows; the rest is counted."""

_LABELS_SHOWN = 12

data_app = typer.Typer(
    name="data",
    no_args_is_help=True,
    help="Prepare public data sets and check tables of images.",
    epilog=EXIT_CODES_HELP,
)


@data_app.command("list", epilog="Example: dermino data list ham10000 ddi")
def list_datasets(
    names: Annotated[
        list[str] | None, typer.Argument(help="Data sets to say everything about.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Say everything about each of them.")
    ] = False,
) -> None:
    """List the data sets that `dermino data prepare` knows.

    With NAMES or --all: also their labels, licence, where to get them and what the paper did with
    them.
    """
    drawn = {site.name: site for site in SITES}
    known = {name: DATASETS[name] for name in sorted(DATASETS)} | drawn
    if names or everything:
        chosen = list(known) if everything else names or []
        for place, name in enumerate(dict.fromkeys(chosen)):
            if place:
                say("")
            info = drawn[name] if name in drawn else find_dataset(name)
            say(f"{info.name}: {info.title}")
            _print(facts(info))
        return
    _print(overview(known.values()))
    say("")
    say("Labels, licence and where to get one: dermino data list NAME (or --all)")


@data_app.command(
    "prepare",
    epilog="Example: dermino data prepare ph2 ~/Downloads/PH2Dataset --out data/ph2",
)
def prepare(
    name: Annotated[str, typer.Argument(help="A name that `dermino data list` shows.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the manifest.")],
    raw: Annotated[
        Path | None, typer.Argument(help="Folder of the unpacked download. Not for synthetic-...")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="fitzpatrick17k: 2, 3 or 9 classes; 2 by default.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, one of those that `dermino data list NAME` shows. May be given again."
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="fitzpatrick17k: fetch its images first.")
    ] = False,
) -> None:
    """Write the manifest (table of images) of a data set. Images stay where they are.

    NAME is one of those that `dermino data list` shows; RAW is the folder of its unpacked
    download (not needed for synthetic sites, which are drawn into --out).
    """
    if any(site.name == name for site in SITES):
        _prepare_synthetic(name, raw, out)
        return
    info = find_dataset(name)
    if raw is None:
        raise typer.BadParameter(
            f"give the folder of the download. Get it from: {info.where}", param_hint="RAW"
        )
    given = [*(option or ()), *([] if partition is None else [f"partition={partition}"])]
    options = parse_reader_options(info, given)
    if download:
        _download(info, raw, options)
    manifest = info.prepare(raw, out, **options)
    _say_rows(manifest)
    say_left_out(manifest.with_name("missing.csv"))
    if info.centres:
        say("")
        say("Next:")
        say(f"  dermino data sites {info.name} {shlex.quote(str(raw))} --out sites")
        return
    _say_next(info.name, manifest, raw, federated=info.task in _FEDERATED)


@data_app.command(
    "check",
    epilog="Example: dermino data check data/ph2/manifest.csv --images ~/Downloads/PH2Dataset",
)
def check(
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet table of images.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that its entries are relative to; the table's own by default."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=COLUMN, for example label=binary. May be given again."),
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Read every image whole.")
    ] = True,
) -> None:
    """Check a table of images; exit code 4 if a row of it cannot be used.

    MANIFEST is a CSV or Parquet file with a column `image`, whose entries are relative to
    --images, and `label`, `split`, `group` and others as far as they are known.
    """
    from dermino_core.manifest import read_manifest
    from dermino_core.manifest_checks import check_manifest

    table = read_manifest(manifest, root=images, columns=parse_columns(column or ()))
    report = check_manifest(table, decode=decode)
    _show(report)
    errors = [problem for problem in report.problems if problem.severity == "error"]
    if errors or not report.ok:
        kinds = ", ".join(sorted({problem.kind for problem in errors}))
        raise DerminoError(
            "MANIFEST_INVALID",
            f"Errors found in {len(table.records)} rows: {len(errors)} ({kinds}).",
            where=manifest,
            fix="Correct or remove the rows listed above, then check again.",
        )
    warnings = f", {len(report.problems)} warnings" if report.problems else ""
    say(f"{manifest}: {len(table.records)} rows, no errors{warnings}.")


def say_left_out(missing: Path) -> None:
    """Warn of the images that a reader left out, if it wrote such a table."""
    if missing.exists():
        count = len(missing.read_text(encoding="utf-8").splitlines()) - 1
        warn(f"{count} images of the data set are left out; which, and why: {missing}")


def _prepare_synthetic(name: str, raw: Path | None, out: Path) -> None:
    if raw is not None:
        raise typer.BadParameter(f"{name} is drawn and reads no folder.", param_hint="RAW")
    from dermino_core.datasets.synthetic import write_site

    manifest = write_site(out, site=name)
    _say_rows(manifest)
    _say_next(name, manifest, out)


def parse_reader_options(info: DatasetInfo, given: Sequence[str]) -> dict[str, object]:
    """`["split=published"]` -> `{"split": "published"}`, for the reader of `info`.

    Raises
    ------
    typer.BadParameter
        For a pair that is not NAME=VALUE, or an option that the reader does not have.
    """
    known = reader_options(info)
    options: dict[str, object] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE.", param_hint="--option")
        if name not in known:
            raise typer.BadParameter(
                f"{info.name} has no option {name}. It has: {', '.join(known) or 'none'}.",
                param_hint="--option",
            )
        try:
            options[name] = float(value) if known[name].is_number else value
        except ValueError:
            raise typer.BadParameter(
                f"{name} is no number: {value!r}.", param_hint="--option"
            ) from None
    return options


def _download(info: DatasetInfo, raw: Path, options: Mapping[str, object]) -> None:
    if (info.reader or info.name) != "fitzpatrick17k":
        raise typer.BadParameter(
            f"{info.name} cannot be downloaded by a command. Get it from: {info.where}",
            param_hint="--download",
        )
    from dermino_core.datasets.fitzpatrick17k import download

    partition = options.get("partition", info.arguments.get("partition", "2"))
    report = download(raw, partition=str(partition))
    say(
        f"{report.fetched} images fetched, {report.already_here} were here, "
        f"{len(report.not_had)} could not be had."
    )
    if report.not_had:
        warn(f"What could not be had, and why: {raw / 'images' / 'not_downloaded.csv'}")


def _say_rows(manifest: Path) -> None:
    import csv
    from collections import Counter

    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = Counter(row["label"] or "no label" for row in rows if "label" in row)
    parts = [f"{label} {count}" for label, count in labels.most_common(_LABELS_SHOWN)]
    if len(labels) > _LABELS_SHOWN:
        parts.append(f"and {len(labels) - _LABELS_SHOWN} more labels")
    filled = Counter(name for row in rows for name in ("mask", "caption") if row.get(name))
    parts += [f"{number} with a {name}" for name, number in filled.items()]
    say(f"{manifest}: {len(rows)} images" + (f" ({', '.join(parts)})" if parts else ""))


def _say_next(name: str, manifest: Path, images: Path, *, federated: bool = True) -> None:
    site = name.removeprefix("synthetic-")
    table, folder = shlex.quote(str(manifest)), shlex.quote(str(images))
    say("")
    say("Next:")
    say(f"  dermino data check {table} --images {folder}")
    if federated:
        say(f"  dermino-client init --site {site} --images {folder} --labels {table}")


def _show(report: ManifestReport) -> None:
    """A table of problems, grouped by kind, errors first."""
    if not report.problems:
        return
    from rich.table import Table
    from rich.text import Text

    kinds: dict[tuple[bool, str], list[Problem]] = {}
    for problem in report.problems:
        kinds.setdefault((problem.severity != "error", problem.kind), []).append(problem)
    table = Table(box=None, pad_edge=False)
    for heading in ("problem", "row", "image", "detail"):
        table.add_column(heading, overflow="fold")
    for (is_warning, kind), problems in sorted(kinds.items()):
        severity = "warning" if is_warning else "error"
        for place, problem in enumerate(problems[:ROWS_SHOWN]):
            title = f"{severity}: {kind} ({len(problems)})" if place == 0 else ""
            # Names come from files: shown as plain text, never as markup or control characters.
            cells = (title, problem.row, problem.image, problem.detail)
            table.add_row(*(Text(_plain(cell)) for cell in cells))
        if len(problems) > ROWS_SHOWN:
            table.add_row("", "", "", f"... and {len(problems) - ROWS_SHOWN} more")
    _print(table)


def _plain(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _print(table: object) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
