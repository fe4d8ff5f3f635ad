"""`dermino segment`: the outline of the lesion in an image, from a segmentation model's folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say, warn
from dermino_core.errors import DerminoError
from dermino_core.manifest_table import printable


def segment(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    model: Annotated[Path, typer.Option(help="Folder of a trained segmentation head.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the mask goes; must not exist. Default: NAME-mask.png, here."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Where the backbone is on this machine, if not where training had it."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Write the lesion's mask: white on black, of the image's size as a viewer shows it.

    Without --out the mask goes to the current folder. Research software: not for diagnosis.

    Example:

        dermino segment lesion.jpg --model RUN/linear --out mask.png
    """
    file = out or Path(f"{image.stem}-mask.png")
    if file.suffix.lower() != ".png":
        raise DerminoError(
            "CONFIG_INVALID", "A mask is written as PNG.", where=file, fix="--out MASK.png"
        )
    if file.exists():
        raise DerminoError(
            "OUTPUT_EXISTS",
            "This file exists already.",
            where=file,
            fix="Remove it, or name another with --out.",
        )
    from PIL import Image

    from dermino_core.evaluation.segmentation_model import segment_image
    from dermino_core.files import write_atomically

    mask, info = segment_image(image, model, backbone=backbone, device=device)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    try:
        write_atomically(file, buffer.getvalue())
    except OSError as error:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The mask cannot be written: {error.strerror or error}.",
            where=file,
            fix="Name another place with --out.",
        ) from error
    say(f"{printable(str(file))}: lesion on {100 * mask.mean():.1f} % of the image")
    if (why := info.backbone.unfit_because) is not None:
        warn(f"The backbone {info.backbone.name} {why}: its masks say nothing about skin.")
    warn("Research software, not a medical device: not for diagnosis.")
