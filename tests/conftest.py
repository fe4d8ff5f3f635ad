"""Fixtures shared by every test: real images and weights where this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images (`data/`) and weights (`weights/`)."""
    folder = Path(os.environ.get("DERMINO_SHARED", REPOSITORY.parent / "shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"no real images: set DERMINO_SHARED to a folder with data/ ({folder})")
    return folder


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """`ph2`, `isic2017`, `ham10000`, each with `images/` and `labels.csv`."""
    return shared / "data"


@pytest.fixture(scope="session")
def dinov2_small(shared: Path) -> Path:
    """A real DINOv2 ViT-S/14 checkpoint."""
    weights = shared / "weights" / "dinov2_vits14.safetensors"
    if not weights.is_file():
        pytest.skip(f"no weights file {weights.name} in {weights.parent}")
    return weights
