"""`dermino data shards`: shrink originals once, for pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say, warn
from dermino_server.commands.options import parse_columns

EXAMPLE = "Example: dermino data shards isic/manifest.csv ph2/manifest.csv --out shards"


def shards(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST...", help="CSV or Parquet tables of images.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the shards.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that entries are relative to; each table's own by default."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=COLUMN, for example label=diagnosis. May be given again."),
    ] = None,
    side: Annotated[
        int, typer.Option(min=32, help="Shorter side of the images, pixels; none is enlarged.")
    ] = 512,
    shard_mb: Annotated[
        int, typer.Option("--shard-mb", min=1, help="Size of a shard, megabytes.")
    ] = 256,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every finished shard's checksum.")
    ] = False,
) -> None:
    """Shrink images once to JPEGs in tar files (WebDataset layout) that pretraining reads fast.

    Images are turned upright, shrunk, cropped to at most 2:1 and encoded anew without metadata.
    Labels, splits and groups go along. Run the same command again after an interruption: finished
    shards are checked and kept. What cannot be read is listed in OUT/dropped.csv.
    """
    from dermino_core.pretraining.shards import write_shards

    report = write_shards(
        manifests,
        out,
        images=images,
        columns=parse_columns(column or ()),
        side=side,
        shard_mb=shard_mb,
        verify=verify,
    )
    for name in report.repaired:
        warn(f"{name} was damaged and has been made anew.")
    if report.dropped:
        warn(f"{report.dropped} images are left out; {report.dropped_file} says why.")
    new = f"{report.made} new" if report.made else "nothing to do"
    say(
        f"{out}: {report.images} images in {report.shards} shards, {report.size / 1e6:.0f} MB "
        f"({new})."
    )
    say("In the pretraining configuration:")
    say("  [[data.sources]]")
    say(f'  name = "{out.name}"')
    say(f'  shards = "{out}"')
