"""From image files and a model folder to class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermino_core.backbone import load_backbone
from dermino_core.errors import DerminoError
from dermino_core.image_limits import ImageError
from dermino_core.images import decode_image, prepare_image
from dermino_core.model_folder import load_model

BATCH = 16
"""Images embedded at once."""


@dataclass(frozen=True)
class Prediction:
    """Probabilities of one image, or why there are none."""

    image: Path
    probabilities: list[float] | None
    reason: str | None = None

    def as_dict(self, classes: Sequence[str]) -> dict[str, object]:
        """For JSON."""
        if self.probabilities is None:
            return {"unreadable": self.reason}
        return {"probabilities": dict(zip(classes, self.probabilities, strict=True))}


def predict_images(
    images: Sequence[Path], model: Path, *, backbone: str | None = None, device: str = "auto"
) -> tuple[list[str], list[Prediction]]:
    """Class names and one prediction per image, in order.

    Raises
    ------
    DerminoError
        `MODEL_INVALID`, `BACKBONE_UNAVAILABLE`, or `BACKBONE_MISMATCH` when the backbone is not
        the one the head was trained on.
    """
    head, info = load_model(model)
    encoder = load_backbone(
        backbone or info.backbone_spec, precision=info.backbone.precision, device=device
    )
    if encoder.card.fingerprint != info.backbone.fingerprint:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            f"This model was trained on the backbone {info.backbone.fingerprint[:12]}, not on "
            f"{encoder.card.fingerprint[:12]}.",
            where=backbone or info.backbone_spec,
            fix=f"Bring the weights of {info.backbone.name} and name them with --backbone.",
        )
    settings = encoder.card.preprocessing
    short_side = round(settings.image_size / settings.crop_pct)  # as features are extracted
    results: list[Prediction] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        pixels: list[np.ndarray] = []
        reasons: list[str | None] = []
        for image in batch:
            try:
                picture = decode_image(image, short_side=short_side)
            except ImageError as error:
                reasons.append(error.reason)
                continue
            reasons.append(None)
            pixels.append(
                prepare_image(
                    picture,
                    settings.image_size,
                    interpolation=settings.interpolation,
                    crop_pct=settings.crop_pct,
                )
            )
        rows = iter(head.probabilities(encoder.embed(np.stack(pixels))) if pixels else ())
        results += [
            Prediction(image, None, reason)
            if reason is not None
            else Prediction(image, [float(p) for p in next(rows)])
            for image, reason in zip(batch, reasons, strict=True)
        ]
    return info.classes, results
