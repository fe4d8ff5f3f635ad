"""HAM10000: 10,015 dermoscopic images of 7,470 lesions, seven diagnoses.

Tschandl, Rosendahl and Kittler, Scientific Data 5 (2018). Medical University of Vienna and
Cliff Rosendahl's practice. The download is a table, two archives of images and, apart from them,
one of lesion masks. The table is `HAM10000_metadata` with the ending .tab, .csv or none, as
Harvard Dataverse or a mirror serves it; images are found by name in any folder below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import (
    JPEG,
    Line,
    by_stem,
    entry,
    files_below,
    read_lines,
    refuse_missing,
    unknown_label,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

DIAGNOSES: Mapping[str, str] = MappingProxyType(
    {
        "akiec": "actinic keratosis / intraepithelial carcinoma",
        "bcc": "basal cell carcinoma",
        "bkl": "benign keratosis-like lesion",
        "df": "dermatofibroma",
        "mel": "melanoma",
        "nv": "melanocytic nevus",
        "vasc": "vascular lesion",
    }
)
"""The table's code -> diagnosis."""

MALIGNANT = frozenset({"akiec", "bcc", "mel"})
"""Codes that are malignant in the column `binary`."""

TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
COLUMNS = ("lesion_id", "image_id", "dx")
HEADER = ("image", "label", "binary", "group", "sex", "age", "localization", "dx_type", "mask")
_EXPECTED = (
    "HAM10000_metadata (.csv, .tab or without ending) and the folders "
    "HAM10000_images_part_1/ and HAM10000_images_part_2/"
)
_MASK = "_segmentation"


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked HAM10000 download.

    Parameters
    ----------
    raw
        Folder with the table; the images, and the masks `ISIC_..._segmentation.png` if they are
        wanted, in any folders in it. The manifest's images and masks are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (one of seven codes), `binary`, `group` (lesion), `sex`,
        `age` (years), `localization`, `dx_type` (how it was confirmed), `mask`.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the table or images are missing, or a diagnosis is unknown.
    """
    check_root(raw, _EXPECTED, lambda folder: _table(folder) is not None)
    table = _table(raw) or raw / TABLES[0]
    lines = read_lines(table, COLUMNS)
    if not lines:
        raise DerminoError("DATASET_LAYOUT", "The table names no image.", where=table)
    images = by_stem(files_below(raw, JPEG))
    masks = {
        name.removesuffix(_MASK): file
        for name, file in by_stem(files_below(raw, (f"{_MASK}.png",))).items()
    }
    missing = [line["image_id"] for line in lines if line["image_id"].casefold() not in images]
    refuse_missing(missing, len(lines), where=raw)
    rows: list[tuple[str, ...]] = []
    for line in sorted(lines, key=lambda line: line["image_id"]):
        name = line["image_id"].casefold()
        mask = masks.get(name)
        rows.append((entry(images[name], raw), *_facts(line), entry(mask, raw) if mask else ""))
    manifest = out / "manifest.csv"
    write_table(manifest, HEADER, rows)
    return manifest


def _facts(line: Line) -> tuple[str, ...]:
    code = line["dx"]
    if code not in DIAGNOSES:
        raise unknown_label(f"The diagnosis of {line['image_id']}", code, DIAGNOSES, line.where)
    binary = "malignant" if code in MALIGNANT else "benign"
    person = (line["lesion_id"], line.known("sex"), line.known("age"))
    return code, binary, *person, line.known("localization"), line["dx_type"]


def _table(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)
