"""From image files and a captioner's folder to captions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermino_core.backbone import Backbone, describe_backbone, load_backbone
from dermino_core.errors import DerminoError
from dermino_core.evaluation.captioning_folder import (
    CaptionerInfo,
    load_captioner,
    read_captioner_info,
    require_backbone,
)
from dermino_core.evaluation.captioning_model import Float32
from dermino_core.features import extract_features
from dermino_core.image_limits import ImageError
from dermino_core.images import decode_image, prepare_image
from dermino_core.progress import progress_bar


@dataclass(frozen=True)
class Caption:
    """The caption of one image, or why there is none."""

    image: Path
    text: str | None
    reason: str | None = None


def caption_images(
    images: Sequence[Path],
    model: Path,
    *,
    backbone: str | None = None,
    language_model: str | None = None,
    beams: int = 1,
    device: str = "auto",
) -> list[Caption]:
    """One caption for each image, in order.

    Parameters
    ----------
    model
        Folder of a captioner that reads class tokens or patch tokens.
    backbone, language_model
        Where they are on this machine, if not where they were in training.

    Raises
    ------
    DerminoError
        As :func:`~dermino_core.evaluation.captioning_folder.load_captioner`, and what loading the
        backbone raises; `CONFIG_INVALID` for a captioner that reads something else.
    """
    info = read_captioner_info(model)
    spec = backbone or info.backbone_spec
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        card = describe_backbone(spec, cache_dir=cache)
        require_backbone(info, card.fingerprint, spec)
        n_patches = (card.preprocessing.image_size // card.patch_size) ** 2
        if info.width != card.width or info.image_tokens not in (1, n_patches):
            raise DerminoError(
                "CONFIG_INVALID",
                f"This captioner reads {info.image_tokens} vectors of length {info.width}: neither "
                f"the class token nor the {n_patches} patch tokens of the backbone.",
                where=model,
                fix="Compute its features as they were for training, and caption those.",
            )
        captioner = load_captioner(
            model,
            backbone_fingerprint=card.fingerprint,
            language_model=language_model,
            device=device,
        )
        features, reasons = _features(images, spec, info, cache, device)
        texts = iter(captioner.generate(features, beams=beams))
    return [
        Caption(image, None, reason) if reason is not None else Caption(image, next(texts))
        for image, reason in zip(images, reasons, strict=True)
    ]


def patch_tokens(images: Sequence[Path], backbone: Backbone) -> tuple[Float32, list[str | None]]:
    """What a backbone knows of each patch after its last norm, for captioning.

    Returns
    -------
    float32 [n_readable, k, D], row by row; and why an image could not be read, None if it was, [n].

    Raises
    ------
    DerminoError
        As :meth:`dermino_core.backbone.Backbone.patches`.
    """
    settings = backbone.card.preprocessing
    short_side = round(settings.image_size / settings.crop_pct)  # as features are extracted
    tokens: list[Float32] = []
    reasons: list[str | None] = []
    with progress_bar("embedding images", len(images)) as bar:
        for start in range(0, len(images), backbone.batch_size):
            pixels: list[np.ndarray] = []
            for path in images[start : start + backbone.batch_size]:
                try:
                    picture = decode_image(path, short_side=short_side)
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
            if pixels:
                found = backbone.patches(np.stack(pixels), depths=1).astype(np.float32)
                tokens.append(found.reshape(len(pixels), -1, found.shape[-1]))
            bar.advance(len(reasons) - start)
    k = (settings.image_size // backbone.card.patch_size) ** 2
    empty = np.empty((0, k, backbone.card.width), dtype=np.float32)
    return np.concatenate([empty, *tokens]), reasons


def _features(
    images: Sequence[Path], spec: str, info: CaptionerInfo, cache: Path, device: str
) -> tuple[Float32, list[str | None]]:
    precision = info.backbone.precision
    if info.image_tokens > 1:
        return patch_tokens(images, load_backbone(spec, precision=precision, device=device))
    table = extract_features(
        images, spec, cache=cache, precision=precision, device=device, title="images"
    )
    reasons = {bad.row: bad.reason for bad in table.unreadable}
    return table.vectors, [reasons.get(row) for row in range(len(images))]
