"""`dermino caption`: captions of images, from a captioner's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say, warn
from dermino_core.errors import DerminoError
from dermino_core.manifest_table import printable


def caption(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[Path, typer.Option(help="Folder of a captioner.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="Where the backbone is on this machine, if not where training had it."),
    ] = None,
    language_model: Annotated[
        str | None,
        typer.Option(help="Where the language model is: a folder, or OWNER/NAME on the hub."),
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of the beam search; 1: greedy.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of text.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Describe images in words. Research software: not for diagnosis.

    Unreadable images are listed with their reason; the exit code is then 4.

    Example:

        dermino caption --model RUN/captioner lesion.jpg other.jpg
    """
    from dermino_core.evaluation.captioning_images import caption_images

    rows = caption_images(
        images,
        model,
        backbone=backbone,
        language_model=language_model,
        beams=beams,
        device=device,
    )
    for row in rows:
        if as_json:
            about = {"unreadable": row.reason} if row.text is None else {"caption": row.text}
            say(json.dumps({"image": str(row.image)} | about))
        else:
            text = f"unreadable: {row.reason}" if row.text is None else printable(row.text)
            say(f"{printable(str(row.image))}: {text}")
    warn("Research software, not a medical device: not for diagnosis. Captions may be untrue.")
    if bad := [row for row in rows if row.text is None]:
        raise DerminoError(
            "IMAGE_UNREADABLE",
            f"{len(bad)} of {len(rows)} images could not be read.",
            fix="The lines above say why.",
        )
