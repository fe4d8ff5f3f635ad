"""PAD-UFES-20: 2,298 smartphone photographs of 1,641 lesions of 1,373 patients, six diagnoses.

Pacheco et al., Data in Brief 32 (2020). Federal University of Espírito Santo, Brazil. The download
holds `metadata.csv` and three archives of images, `imgs_part_1.zip` to `imgs_part_3.zip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import (
    PHOTOGRAPHS,
    Line,
    by_stem,
    entry,
    files_below,
    refuse_missing,
    unknown_label,
)
from dermino_core.datasets.published import fitzpatrick_type, read_published, sex_of
from dermino_core.datasets.tables import write_table

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "ACK": "actinic keratosis",
        "BCC": "basal cell carcinoma",
        "MEL": "melanoma",
        "NEV": "nevus",
        "SCC": "squamous cell carcinoma",
        "SEK": "seborrheic keratosis",
    }
)
"""Code in the table -> label. SCC includes Bowen's disease."""

TABLE = "metadata.csv"
COLUMNS = ("image", "label", "group", "skin_type", "sex", "age", "lesion", "biopsied")

_EXPECTED = f"{TABLE} and the folders imgs_part_1/ to imgs_part_3/ of PAD-UFES-20"
_REQUIRED = ("img_id", "diagnostic", "patient_id", "lesion_id", "age", "gender", "fitspatrick")


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked PAD-UFES-20 download.

    Parameters
    ----------
    raw
        Folder with `metadata.csv` and, anywhere below, the images of the three unpacked archives.
        The manifest's images are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (:data:`LABELS`), `group` (the patient), `skin_type` (1..6,
        empty where nobody asked), `sex`, `age`, `lesion`, `biopsied` (yes, no).

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the table or images are missing, or a diagnosis is none of the six.
    """
    check_root(raw, _EXPECTED, lambda folder: (folder / TABLE).is_file())
    lines = read_published(raw / TABLE, _REQUIRED)
    here = by_stem(files_below(raw, PHOTOGRAPHS))
    missing = [line["img_id"] for line in lines if _name(line) not in here]
    refuse_missing(missing, len(lines), where=raw)
    manifest = out / "manifest.csv"
    write_table(
        manifest, COLUMNS, [(entry(here[_name(line)], raw), *_facts(line)) for line in lines]
    )
    return manifest


def _facts(line: Line) -> tuple[str, ...]:
    """Everything but the image, in the order of :data:`COLUMNS`."""
    label = LABELS.get(line["diagnostic"].upper())
    if label is None:
        what = f"The diagnosis of {line['img_id']}"
        raise unknown_label(what, line["diagnostic"], LABELS, line.where)
    return (
        label,
        line["patient_id"],
        fitzpatrick_type(line["fitspatrick"]),
        sex_of(line["gender"]),
        line.known("age"),
        line["lesion_id"],
        {"true": "yes", "false": "no"}.get(line["biopsed"].casefold(), ""),
    )


def _name(line: Line) -> str:
    return Path(line["img_id"]).stem.casefold()
