"""The folder of a captioner: `model.safetensors`, `model.json`, `README.md` (model card).

It holds the projection and the LoRA matrices. Backbone and language model are named, each with its
fingerprint, so that captions are written with the very models it was trained on or not at all.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dermino_core import __version__
from dermino_core.errors import DerminoError
from dermino_core.evaluation.captioning_language import Weights, load_language_model
from dermino_core.evaluation.captioning_model import Captioner, CaptionerShape
from dermino_core.files import write_atomically
from dermino_core.precision import resolve_device
from dermino_core.results import BackboneInfo


class CaptionerInfo(BaseModel):
    """`model.json`: what the captioner is, what it needs, and what it was trained on.

    `width`, `image_tokens`, `prompt`, `longest`, `rank`, `alpha`, `dropout`, `targets`: as
    :class:`~dermino_core.evaluation.captioning_model.CaptionerShape`.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    kind: Literal["captioner"] = "captioner"
    language_model: str
    language_fingerprint: str
    weights: Literal["fp32", "bf16", "4bit"]
    width: int
    image_tokens: int
    prompt: str
    longest: int
    rank: int
    alpha: int
    dropout: float
    targets: list[str] | Literal["all-linear"]
    backbone: BackboneInfo
    backbone_spec: str
    trained_on: int
    seed: int
    created: str
    dermino_version: str

    def shape(self) -> CaptionerShape:
        """Of the captioner."""
        return CaptionerShape(
            width=self.width,
            image_tokens=self.image_tokens,
            prompt=self.prompt,
            longest=self.longest,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=self.targets if isinstance(self.targets, str) else tuple(self.targets),
        )


def save_captioner(
    folder: Path,
    captioner: Captioner,
    *,
    backbone: BackboneInfo,
    backbone_spec: str,
    trained_on: int,
    seed: int,
) -> CaptionerInfo:
    """Write the three files; `model.json` last, so that a folder with it is complete.

    Parameters
    ----------
    backbone, backbone_spec
        What computed the features, and where it is on this machine.
    trained_on
        Number of training images.
    """
    from safetensors.torch import save

    language, shape = captioner.language, captioner.shape
    place = Path(language.name).expanduser()
    info = CaptionerInfo(
        language_model=str(place.resolve()) if place.is_dir() else language.name,
        language_fingerprint=language.fingerprint,
        weights=language.weights,  # pyright: ignore[reportArgumentType]
        width=shape.width,
        image_tokens=shape.image_tokens,
        prompt=shape.prompt,
        longest=shape.longest,
        rank=shape.rank,
        alpha=shape.alpha,
        dropout=shape.dropout,
        targets=shape.targets if isinstance(shape.targets, str) else list(shape.targets or ()),
        backbone=backbone,
        backbone_spec=backbone_spec,
        trained_on=trained_on,
        seed=seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dermino_version=__version__,
    )
    values = {k: v.detach().cpu().contiguous() for k, v in captioner.matrices().items()}
    write_atomically(folder / "model.safetensors", save(values))
    write_atomically(folder / "README.md", _card(info))
    write_atomically(folder / "model.json", info.model_dump_json(indent=1) + "\n")
    return info


def read_captioner_info(folder: Path) -> CaptionerInfo:
    """Read `model.json`.

    Raises
    ------
    DerminoError
        `MODEL_INVALID`.
    """
    try:
        text = (folder / "model.json").read_text(encoding="utf-8")
        return CaptionerInfo.model_validate_json(text)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise _invalid(folder, str(error).splitlines()[0]) from error


def load_captioner(
    folder: Path,
    *,
    backbone_fingerprint: str,
    language_model: str | None = None,
    weights: Weights | None = None,
    device: str = "auto",
) -> Captioner:
    """Load a captioner for features of a backbone.

    Parameters
    ----------
    backbone_fingerprint
        Of the backbone whose features it is to read.
    language_model
        Where the language model is on this machine, if not where it was in training.
    weights
        As in training by default, where this machine can.

    Raises
    ------
    DerminoError
        `BACKBONE_MISMATCH` if backbone or language model is not the one it was trained with;
        `MODEL_INVALID` if a file is missing or damaged, or a matrix is missing, superfluous, of
        another shape or not finite; what loading the language model raises.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    info = read_captioner_info(folder)
    require_backbone(info, backbone_fingerprint, folder)
    try:
        values = load((folder / "model.safetensors").read_bytes())
    except (OSError, SafetensorError) as error:
        raise _invalid(folder, str(error).splitlines()[0]) from error
    place = language_model or info.language_model
    language = load_language_model(place, weights=weights or _default(info, device), device=device)
    if language.fingerprint != info.language_fingerprint:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            f"This captioner was trained with the language model {info.language_model} "
            f"({info.language_fingerprint[:12]}), not with {language.fingerprint[:12]}.",
            where=place,
            fix="Bring that language model and name its folder with --language-model.",
        )
    captioner = Captioner(language, info.shape(), seed=info.seed)
    matrices = captioner.matrices()
    _check(folder, values, matrices)
    with torch.no_grad():
        for name, matrix in matrices.items():
            matrix.copy_(values[name])
    return captioner


def require_backbone(info: CaptionerInfo, fingerprint: str, where: object) -> None:
    """Check that a backbone is the captioner's.

    Raises
    ------
    DerminoError
        `BACKBONE_MISMATCH`.
    """
    if fingerprint != info.backbone.fingerprint:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            f"This captioner was trained on the backbone {info.backbone.fingerprint[:12]}, not on "
            f"{fingerprint[:12]}.",
            where=where,
            fix=f"Bring the weights of {info.backbone.name} and name them with --backbone.",
        )


def _default(info: CaptionerInfo, device: str) -> Weights:
    """As in training, but a machine without a GPU computes in fp32."""
    return info.weights if resolve_device(device).startswith("cuda") else "fp32"


def _check(folder: Path, values: dict[str, Any], matrices: dict[str, Any]) -> None:
    if odd := sorted(set(values) ^ set(matrices)):
        word = "superfluous" if odd[0] in values else "missing"
        raise _invalid(folder, f"{odd[0]} is {word}")
    for name, matrix in matrices.items():
        found = values[name]
        if found.shape != matrix.shape or found.dtype != matrix.dtype:
            raise _invalid(
                folder,
                f"{name} is {found.dtype} {list(found.shape)}, not {matrix.dtype} "
                f"{list(matrix.shape)}",
            )
        if not found.isfinite().all():
            raise _invalid(folder, f"{name} holds NaN or infinite values")


def _invalid(folder: Path, why: str) -> DerminoError:
    return DerminoError(
        "MODEL_INVALID",
        f"This captioner cannot be used: {why}",
        where=folder,
        fix="Give the folder of a captioner, or copy it again from where it was made.",
    )


def _card(info: CaptionerInfo) -> str:
    return f"""# A captioner of skin images

It reads features of the frozen backbone `{info.backbone.name}` (fingerprint
`{info.backbone.fingerprint[:16]}`) with the frozen language model `{info.language_model}`
(fingerprint `{info.language_fingerprint[:16]}`). This folder holds what was trained: a linear
projection and LoRA matrices (rank {info.rank}). Trained on {info.trained_on} images (seed
{info.seed}) with dermino {info.dermino_version} on {info.created}.

Intended use: research. Not a medical device, not for diagnosis. A caption reads well whether or not
it is true: it may name findings that the image does not show.

    dermino caption --model THIS_FOLDER IMAGE...
"""
