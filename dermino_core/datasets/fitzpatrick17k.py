"""Fitzpatrick17k: 16,577 clinical photographs with skin type and diagnosis, listed by address.

Groh et al., CVPR ISIC workshop 2021. What is published is a CSV file; the images lie at two
atlases of dermatology, some of them no longer. Files are named by the MD5 of their content.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dermino_core.datasets.download import DownloadReport, Politeness, Wanted, fetch_all
from dermino_core.datasets.layout import check_root
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

TABLE = "fitzpatrick17k.csv"
MISSING_FILE = "missing.csv"
COLUMNS = (
    "md5hash",
    "fitzpatrick_scale",
    "label",
    "nine_partition_label",
    "three_partition_label",
    "url",
)

PARTITIONS: Mapping[str, str] = MappingProxyType(
    {"2": "three_partition_label", "3": "three_partition_label", "9": "nine_partition_label"}
)
"""Partition -> the table's column with its labels. `2` leaves the non-neoplastic images out."""

_EXPECTED = f"{TABLE} and, unless they are downloaded, the images named <md5hash>.jpg in images/"
_IMAGE_FOLDERS = ("images", "data/finalfitz17k", "finalfitz17k", "")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Case:
    """One line of the table. `skin_type` is 1..6, or empty where it is not known (-1)."""

    md5: str
    skin_type: str
    diagnosis: str
    nine: str
    three: str
    url: str


def read_cases(table: Path, partition: str = "2") -> list[Case]:
    """The lines of Fitzpatrick17k's CSV that belong to a partition (`"2"`, `"3"` or `"9"`).

    The full table has 4,497 lines in partition 2 (benign and malignant) and 16,577 in the others.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for another partition; `DATASET_LAYOUT` if a column is missing or an
        md5hash is not one.
    """
    if partition not in PARTITIONS:
        raise DerminoError(
            "CONFIG_INVALID",
            f"Fitzpatrick17k has no partition {partition!r}.",
            fix="Use 2 (benign, malignant), 3 (with non-neoplastic) or 9.",
        )
    cases: list[Case] = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            absent = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if absent:
                raise DerminoError(
                    "DATASET_LAYOUT",
                    f"The table has no column {', '.join(absent)}.",
                    where=table,
                    fix="Use the fitzpatrick17k.csv that the authors publish.",
                )
            cases = [_case(row, f"{table}, line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DerminoError(
            "DATASET_LAYOUT", f"The table is not a CSV file: {error}.", where=table
        ) from error
    if partition == "2":
        cases = [case for case in cases if case.three in {"benign", "malignant"}]
    return cases


def prepare(raw: Path, out: Path, *, partition: str = "2") -> Path:
    """Write `out/manifest.csv` for the images of a partition that are here.

    Images that are not here are left out and listed in `out/missing.csv`.

    Parameters
    ----------
    raw
        Folder with `fitzpatrick17k.csv` and the images, in `images/` (where :func:`download`
        puts them), `data/finalfitz17k/` (as in the authors' repository) or beside the table.
        The manifest's images are relative to it.
    partition
        `"2"` or `"3"`: the three-partition label; `"9"`: the nine-partition label.

    Returns
    -------
    Path
        The manifest: `image`, `label`, `skin_type` (1..6, empty for unknown), `diagnosis` (one
        of 114), `three_partition`, `nine_partition`.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the table or all of the images are missing.
    """
    check_root(raw, _EXPECTED, _fits)
    cases = read_cases(raw / TABLE, partition)
    here = _images_here(raw)
    rows: list[tuple[str, ...]] = []
    missing: list[tuple[str, str, str]] = []
    for case in cases:
        image = here.get(case.md5)
        if image is None:
            missing.append((case.md5, case.url, "not in the image folder"))
            continue
        label = case.nine if PARTITIONS[partition].startswith("nine") else case.three
        rows.append((image, label, case.skin_type, case.diagnosis, case.three, case.nine))
    if not rows:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"None of the {len(cases)} images of partition {partition} is here.",
            where=raw / "images",
            fix="Put the images there, named <md5hash>.jpg, or fetch them with --download.",
        )
    manifest = out / "manifest.csv"
    header = ("image", "label", "skin_type", "diagnosis", "three_partition", "nine_partition")
    _list_missing(out, missing)
    write_table(manifest, header, rows)
    return manifest


def download(
    raw: Path, *, partition: str = "2", politeness: Politeness | None = None
) -> DownloadReport:
    """Fetch a partition's images from the addresses in the table into `raw/images/`.

    Stopping and starting again goes on where it stopped: images that are here and whole are not
    asked for. `raw/images/not_downloaded.csv` lists what could not be had and why (gone, wrong
    checksum, ...).

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the table is not in `raw`; `DOWNLOAD_FAILED` if nothing could be had.
    """
    check_root(raw, _EXPECTED, _fits)
    folder = raw / "images"
    wanted = [
        Wanted(case.url, folder / f"{case.md5}.jpg", case.md5)
        for case in read_cases(raw / TABLE, partition)
    ]
    title = f"Fitzpatrick17k-{partition}"
    report = fetch_all(wanted, title=title, politeness=politeness or Politeness())
    listing = folder / "not_downloaded.csv"
    rows = [(entry.wanted.md5, entry.wanted.url, entry.reason) for entry in report.not_had]
    write_table(listing, ("md5hash", "url", "reason"), rows)
    if wanted and not (report.fetched or report.already_here):
        raise DerminoError(
            "DOWNLOAD_FAILED",
            f"None of {len(wanted)} images could be had; the first because of: {rows[0][2]}.",
            where=listing,
            fix="Check the network connection and start again.",
        )
    return report


def _case(row: Mapping[str, str | None], where: str) -> Case:
    md5 = (row["md5hash"] or "").strip().lower()
    # The hash becomes a file name: nothing but 32 hexadecimal digits may pass.
    if len(md5) != 32 or not set(md5) <= set("0123456789abcdef"):
        raise DerminoError("DATASET_LAYOUT", f"{md5!r} is not an MD5 hash.", where=where)
    scale = (row["fitzpatrick_scale"] or "").strip()
    return Case(
        md5=md5,
        skin_type=scale if scale in {"1", "2", "3", "4", "5", "6"} else "",
        diagnosis=(row["label"] or "").strip(),
        nine=(row["nine_partition_label"] or "").strip(),
        three=(row["three_partition_label"] or "").strip(),
        url=(row["url"] or "").strip(),
    )


def _fits(folder: Path) -> bool:
    return (folder / TABLE).is_file()


def _images_here(raw: Path) -> dict[str, str]:
    """MD5 -> image relative to `raw`; the first folder that has it counts."""
    here: dict[str, str] = {}
    for name in _IMAGE_FOLDERS:
        folder = raw / name
        if not folder.is_dir():
            continue
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in _IMAGE_ENDINGS:
                here.setdefault(file.stem.lower(), file.relative_to(raw).as_posix())
    return here


def _list_missing(out: Path, missing: list[tuple[str, str, str]]) -> None:
    file = out / MISSING_FILE
    if missing:
        write_table(file, ("md5hash", "url", "reason"), missing)
    else:
        file.unlink(missing_ok=True)
