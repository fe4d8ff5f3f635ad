"""`dermino backbones`: what can be named after --backbone, and which of it is on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from dermino_core.backbone_card import preprocessing_from_dict
from dermino_core.backbone_catalogue import CATALOGUE, HUB_FILE, CatalogueEntry
from dermino_core.backbone_shelf import backbone_shelf, folders_on_shelf, weights_here
from dermino_core.backbone_spec import read_folder_description
from dermino_core.console import say
from dermino_core.demo_backbone import demo_folder
from dermino_core.errors import DerminoError
from dermino_core.manifest_table import printable

EXAMPLE = "Example: dermino backbones; dermino evaluate --backbone clip panderm@/data/panderm.pth"


@dataclass(frozen=True)
class Row:
    """One backbone. `here` is where its weights are on this machine, None if they are not.

    `parameters` are those of the image tower; `image_size` is in pixels; `problem` says why a
    folder on the shelf cannot be read.
    """

    name: str
    title: str
    architecture: str
    parameters: int | None
    width: int | None
    image_size: int | None
    pooling: str
    licence: str
    source: str
    file: str
    here: str | None
    paper_use: str
    paper_parameters: int | None = None
    problem: str | None = None


def backbones(
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON instead of a table, with all that is known.")
    ] = False,
) -> None:
    """List the backbones that have a short name, and which of them are on this machine.

    Looks into the hub's local cache and into the folder for backbones of one's own; asks no
    network. Any other ViT of timm, file or folder can follow --backbone as well.
    """
    rows = list(_rows())
    if as_json:
        say(json.dumps([asdict(row) for row in rows], indent=1))
        return
    _show(rows)
    say("")
    say("`hub`: downloaded when first used. `by hand`: get the file and say --backbone NAME@FILE,")
    say(f"or put it, or a backbone folder of your own, into {backbone_shelf()}")
    for row in rows:
        if row.name in CATALOGUE and row.here is None:
            say(f"  {row.name:<16} {row.file} from {row.source}")


def _rows() -> Iterator[Row]:
    yield _folder_row("demo", demo_folder(), "comes with dermino, to try it; saw no photograph")
    for entry in CATALOGUE.values():
        yield _entry_row(entry)
    for name, folder in folders_on_shelf().items():
        if name not in CATALOGUE:
            yield _folder_row(name, folder, "a backbone folder of yours")


def _entry_row(entry: CatalogueEntry) -> Row:
    found = weights_here(entry)
    return Row(
        name=entry.name,
        title=entry.title,
        architecture=entry.architecture,
        parameters=entry.parameters,
        width=entry.width,
        image_size=entry.preprocessing.image_size,
        pooling=entry.pooling,
        licence=entry.licence,
        source=entry.where,
        file=entry.file,
        here=None if found is None else str(found),
        paper_use=entry.paper_use,
        paper_parameters=entry.paper_parameters,
    )


def _folder_row(name: str, folder: Path, title: str) -> Row:
    architecture, width, size, parameters, problem = "", None, None, None, None
    try:
        described = read_folder_description(folder)
        architecture = str(described["architecture"])
        width = int(described["width"])
        size = preprocessing_from_dict(described["preprocessing"]).image_size
        parameters = _count(folder / HUB_FILE)
    except DerminoError as error:
        problem = error.what
    except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
        problem = f"it cannot be read ({error})"
    return Row(
        name=name,
        title=title,
        architecture=architecture,
        parameters=parameters,
        width=width,
        image_size=size,
        pooling="class token",
        licence="Apache-2.0" if name == "demo" else "yours",
        source=str(folder),
        file=HUB_FILE,
        here=None if problem else str(folder),
        paper_use="",
        problem=problem,
    )


def _count(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            names = weights.keys()
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    numbers = ("parameters", "width", "pixels")
    for heading in ("name", "what", *numbers, "here", "source", "licence", "in the paper"):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for row in rows:
        counts = (row.parameters, row.width, row.image_size)
        cells = (
            row.name,
            f"{row.title}: {row.problem}" if row.problem else row.title,
            *("" if count is None else f"{count:,}" for count in counts),
            "yes" if row.here else "no",
            _source(row),
            row.licence,
            row.paper_use,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(table)


def _source(row: Row) -> str:
    """In one word; the whole address is in the JSON."""
    entry = CATALOGUE.get(row.name)
    if entry is None or entry.own:
        return "folder"
    return "hub" if entry.hub else "by hand"
