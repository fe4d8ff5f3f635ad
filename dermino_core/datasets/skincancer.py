"""Skincancer: 206 photographs of pigmented lesions with masks, from the University of Waterloo.

Vision and Image Processing Lab: 119 melanomas and 87 others, taken from the public collections
DermIS and DermQuest and outlined by hand. The download is two archives, `Skin Image Data Set-1`
(melanoma) and `-2` (not melanoma), each `skin_data/<class>/<dermis or dermquest>/` with pairs
`..._orig.jpg` and `..._contour.png`; the latter is the filled outline.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from dermino_core.datasets.layout import check_root, child
from dermino_core.datasets.originals import JPEG, entry, files_below, refuse_missing
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

LABELS: Mapping[str, str] = MappingProxyType(
    {"melanoma": "melanoma", "notmelanoma": "not melanoma"}
)
"""The download's folder -> label."""

_EXPECTED = (
    "both archives, 'Skin Image Data Set-1/' and 'Skin Image Data Set-2/', with "
    "skin_data/melanoma/ and skin_data/notmelanoma/"
)
_IMAGE, _MASK = "_orig", "_contour"


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for the two unpacked archives.

    Parameters
    ----------
    raw
        Folder that both archives are unpacked in, with or without a folder for each. The
        manifest's images and masks are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (melanoma or not melanoma), `mask`, `source` (dermis or
        dermquest).

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if a folder has no images or an image has no mask.
    """
    check_root(raw, _EXPECTED, lambda folder: len(_folders(folder)) == len(LABELS))
    rows: list[tuple[str, str, str, str]] = []
    for name, folder in _folders(raw).items():
        pictures = [f for f in files_below(folder, JPEG) if f.stem.lower().endswith(_IMAGE)]
        masks = {_key(file, _MASK): file for file in files_below(folder, (f"{_MASK}.png",))}
        if not pictures:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The folder {name}/ has no images ..._orig.jpg.",
                where=folder,
                fix="Unpack the download again.",
            )
        pairs = [(image, masks.get(_key(image, _IMAGE))) for image in pictures]
        missing = [f"that of {image.name}" for image, mask in pairs if mask is None]
        refuse_missing(missing, len(pairs), where=folder, kind="masks")
        rows += [
            (entry(image, raw), LABELS[name], entry(mask, raw), image.parent.name.lower())
            for image, mask in pairs
            if mask is not None
        ]
    manifest = out / "manifest.csv"
    write_table(manifest, ("image", "label", "mask", "source"), rows)
    return manifest


def _key(file: Path, suffix: str) -> tuple[Path, str]:
    """What an image and its mask have in common; the two collections may use a name each."""
    return file.parent, file.stem.casefold().removesuffix(suffix)


def _folders(raw: Path) -> dict[str, Path]:
    """The download's two folders, as far as they are here: up to two levels above `skin_data/`."""
    found: dict[str, Path] = {}
    level = [raw]
    for _ in range(3):
        for folder in level:
            data = child(folder, "skin_data")
            for name in LABELS:
                place = child(data, name) if data is not None and data.is_dir() else None
                if place is not None and place.is_dir():
                    found.setdefault(name, place)
        level = [
            below
            for folder in level
            for below in sorted(folder.iterdir())
            if "skin" in below.name.lower() and below.is_dir()
        ]
    return found
