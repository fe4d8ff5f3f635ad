"""The model folder of a segmentation head: `model.safetensors`, `model.json`, `README.md`.

As :mod:`dermino_core.model_folder` for classifiers: the folder holds the head and names its
backbone by fingerprint.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermino_core import __version__
from dermino_core.backbone import load_backbone
from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_data import whole_square
from dermino_core.evaluation.segmentation_scores import Mask
from dermino_core.evaluation.segmentation_settings import SegmentationSettings
from dermino_core.files import write_atomically
from dermino_core.image_limits import ImageError
from dermino_core.images import decode_image
from dermino_core.results import BackboneInfo, Estimate

if TYPE_CHECKING:
    from dermino_core.evaluation.segmentation_heads import Head


class SegmentationInfo(BaseModel):
    """`model.json`: what the head is, what it needs, and how good it was."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    kind: Literal["segmentation-head"] = "segmentation-head"
    title: str
    head: Literal["linear", "upernet"]
    backbone: BackboneInfo
    backbone_spec: str
    settings: SegmentationSettings
    seed: int
    n_train: int
    n_test: int
    scores: dict[str, Estimate] = Field(description="metric -> mean over the test images")
    notes: list[str] = []
    created: str = Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"),
        description="ISO 8601, UTC",
    )
    dermino_version: str = __version__


def save_segmentation_model(folder: Path, head: Head, info: SegmentationInfo) -> None:
    """Write the three files; `model.json` last, so that a folder with it is complete."""
    from safetensors.torch import save

    weights = {name: value.cpu().contiguous() for name, value in head.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(weights))
    write_atomically(folder / "README.md", _card(info))
    write_atomically(folder / "model.json", info.model_dump_json(indent=1) + "\n")


def load_segmentation_model(folder: Path) -> tuple[Head, SegmentationInfo]:
    """Read a model folder; the head is in evaluation mode, on the CPU.

    Raises
    ------
    DerminoError
        `MODEL_INVALID` if a file is missing or damaged, a tensor is missing, superfluous or
        misshapen, or a value is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from dermino_core.evaluation.segmentation_heads import build_head

    try:
        text = (folder / "model.json").read_text(encoding="utf-8")
        info = SegmentationInfo.model_validate_json(text)
        weights = load((folder / "model.safetensors").read_bytes())
        head = build_head(info.head, info.backbone.width, channels=info.settings.channels)
        head.load_state_dict(weights, strict=True)
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise ValueError("it holds NaN or infinite values")
    except (OSError, SafetensorError, ValidationError, ValueError, RuntimeError) as error:
        raise DerminoError(
            "MODEL_INVALID",
            f"This segmentation model cannot be used: {' '.join(str(error).split())[:300]}",
            where=folder,
            fix="Give the folder of one head, as a segmentation task wrote it.",
        ) from error
    return head.eval(), info


def segment_image(
    image: Path, model: Path, *, backbone: str | None = None, device: str = "auto"
) -> tuple[Mask, SegmentationInfo]:
    """The lesion in an image: bool [height, width] of the upright image, and what found it.

    Parameters
    ----------
    model
        A model folder.
    backbone
        Where the backbone is on this machine, if not where the head's training had it.

    Raises
    ------
    DerminoError
        `MODEL_INVALID`, `IMAGE_UNREADABLE`, `BACKBONE_UNAVAILABLE`, or `BACKBONE_MISMATCH` when
        the backbone is not the one the head was trained on.
    """
    from dermino_core.evaluation.segmentation_training import head_logits, masks_of

    head, info = load_segmentation_model(model)
    try:
        picture = decode_image(image)
    except ImageError as error:
        raise DerminoError(
            "IMAGE_UNREADABLE", f"The image cannot be read: {error.reason}.", where=image
        ) from error
    spec = backbone or info.backbone_spec
    encoder = load_backbone(
        spec, precision=info.backbone.precision, device=device, image_size=info.settings.image_size
    )
    if encoder.card.fingerprint != info.backbone.fingerprint:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            f"This model was trained on the backbone {info.backbone.fingerprint[:12]}, not on "
            f"{encoder.card.fingerprint[:12]}.",
            where=spec,
            fix=f"Bring the weights of {info.backbone.name} and name them with --backbone.",
        )
    pixels = whole_square(
        picture, info.settings.image_size, encoder.card.preprocessing.interpolation
    )
    features = encoder.patches(pixels[None], head.depths)
    logits = head_logits(head.to(encoder.device), features)
    return masks_of(logits, (picture.height, picture.width))[0], info


def _card(info: SegmentationInfo) -> str:
    kind = {"linear": "A linear head", "upernet": "A UperNet"}[info.head]
    scores = "\n".join(
        f"| {metric} | {_interval(score)} |" for metric, score in info.scores.items()
    )
    settings = info.settings
    place = "the masks' own size" if settings.score_at == "original" else "the input's size"
    notes = [f"- {note}" for note in info.notes]
    if (why := info.backbone.unfit_because) is not None:
        notes.insert(0, f"- The backbone {why}: its masks say nothing about skin.")
    warnings = "\n".join(notes) or "- none"
    return f"""# {info.title}: {info.head}

{kind} that outlines the lesion in an image of skin, on the frozen backbone `{info.backbone.name}`
(fingerprint `{info.backbone.fingerprint[:16]}`), trained on {info.n_train} images for
{settings.epochs} epochs (Adam, learning rate {settings.learning_rate:g}, batches of
{settings.batch_size}, cross-entropy + {settings.dice_weight:g} x Dice, seed {info.seed}) with
dermino {info.dermino_version} on {info.created}.

Intended use: research. Not a medical device, not for diagnosis.

## Overlap with the masks of {info.n_test} test images

Mean over images and 95 % interval, at {place} ({settings.image_size} pixels a side is the input's).

| Metric | Value |
| --- | --- |
{scores}

## Read this first

{warnings}

## Use

    dermino segment IMAGE --model THIS_FOLDER --out MASK.png
"""


def _interval(score: Estimate) -> str:
    if score.value is None:
        return "undefined"
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
