"""`dermino region`: coordinators that share no SuperLink make one model of all their hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say, warn

region_app = typer.Typer(
    no_args_is_help=True,
    help="One model from several coordinators' runs, by files that hold sums over regions.",
)


@region_app.command("sum")
def sum_(
    run: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the region's finished run.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the region.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Region file to write.")],
    min_sites: Annotated[
        int, typer.Option(min=1, help="Refuse to write the sum of fewer sites.")
    ] = 2,
) -> None:
    """Write one file with the sum over all sites of a run, to hand to another coordinator.

    It holds no site's own sums, but of one site they are the same. It names the sites, how many
    training images each has, the digest of what each sent, and the study: task, classes, backbone,
    method, settings and seed, in which all regions must agree. For methods that keep sums, such as
    ridge; not for private or secure runs.

    Who knows what one of two sites sent knows the other from their sum; so does who has files of
    one region with and without it. A site that withdraws is still in files made before.

    Example:

        dermino region sum --run runs/north --name north --out north.region
    """
    from dermino_server.regions import sum_run

    made = sum_run(run, name, out, min_sites=min_sites)
    _say_file(made.file, made.sha256, name, made.info.images)


@region_app.command()
def join(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Region files, one of each region.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder to make; with --as, region file.")
    ],
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of a finished run of one's own, to join as well."),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Make no model, but the file of a region of this name over all these.",
        ),
    ] = None,
) -> None:
    """Make the model of all sites of some regions: that of one run over all of them.

    It has the same bits however the sites are divided into regions. Nobody is asked to compute
    anything, nothing is evaluated, and the files are believed: they are not signed.

    Examples:

        dermino region join north.region south.region --out runs/both

        dermino region join north.region --run runs/south --out runs/both

        dermino region join north.region south.region --as europe --out europe.region
    """
    from dermino_server.regions import join_model, join_regions

    if as_ is not None:
        made = join_regions(files, as_, out, run=run)
        _say_file(made.file, made.sha256, as_, made.info.images)
        say("believed: that each sum is that of its sites: region files are not signed")
        return
    done = join_model(files, out, run=run)
    record = done.record
    for file in record.files:
        say(f"{file.region}: {', '.join(file.sites)}  ({file.file}, {file.sha256[:16]})")
    if record.run is not None:
        say(f"own run: {', '.join(record.run.sites)}")
    images = sum(record.images.values())
    say(f"model:     {done.folder / 'model'}  ({len(record.images)} sites, {images} images)")
    say(f"record:    {done.folder / 'join.json'}")
    say("believed:  that each sum is that of its sites: region files are not signed")
    say("evaluated: nothing, and no command asks the sites to")
    say("to judge it, each hospital lays the probabilities of its test images beside their labels:")
    say(f"    dermino predict --json --model {done.folder / 'model'} IMAGE...")
    say(f"backbone:  {done.backbone_spec}; where it is elsewhere, predict takes --backbone")


def _say_file(file: Path, sha256: str, name: str, images: dict[str, int]) -> None:
    sites = ", ".join(f"{site} {count}" for site, count in sorted(images.items()))
    say(f"region {name}: {len(images)} sites (training images: {sites})")
    say(f"file:   {file}  (the sum over these sites, for the coordinators' eyes)")
    say(f"SHA-256 {sha256}; tell it by phone, for the file is not signed")
    say(f"there:  dermino region join {file.name} OTHER.region --out FOLDER")
    if len(images) == 1:
        warn("a sum over one site is that site's own: whoever has the file reads all it sent")
