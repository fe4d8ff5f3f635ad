"""Which files a backbone specification points at, and where they come from."""

from __future__ import annotations

from pathlib import Path

from dermino_core.backbone_catalogue import HUB_FILE
from dermino_core.backbone_spec import BackboneSpec, find_on_hub, read_folder_description
from dermino_core.errors import DerminoError

FOLDERS = ("demo", "folder")
"""Kinds of specifications that are a folder with model.json."""


def hub_weights(spec: BackboneSpec) -> Path:
    """The weights file of a specification of the kind `hub`, downloaded if need be.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE if there are no such weights, or they cannot be had.
    """
    if spec.entry is not None and spec.entry.hub is not None:
        return find_on_hub(spec.entry.hub, spec.entry.name, spec.entry.file, spec.entry.licence)
    from dermino_core.backbone_weights import build_model, hub_repository

    name = str(spec.architecture)
    repository = hub_repository(name)
    if repository is None:
        build_model(name, None)
        raise DerminoError(
            "BACKBONE_UNAVAILABLE",
            f"timm has no pretrained weights for {name!r}.",
            fix=f"Bring a checkpoint, --backbone {name}@FILE.safetensors, or use random:{name}.",
        )
    return find_on_hub(repository, name)


def files_of(spec: BackboneSpec, hub_file: Path | None) -> list[Path]:
    """All files that a backbone is made of, the weights last; none for random weights.

    Raises
    ------
    DerminoError
        MODEL_INVALID for a folder that is no backbone.
    """
    if spec.kind in FOLDERS and spec.path is not None:
        read_folder_description(spec.path)
        files = [spec.path / "model.json", spec.path / HUB_FILE]
        if not files[1].is_file():
            raise DerminoError(
                "MODEL_INVALID",
                f"The backbone folder has no {HUB_FILE}.",
                where=spec.path,
                fix="Copy the whole folder again from where it was made.",
            )
        return files
    return [path for path in (hub_file or spec.path,) if path is not None]


def source_of(spec: BackboneSpec, weights: Path | None) -> str:
    """Where the weights come from, for people."""
    if spec.kind == "random":
        return "seeded random weights"
    if spec.kind == "demo":
        return "comes with dermino"
    return str(spec.path if spec.path is not None else weights)
