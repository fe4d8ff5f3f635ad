"""Lesion segmentation of the ISIC challenges 2016, 2017 and 2018: dermoscopic images with masks.

Gutman et al., arXiv:1605.01397; Codella et al., arXiv:1710.05006 and arXiv:1902.03368. Every part
of a challenge (training, validation, test) is one archive of images and one of masks, each
unpacked into a folder of the archive's name; an archive unpacked one level deeper is found, too.
The paper takes the validation and the test parts together, 379 + 0, 150 + 600 and 100 + 1,000
images, and divides them in halves (section 4.4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from dermino_core.datasets.layout import check_root, child
from dermino_core.datasets.originals import (
    JPEG,
    Split,
    by_stem,
    check_choice,
    entry,
    files_below,
    refuse_missing,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

Parts = Mapping[str, tuple[str, str]]
PartsWanted = Literal["paper", "all"]
Year = Literal["2016", "2017", "2018"]

YEARS: Mapping[str, Parts] = MappingProxyType(
    {
        "2016": {
            "train": (
                "ISBI2016_ISIC_Part1_Training_Data",
                "ISBI2016_ISIC_Part1_Training_GroundTruth",
            ),
            "test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
        },
        "2017": {
            "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
            "val": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
            "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
        },
        "2018": {
            "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
            "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
            "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
        },
    }
)
"""Year -> part -> the folders of its images and of its masks."""

_MASK = "_segmentation"


def prepare(
    raw: Path, out: Path, *, year: Year, parts: PartsWanted = "paper", split: Split = "halves"
) -> Path:
    """Write `out/manifest.csv` for the unpacked archives of one year.

    Parameters
    ----------
    raw
        Folder with the folders of :data:`YEARS`. The manifest's images and masks are relative
        to it.
    year
        `"2016"`, `"2017"` or `"2018"`.
    parts
        `"paper"`: validation and test; `"all"`: training, too.
    split
        `"halves"`: left to whoever uses the manifest, as in the paper; `"published"`: the
        challenge's own, in the column `split`.

    Returns
    -------
    Path
        The manifest: `image`, `mask`, and `split` if it is the published one.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if folders, images or masks are missing; `CONFIG_INVALID` for another
        value of an option.
    """
    check_choice("year", year, Year)
    check_choice("parts", parts, PartsWanted)
    check_choice("split", split, Split)
    wanted = {name: pair for name, pair in YEARS[year].items() if parts == "all" or name != "train"}
    folders = [folder for pair in wanted.values() for folder in pair]

    def fits(folder: Path) -> bool:
        found = (child(folder, name) for name in folders)
        return all(place is not None and place.is_dir() for place in found)

    check_root(raw, "the folders " + ", ".join(f"{name}/" for name in folders), fits)
    rows: list[tuple[str, ...]] = []
    for part, (images, masks) in wanted.items():
        pairs = _pairs(child(raw, images) or raw / images, child(raw, masks) or raw / masks)
        rows += [
            (entry(image, raw), entry(mask, raw), *([part] if split == "published" else []))
            for image, mask in pairs
        ]
    manifest = out / "manifest.csv"
    header = ("image", "mask", "split") if split == "published" else ("image", "mask")
    write_table(manifest, header, rows)
    return manifest


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Each image of a part with its mask, by name. Superpixels, in PNG files, are no images."""
    image_of = by_stem(files_below(images, JPEG))
    mask_of = {
        name.removesuffix(_MASK): file
        for name, file in by_stem(files_below(masks, (f"{_MASK}.png",))).items()
    }
    if not image_of:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"The folder {images.name}/ has no images ISIC_....jpg.",
            where=images,
            fix="Unpack the download again.",
        )
    missing = [f"{image_of[name].stem}{_MASK}.png" for name in image_of if name not in mask_of]
    refuse_missing(missing, len(image_of), where=masks, kind="masks")
    lone = [f"{name.upper()}.jpg" for name in mask_of if name not in image_of]
    refuse_missing(lone, len(mask_of), where=images, kind="images that have a mask")
    return [(image_of[name], mask_of[name]) for name in sorted(image_of)]
