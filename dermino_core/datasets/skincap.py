"""SkinCAP: 4,000 photographs from Fitzpatrick17k and DDI, described by dermatologists.

Zhou et al., arXiv 2405.18004 (2024); the paper's captioning task (4.4.2). The download is a table
(`skincap_v240623.csv`; other versions begin with `skincap` too, as CSV or workbook) and the folder
`skincap/` with the images, `1.png` and on. Captions were written in Chinese, polished and
translated: the polished translation is read, or the plain one where a release has only that.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import (
    PHOTOGRAPHS,
    Line,
    by_stem,
    entry,
    files_below,
    refuse_missing,
)
from dermino_core.datasets.published import fitzpatrick_type, one_label, read_published
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

CAPTIONS = ("caption_zh_polish_en", "caption_en", "caption")
"""Columns with the English caption; the first that a table has is read."""

COLUMNS = ("image", "label", "skin_type", "caption", "source", "original", "excluded")

_EXPECTED = "the table skincap_v*.csv (or .xlsx) and the folder skincap/ with its images"
_FOLDERS = ("skincap", "images")
_EXCLUDED = "Do not consider this image"


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked SkinCAP download.

    Parameters
    ----------
    raw
        Folder with the table and the images, in `skincap/`, `images/` or anywhere below. The
        manifest's images are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (the disease), `skin_type` (1..6 where the table has it),
        `caption` (empty where there is none), `source` (fitzpatrick17k or ddi) and `original`
        (the file's name there: the paper keeps images seen in pretraining out of this task's
        training half), `excluded` ("yes" where the data set says not to consider the image).
        It has no split: which 400 images the paper tests on is not published.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if table, images or a column are missing; `DEPENDENCY_MISSING` if there
        is only a workbook and openpyxl is not installed.
    """
    check_root(raw, _EXPECTED, lambda folder: _table(folder) is not None)
    table = _table(raw) or raw / "skincap.csv"
    lines = read_published(table, ("skincap_file_path", "disease"))
    caption = next((name for name in CAPTIONS if name in lines[0].cells), None)
    if caption is None:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"The table has no English caption: none of the columns {', '.join(CAPTIONS)}.",
            where=table,
            fix="Use the table of the original download.",
        )
    folder = next((raw / name for name in _FOLDERS if (raw / name).is_dir()), raw)
    here = by_stem(files_below(folder, PHOTOGRAPHS))
    missing = [_name(line) for line in lines if _name(line) not in here]
    refuse_missing(missing, len(lines), where=folder)
    rows = [
        (
            entry(here[_name(line)], raw),
            one_label(line.known("disease")),
            fitzpatrick_type(line["fitzpatrick_scale"]),
            " ".join(line[caption].split()),
            line["source"],
            line["ori_file_path"],
            "yes" if line[_EXCLUDED] in {"1", "1.0"} else "",
        )
        for line in lines
    ]
    manifest = out / "manifest.csv"
    write_table(manifest, COLUMNS, rows)
    return manifest


def _name(line: Line) -> str:
    """The image's file name without ending, whichever slashes its folders have."""
    return PureWindowsPath(line["skincap_file_path"]).stem.casefold()


def _table(folder: Path) -> Path | None:
    """The table of the latest version; CSV before workbook."""
    for ending in (".csv", ".xlsx"):
        found = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() == ending and file.name.lower().startswith("skincap")
        )
        if found:
            return found[-1]
    return None
