"""DermNet: some 19,500 photographs in 23 categories, as they lie at Kaggle.

From dermnet.com. Two folders, `train/` and `test/`, each with a folder for every category. A
category holds many diseases; nothing is known of patients, and pictures of one patient often follow
each other. The paper curated 18,856 images, and does not say which.
"""

from __future__ import annotations

import re
from pathlib import Path

from dermino_core.datasets.layout import check_root, child
from dermino_core.datasets.originals import (
    PHOTOGRAPHS,
    entry,
    files_below,
    refuse_missing,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

SPLITS = ("train", "test")
CATEGORIES = (
    "Acne and Rosacea Photos",
    "Actinic Keratosis Basal Cell Carcinoma and other Malignant Lesions",
    "Atopic Dermatitis Photos",
    "Bullous Disease Photos",
    "Cellulitis Impetigo and other Bacterial Infections",
    "Eczema Photos",
    "Exanthems and Drug Eruptions",
    "Hair Loss Photos Alopecia and other Hair Diseases",
    "Herpes HPV and other STDs Photos",
    "Light Diseases and Disorders of Pigmentation",
    "Lupus and other Connective Tissue diseases",
    "Melanoma Skin Cancer Nevi and Moles",
    "Nail Fungus and other Nail Disease",
    "Poison Ivy Photos and other Contact Dermatitis",
    "Psoriasis pictures Lichen Planus and related diseases",
    "Scabies Lyme Disease and other Infestations and Bites",
    "Seborrheic Keratoses and other Benign Tumors",
    "Systemic Disease",
    "Tinea Ringworm Candidiasis and other Fungal Infections",
    "Urticaria Hives",
    "Vascular Tumors",
    "Vasculitis Photos",
    "Warts Molluscum and other Viral Infections",
)
"""The names of the folders."""

_EXPECTED = "the folders train/ and test/ of DermNet, each with its 23 categories"
_PICTURES = re.compile(r"\s*\b(photos|pictures)\b", re.IGNORECASE)


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked DermNet archive.

    Parameters
    ----------
    raw
        Folder with `train/` and `test/`. The manifest's images are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (the category, without the words photos and pictures),
        `split`.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if a category is missing, has no image, or is none of the 23.
    """
    check_root(raw, _EXPECTED, _fits)
    rows = [row for split in SPLITS for row in _rows(raw, split)]
    manifest = out / "manifest.csv"
    write_table(manifest, ("image", "label", "split"), rows)
    return manifest


def label_of(category: str) -> str:
    """A category's label.

    Example
    -------
    >>> label_of("Poison Ivy Photos and other Contact Dermatitis")
    'Poison Ivy and other Contact Dermatitis'
    """
    return _PICTURES.sub("", category)


def _rows(raw: Path, split: str) -> list[tuple[str, str, str]]:
    folder = child(raw, split) or raw / split
    absent = {name.casefold(): name for name in CATEGORIES}
    rows: list[tuple[str, str, str]] = []
    for inside in sorted(folder.iterdir()):
        if not inside.is_dir() or inside.name.startswith("."):
            continue
        name = absent.pop(inside.name.casefold(), None)
        if name is None:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The folder {inside.name!r} is none of DermNet's 23 categories.",
                where=inside,
                fix="Unpack the archive again, into an empty folder.",
            )
        images = files_below(inside, PHOTOGRAPHS)
        if not images:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The category {name!r} has no image.",
                where=inside,
                fix="Unpack the archive again.",
            )
        rows += [(entry(image, raw), label_of(name), split) for image in images]
    refuse_missing(list(absent.values()), len(CATEGORIES), where=folder, kind="categories")
    return rows


def _fits(folder: Path) -> bool:
    """Both folders, with at least one category: other data sets have `train` and `test` too."""
    names = {name.casefold() for name in CATEGORIES}
    found = [child(folder, split) for split in SPLITS]
    return all(
        entry is not None
        and entry.is_dir()
        and any(inside.name.casefold() in names for inside in entry.iterdir())
        for entry in found
    )
