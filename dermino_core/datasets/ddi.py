"""DDI, Diverse Dermatology Images: 656 photographs in three ranges of skin tone, all with biopsy.

Daneshjou et al., Science Advances 8 (2022). Stanford Clinics, 2010-2020. The download is one
folder with `ddi_metadata.csv` and the images, beside it or in a folder below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import (
    PHOTOGRAPHS,
    entry,
    files_below,
    read_lines,
    refuse_missing,
    unknown_label,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

TABLE = "ddi_metadata.csv"
SKIN_TYPES: Mapping[str, str] = MappingProxyType({"12": "I-II", "34": "III-IV", "56": "V-VI"})
"""The table's skin tone -> Fitzpatrick skin types."""

MALIGNANT: Mapping[str, str] = MappingProxyType(
    {"true": "malignant", "false": "benign", "1": "malignant", "0": "benign"}
)
"""The table's column `malignant`, in small letters -> label."""

_COLUMNS = ("DDI_file", "skin_tone", "malignant", "disease")
_EXPECTED = f"{TABLE} and the images 000001.png, ..."


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked DDI download.

    Parameters
    ----------
    raw
        Folder with the table. The manifest's images are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (benign or malignant), `skin_type` (I-II, III-IV or V-VI),
        `disease` (one of 78, as the table writes it). The download does not say which images
        are of one patient.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if table or images are missing, or a cell is not as published.
    """
    check_root(raw, _EXPECTED, lambda folder: (folder / TABLE).is_file())
    table = raw / TABLE
    lines = read_lines(table, _COLUMNS)
    if not lines:
        raise DerminoError("DATASET_LAYOUT", "The table names no image.", where=table)
    here: dict[str, Path] = {}
    for file in files_below(raw, PHOTOGRAPHS):
        here.setdefault(file.name.casefold(), file)
    missing = [line["DDI_file"] for line in lines if line["DDI_file"].casefold() not in here]
    refuse_missing(missing, len(lines), where=raw)
    rows = []
    for line in lines:
        name, tone = line["DDI_file"], line["skin_tone"]
        if tone not in SKIN_TYPES:
            raise unknown_label(f"The skin tone of {name}", tone, SKIN_TYPES, line.where)
        malignant = line["malignant"]
        if malignant.casefold() not in MALIGNANT:
            what = f"The column malignant of {name}"
            raise unknown_label(what, malignant, ("True", "False"), line.where)
        label = MALIGNANT[malignant.casefold()]
        image = entry(here[name.casefold()], raw)
        rows.append((image, label, SKIN_TYPES[tone], line["disease"]))
    manifest = out / "manifest.csv"
    write_table(manifest, ("image", "label", "skin_type", "disease"), sorted(rows))
    return manifest
