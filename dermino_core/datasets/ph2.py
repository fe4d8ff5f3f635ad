"""PH2: 200 dermoscopic images with lesion masks (80 common, 80 atypical nevi, 40 melanomas).

Mendonça et al., EMBC 2013. Hospital Pedro Hispano, Matosinhos. The download holds one folder for
each image and a table, once as text and once as a workbook.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

LABELS = ("common nevus", "atypical nevus", "melanoma")
"""Clinical diagnosis 0, 1 and 2 of the table."""

BINARY = {"common nevus": "benign", "atypical nevus": "benign", "melanoma": "malignant"}
TEXT_TABLE, WORKBOOK = "PH2_dataset.txt", "PH2_dataset.xlsx"
IMAGES = "PH2 Dataset images"

_EXPECTED = f"{TEXT_TABLE} (or {WORKBOOK}) and the folder '{IMAGES}/'"


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked PH2 download.

    Parameters
    ----------
    raw
        Folder with the table and `PH2 Dataset images/` (`PH2Dataset/` in the archive). The
        manifest's images and masks are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (the three-way diagnosis), `binary` (common and atypical
        nevi are benign), `mask`.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if table or images are missing or do not fit together;
        `DEPENDENCY_MISSING` if there is only the workbook and openpyxl is not installed.
    """
    check_root(raw, _EXPECTED, _fits)
    text = raw / TEXT_TABLE
    table = text if text.is_file() else raw / WORKBOOK
    diagnoses = read_text_table(table) if table == text else read_workbook(table)
    if not diagnoses:
        raise DerminoError(
            "DATASET_LAYOUT",
            "The table names no image: its lines should read like "
            "'|| IMD003 || histology || 0 || ...', with the clinical diagnosis 0, 1 or 2.",
            where=table,
            fix="Use the table of the original download.",
        )
    rows = [_row(raw, name, label) for name, label in sorted(diagnoses.items())]
    missing = sorted(name for name, row in zip(sorted(diagnoses), rows, strict=True) if not row)
    if missing:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"{len(missing)} of {len(diagnoses)} images of the table are not there: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}.",
            where=raw / IMAGES,
            fix=f"Expected IMD003/IMD003_Dermoscopic_Image/IMD003.bmp in '{IMAGES}/'. "
            "Unpack the download again.",
        )
    manifest = out / "manifest.csv"
    write_table(manifest, ("image", "label", "binary", "mask"), [row for row in rows if row])
    return manifest


def read_text_table(file: Path) -> dict[str, str]:
    """Image name -> label, from the table whose cells are separated by ``||``.

    Columns: name, histological diagnosis, clinical diagnosis (0, 1, 2), then criteria.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` for a diagnosis other than 0, 1 or 2, with its line.
    """
    diagnoses: dict[str, str] = {}
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.split("||")]
        if len(cells) < 4 or not _is_name(cells[1]):
            continue
        if cells[3] not in {"0", "1", "2"}:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The clinical diagnosis of {cells[1]} is {cells[3]!r}, not 0, 1 or 2.",
                where=f"{file}, line {number}",
            )
        diagnoses[cells[1]] = LABELS[int(cells[3])]
    return diagnoses


def read_workbook(file: Path) -> dict[str, str]:
    """Image name -> label, from the workbook, where an X marks one of three columns.

    Raises
    ------
    DerminoError
        `DEPENDENCY_MISSING` without openpyxl; `DATASET_LAYOUT` if the columns are not there, the
        file is no workbook, or an image has not exactly one X.
    """
    from zipfile import BadZipFile

    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            "Reading the PH2 workbook needs the package openpyxl.",
            where=file,
            fix=f"pip install 'dermino[xlsx]', or put {TEXT_TABLE} beside it.",
        ) from None
    try:
        book = load_workbook(file, read_only=True, data_only=True)
    except (BadZipFile, InvalidFileException, KeyError, OSError) as error:
        raise DerminoError(
            "DATASET_LAYOUT", f"This is not a readable workbook: {error}.", where=file
        ) from error
    try:
        sheet = book.worksheets[0]
        return _diagnoses(sheet.iter_rows(values_only=True), file)
    finally:
        book.close()


def _diagnoses(rows: Iterable[tuple[object, ...]], file: Path) -> dict[str, str]:
    columns: dict[str, int] = {}
    name_column = 0
    diagnoses: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        cells = [str(cell).strip() if cell is not None else "" for cell in row]
        folded = [cell.casefold() for cell in cells]
        if "image name" in folded:
            columns = {label: folded.index(label) for label in LABELS if label in folded}
            name_column = folded.index("image name")
            continue
        if len(columns) < len(LABELS) or not _is_name(cells[name_column]):
            continue
        marked = [label for label, column in columns.items() if folded[column] == "x"]
        if len(marked) != 1:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"{cells[name_column]} has {len(marked)} diagnoses marked, not one.",
                where=f"{file}, row {number}",
            )
        diagnoses[cells[name_column]] = marked[0]
    if not diagnoses:
        raise DerminoError(
            "DATASET_LAYOUT",
            "The workbook has no row with the columns Image Name, Common Nevus, Atypical Nevus "
            "and Melanoma.",
            where=file,
        )
    return diagnoses


def _fits(folder: Path) -> bool:
    table = (folder / TEXT_TABLE).is_file() or (folder / WORKBOOK).is_file()
    return table and (folder / IMAGES).is_dir()


def _is_name(text: str) -> bool:
    return text.startswith("IMD") and text[3:].isdecimal()


def _row(raw: Path, name: str, label: str) -> tuple[str, str, str, str] | None:
    folder = raw / IMAGES / name
    image = folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp"
    if not image.is_file():
        return None
    mask = folder / f"{name}_lesion" / f"{name}_lesion.bmp"
    mask_entry = mask.relative_to(raw).as_posix() if mask.is_file() else ""
    return (image.relative_to(raw).as_posix(), label, BINARY[label], mask_entry)
