"""`dermino predict`: class probabilities for images, from a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say, warn
from dermino_core.errors import DerminoError
from dermino_core.manifest_table import printable


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[Path, typer.Option(help="Model folder: RUN/model.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="Where the backbone is on this machine, if not where the run had it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of a table.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Print the class probabilities of images. Research software: not for diagnosis.

    Unreadable images are listed with their reason; the exit code is then 4.

    Example:

        dermino predict --model RUN/model lesion.jpg other.jpg
    """
    from dermino_core.prediction import predict_images

    classes, rows = predict_images(images, model, backbone=backbone, device=device)
    names = [printable(str(row.image)) for row in rows]
    width = max(map(len, names))
    if not as_json:
        say(f"{'image':<{width}}  " + "  ".join(f"{label:>12}" for label in classes))
    for name, row in zip(names, rows, strict=True):
        if as_json:
            say(json.dumps({"image": str(row.image)} | row.as_dict(classes)))
        elif row.probabilities is None:
            say(f"{name:<{width}}  unreadable: {row.reason}")
        else:
            say(f"{name:<{width}}  " + "  ".join(f"{p:12.4f}" for p in row.probabilities))
    warn("Research software, not a medical device: not for diagnosis.")
    if bad := [row for row in rows if row.probabilities is None]:
        raise DerminoError(
            "IMAGE_UNREADABLE",
            f"{len(bad)} of {len(rows)} images could not be read.",
            fix="The table above says why.",
        )
