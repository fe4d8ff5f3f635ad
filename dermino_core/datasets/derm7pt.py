"""Derm7pt: 1,011 lesions, each photographed and seen through a dermatoscope, with a checklist.

Kawahara et al., IEEE J. Biomed. Health Inform. 23 (2019): the seven-point checklist of Argenziano.
The download is `release_v0/` with `images/`, `meta/meta.csv` and three files of row numbers. The
table names 2,022 images; the paper counts 2,013, which fits a few photographs being named twice,
so each file becomes one row here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import (
    JPEG,
    Line,
    Split,
    check_choice,
    entry,
    files_below,
    read_lines,
    refuse_missing,
    unknown_label,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

CLASSES = (
    "basal cell carcinoma",
    "melanoma",
    "melanocytic nevus",
    "seborrheic keratosis",
    "miscellaneous",
)
"""BCC, MEL, NEV, SK and MISC of the paper (section 4.4.1) and of Kawahara et al."""

_NEVI = ("blue", "clark", "combined", "congenital", "dermal", "recurrent", "reed or spitz")
_MELANOMAS = (
    "melanoma",
    "melanoma (in situ)",
    "melanoma (less than 0.76 mm)",
    "melanoma (0.76 to 1.5 mm)",
    "melanoma (more than 1.5 mm)",
    "melanoma metastasis",
)
_OTHERS = ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion")
GROUPS: Mapping[str, str] = MappingProxyType(
    {"basal cell carcinoma": "basal cell carcinoma"}
    | dict.fromkeys(_MELANOMAS, "melanoma")
    | {f"{kind} nevus": "melanocytic nevus" for kind in _NEVI}
    | {"seborrheic keratosis": "seborrheic keratosis"}
    | dict.fromkeys(_OTHERS, "miscellaneous")
)
"""The table's diagnosis -> one of five classes."""

MODALITIES: Mapping[str, str] = MappingProxyType({"derm": "dermoscopic", "clinic": "clinical"})
"""The table's two columns of images -> what they are in the column `modality`."""

ImagesWanted = Literal["both", "derm", "clinic"]
TABLE = "meta/meta.csv"
INDEXES: Mapping[str, str] = MappingProxyType(
    {
        "train": "meta/train_indexes.csv",
        "val": "meta/valid_indexes.csv",
        "test": "meta/test_indexes.csv",
    }
)
_COLUMNS = ("case_num", "diagnosis", "seven_point_score", "clinic", "derm", "sex")
_EXPECTED = f"{TABLE} and the folder images/ (release_v0/ in the archive)"


@dataclass(frozen=True)
class Picture:
    """One row to be: a picture of a lesion, by the publisher's name for its file."""

    file: str
    modality: str
    line: Line
    split: str


def prepare(
    raw: Path, out: Path, *, images: ImagesWanted = "both", split: Split = "halves"
) -> Path:
    """Write `out/manifest.csv` for an unpacked Derm7pt download.

    A picture that two lesions of different classes name is left out and listed in
    `out/missing.csv`; if their classes agree, it is kept once and the lesions become one group.

    Parameters
    ----------
    raw
        Folder with `images/` and `meta/`. The manifest's images are relative to it.
    images
        `"derm"`, `"clinic"` or, as in the paper, `"both"`.
    split
        `"halves"`: left to whoever uses the manifest, as in the paper; `"published"`: that of
        the three files of row numbers, in the column `split`.

    Returns
    -------
    Path
        The manifest: `image`, `label` (one of :data:`CLASSES`), `group` (lesion), `sex`,
        `binary` (melanoma or not melanoma), `diagnosis` (one of 20), `modality`,
        `seven_point_score`, and `split` if it is the published one.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if tables or images are missing, or a diagnosis is unknown;
        `CONFIG_INVALID` for another value of an option.
    """
    check_choice("images", images, ImagesWanted)
    check_choice("split", split, Split)
    check_root(raw, _EXPECTED, _fits)
    lines = read_lines(raw / TABLE, _COLUMNS)
    for line in lines:
        if line["diagnosis"] not in GROUPS:
            what = f"The diagnosis of case {line['case_num']}"
            raise unknown_label(what, line["diagnosis"], GROUPS, line.where)
    parts = read_parts(raw, len(lines)) if split == "published" else [""] * len(lines)
    columns = MODALITIES if images == "both" else (images,)
    pictures = [
        Picture(line[column], MODALITIES[column], line, part)
        for line, part in zip(lines, parts, strict=True)
        for column in columns
        if line[column]
    ]
    if not pictures:
        raise DerminoError("DATASET_LAYOUT", "The table names no image.", where=raw / TABLE)
    # The table writes .jpg and .JPG: capitals must not matter.
    here = {
        entry(file, raw / "images").casefold(): file for file in files_below(raw / "images", JPEG)
    }
    missing = [picture.file for picture in pictures if picture.file.casefold() not in here]
    refuse_missing(missing, len(pictures), where=raw / "images")
    header = ["image", "label", "group", "sex", "binary", "diagnosis", "modality"]
    header += ["seven_point_score", "split"] if split == "published" else ["seven_point_score"]
    rows, left_out = _rows(pictures, {name: entry(file, raw) for name, file in here.items()})
    manifest = out / "manifest.csv"
    if left_out:
        write_table(manifest.with_name("missing.csv"), ("image", "reason"), left_out)
    else:
        manifest.with_name("missing.csv").unlink(missing_ok=True)
    write_table(manifest, header, [row[: len(header)] for row in rows])
    return manifest


def read_parts(raw: Path, cases: int) -> list[str]:
    """The published part (train, val or test) of each of the table's rows.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if a file of row numbers is missing or a row is not in exactly one.
    """
    parts: dict[int, str] = {}
    for part, name in INDEXES.items():
        for line in read_lines(raw / name, ("indexes",)):
            text = line["indexes"]
            row = int(text) if text.isdecimal() else -1
            if not 0 <= row < cases or row in parts:
                problem = "twice" if row in parts else f"but the table has 0 to {cases - 1}"
                raise DerminoError(
                    "DATASET_LAYOUT",
                    f"The row number {text!r} is given {problem}.",
                    where=line.where,
                    fix="Use the files of the original download.",
                )
            parts[row] = part
    if len(parts) < cases:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"{cases - len(parts)} of {cases} rows of the table are in no part.",
            where=raw / "meta",
            fix="Use the files of the original download, or leave out split=published.",
        )
    return [parts[row] for row in range(cases)]


def _rows(
    pictures: Sequence[Picture], paths: Mapping[str, str]
) -> tuple[list[tuple[str, ...]], list[tuple[str, str]]]:
    """Manifest rows, one for each file; and what is left out, with the reason."""
    by_file: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_file.setdefault(picture.file.casefold(), []).append(picture)
    # Lesions on one photograph belong together; the smaller name leads.
    leader: dict[str, str] = {}
    for shared in by_file.values():
        cases = {_leader(leader, picture.line["case_num"]) for picture in shared}
        leader |= dict.fromkeys(cases, min(cases))
    rows: list[tuple[str, ...]] = []
    left_out: list[tuple[str, str]] = []
    for name, shared in by_file.items():
        first = shared[0]
        labels = {GROUPS[picture.line["diagnosis"]] for picture in shared}
        if len(labels) > 1:
            left_out.append((paths[name], f"shows lesions of {' and '.join(sorted(labels))}"))
            continue
        label = labels.pop()
        binary = label if label == "melanoma" else "not melanoma"
        person = (f"case {_leader(leader, first.line['case_num'])}", first.line.known("sex"))
        seen = (binary, first.line["diagnosis"], first.modality, first.line["seven_point_score"])
        rows.append((paths[name], label, *person, *seen, first.split))
    return rows, left_out


def _leader(leader: Mapping[str, str], case: str) -> str:
    while (above := leader.get(case, case)) != case:
        case = above
    return case


def _fits(folder: Path) -> bool:
    return (folder / TABLE).is_file() and (folder / "images").is_dir()
