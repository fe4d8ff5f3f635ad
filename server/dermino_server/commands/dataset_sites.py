"""`dermino data sites`: site files for a public data set that comes from several hospitals."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say, warn
from dermino_core.datasets import DATASETS, DatasetInfo, find_dataset
from dermino_server.commands.data import parse_reader_options, say_left_out
from dermino_server.dataset_sites import TABLES, CentreSite, write_dataset_sites

EXAMPLE = "Example: dermino data sites fed-isic2019 ~/Downloads/ISIC2019 --out sites"

_NAMES = ", ".join(info.name for info in DATASETS.values() if info.centres)


def sites(
    name: Annotated[str, typer.Argument(help=f"A data set of several hospitals: {_NAMES}.")],
    raw: Annotated[Path, typer.Argument(help="Folder of the unpacked download.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the site files.")] = Path("sites"),
    backbone: Annotated[
        str, typer.Option(help="Backbone of every site: a name, a .safetensors file, or 'demo'.")
    ] = "demo",
    train_share: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=0.99, help="Share of training images.", show_default="the protocol's"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, one of those that `dermino data list NAME` shows. May be given again."
        ),
    ] = None,
) -> None:
    """Write a site file for every hospital of a data set, ready for `dermino simulate --sites`.

    NAME is a data set that comes from several hospitals: fed-isic2019. RAW is the folder of its
    unpacked download; `dermino data list NAME` says what belongs into it. Images stay there.

    Without `--option split=published` every hospital divides its images itself, stratified, and no
    lesion is on both sides.
    """
    info = find_dataset(name)
    options = parse_reader_options(info, option or ())
    written = write_dataset_sites(
        info,
        raw,
        out,
        options=options,
        backbone=backbone,
        train_share=train_share,
        seed=seed,
    )
    for site in written:
        say(f"{site.file}: {_facts(info, site)}")
    say_left_out(out / TABLES / "missing.csv")
    if any(site.split for site in written):
        _say_published(written)
    else:
        share = train_share or info.train_share
        say(f"split: dermino's own, by lesion and class, {share:.0%} for training, seed {seed}")
    if backbone == "demo":
        warn(
            "note: the backbone 'demo' has seen drawn lesions only; its numbers mean nothing here."
        )
    say("")
    say("Next:")
    say(f"  dermino simulate --sites {shlex.quote(str(out))} --strategy ridge")


def _facts(info: DatasetInfo, site: CentreSite) -> str:
    labels = ", ".join(f"{label} {count}" for label, count in site.labels.items())
    published = info.centres[site.name]
    other = "" if site.images == published else f"; the publication has {published:,}"
    return f"{site.images:,} images ({labels}){other}"


def _say_published(written: list[CentreSite]) -> None:
    sides = {side: sum(site.split.get(side, 0) for site in written) for side in ("train", "test")}
    say(f"split: published, {sides['train']:,} for training, {sides['test']:,} for testing")
    if torn := sum(site.torn for site in written):
        warn(
            f"note: {torn:,} lesions are on both sides of the published split: it flatters, and "
            "intervals take every image for another lesion. For comparison with others only."
        )
