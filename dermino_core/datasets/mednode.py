"""MED-NODE: 170 photographs, 70 melanomas and 100 naevi, in two folders.

Giotis et al., Expert Systems with Applications 42 (2015). Department of Dermatology, University
Medical Center Groningen.
"""

from __future__ import annotations

from pathlib import Path

from dermino_core.datasets.layout import check_root, child
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

LABELS = ("melanoma", "naevus")
"""The data set's two folders, and its two labels."""

_EXPECTED = "the folders melanoma/ and naevus/ of MED-NODE"
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked MED-NODE download.

    Parameters
    ----------
    raw
        Folder with `melanoma/` and `naevus/`. The manifest's images are relative to it.

    Returns
    -------
    Path
        The manifest: `image` and `label` (`melanoma` or `naevus`).

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the folders are not there or one has no image.
    """
    check_root(raw, _EXPECTED, _fits)
    rows: list[tuple[str, str]] = []
    for label in LABELS:
        folder = child(raw, label)
        images = _images(folder) if folder else []
        if not images:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The folder {label}/ has no images.",
                where=raw / label,
                fix="Unpack the download again.",
            )
        rows += [(image.relative_to(raw).as_posix(), label) for image in images]
    manifest = out / "manifest.csv"
    write_table(manifest, ("image", "label"), rows)
    return manifest


def _fits(folder: Path) -> bool:
    found = [child(folder, label) for label in LABELS]
    return all(entry is not None and entry.is_dir() for entry in found)


def _images(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in _IMAGES and not file.name.startswith(".")
    )
