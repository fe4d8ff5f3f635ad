"""Small sources of images for tests of pretraining's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dermino_core.manifest import Record, write_manifest


def make_source(
    folder: Path,
    labels: Sequence[str | None],
    *,
    splits: Sequence[str | None] | None = None,
    size: tuple[int, int] = (40, 30),
) -> Path:
    """A folder of photographs, all different, and its manifest."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    records = []
    for index, label in enumerate(labels):
        name = f"{index:03d}.png"
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / name)
        split = splits[index] if splits else None
        records.append(Record(name, label=label, split=split))
    write_manifest(folder / "manifest.csv", records)
    return folder / "manifest.csv"
