"""`dermino labels`: one list of diseases out of the labels of many data sets."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_core.console import EXIT_CODES_HELP, say, warn
from dermino_core.errors import DerminoError
from dermino_core.manifest_table import printable
from dermino_server.commands.options import parse_columns

if TYPE_CHECKING:
    from dermino_core.label_merging import Pair, Proposal

SHOWN = 15
"""Pairs of names that `build` shows; the table holds them all."""

labels_app = typer.Typer(
    name="labels",
    no_args_is_help=True,
    help="Merge the disease names of data sets, and embed them for pretraining.",
    epilog=EXIT_CODES_HELP,
)

Encoder = Annotated[
    str | None,
    typer.Option(
        help="Hugging Face name or folder of a BERT or sentence encoder; CODER by default."
    ),
]


@labels_app.command(
    "build",
    epilog="Example: dermino labels build ph2.csv ham10000.csv --encoder CODER/ --out labels.csv",
)
def build(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="MANIFEST...",
            help="Tables of images, lists with a column label or name, or tables code,name.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Table to write, for a person to review.")],
    encoder: Encoder = None,
    threshold: Annotated[
        float | None, typer.Option(help="Cosine from which two names are one; 0.88 by default.")
    ] = None,
    spelling_only: Annotated[
        bool, typer.Option("--spelling-only", help="Merge by spelling alone: no text encoder.")
    ] = False,
    column: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=COLUMN, for example label=diagnosis. May be given again."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a table that is there.")
    ] = False,
) -> None:
    """Collect labels, bring them to one spelling, merge those that mean the same.

    Writes a CSV with one row per source label, and beside it (.safetensors) the embeddings of the
    merged names. Review the column merged_into: empty ignores a label, !NAME says that an image
    does not have NAME, A|B that it has both.
    """
    from dermino_core.label_collection import collect_labels
    from dermino_core.label_merging import THRESHOLD, names_to_embed, propose
    from dermino_core.label_table import write_label_table

    _check_out(out, overwrite=overwrite)
    limit = THRESHOLD if threshold is None else threshold
    if not (math.isfinite(limit) and -1 <= limit <= 1):
        raise typer.BadParameter(f"{limit} is no cosine (-1 to 1).", param_hint="--threshold")
    labels = collect_labels(tables, columns=parse_columns(column or ()))
    if spelling_only:
        proposal = propose(labels)
    else:
        from dermino_core.pretraining.prototypes import save_embeddings
        from dermino_core.text_encoder import CODER, load_text_encoder

        model = load_text_encoder(encoder or CODER)
        names = names_to_embed(labels)
        vectors = model.embed(names)
        proposal = propose(labels, vectors, threshold=limit)
        row = {name: place for place, name in enumerate(names)}
        chosen = vectors[[row[name] for name in proposal.names]]
        save_embeddings(out.with_suffix(".safetensors"), proposal.names, chosen, encoder=model.name)
    write_label_table(out, proposal.rows)
    _show(proposal, limit)
    say(f"{out}: {len(proposal.rows)} source labels, {len(proposal.names)} names.")
    say("Next: review the column merged_into. If you change it:")
    chosen_encoder = f" --encoder {shlex.quote(encoder)}" if encoder else ""
    say(f"  dermino labels embed {shlex.quote(str(out))}{chosen_encoder}")


@labels_app.command("embed", epilog="Example: dermino labels embed labels.csv --encoder CODER/")
def embed(
    table: Annotated[Path, typer.Argument(help="Table of `dermino labels build`, reviewed.")],
    encoder: Encoder = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; beside the table by default.")
    ] = None,
) -> None:
    """Embed the names of a reviewed table again, after its column merged_into was edited."""
    from dermino_core.label_table import merged_names, read_label_table
    from dermino_core.pretraining.prototypes import save_embeddings
    from dermino_core.text_encoder import CODER, load_text_encoder

    names = merged_names(read_label_table(table))
    if not names:
        raise DerminoError(
            "MANIFEST_INVALID",
            "The table merges no label into a name.",
            where=table,
            fix="Fill in its column merged_into.",
        )
    model = load_text_encoder(encoder or CODER)
    path = out or table.with_suffix(".safetensors")
    save_embeddings(path, names, model.embed(names), encoder=model.name)
    say(f"{path}: {len(names)} names, {model.width} wide.")


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.suffix.casefold() != ".csv":
        raise typer.BadParameter(f"{out} does not end in .csv.", param_hint="--out")
    if out.exists() and not overwrite:
        raise DerminoError(
            "OUTPUT_EXISTS",
            "The table is there already, and may hold a person's corrections.",
            where=out,
            fix="Give another name, or --overwrite.",
        )


def _show(proposal: Proposal, threshold: float) -> None:
    ignored = [row for row in proposal.rows if not row.merged_into]
    negated = [row for row in proposal.rows if any(n.startswith("!") for n in row.merged_into)]
    if proposal.merged:
        say(f"Merged by meaning (cosine of at least {threshold:g}):")
        _show_pairs(proposal.merged)
    if proposal.near:
        say("Most similar, not merged:")
        _show_pairs(proposal.near)
    for row in negated:
        label = f"{printable(row.source_label)} ({printable(row.dataset)})"
        say(f"{label} is read as {'|'.join(row.merged_into)}")
    if ignored:
        names = ", ".join(sorted({printable(row.source_label) for row in ignored}))
        warn(f"Ignored, because they name no disease: {names}.")


def _show_pairs(pairs: list[Pair]) -> None:
    for pair in pairs[:SHOWN]:
        say(f"  {pair.similarity:.3f}  {printable(pair.first)} | {printable(pair.second)}")
    if len(pairs) > SHOWN:
        say(f"  ... and {len(pairs) - SHOWN} more")
