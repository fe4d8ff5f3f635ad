"""ISIC-Duplicate: the training images of the ISIC challenges 2016 to 2020 without duplicates.

Cassidy et al., Medical Image Analysis 75 (2022). What is published is no table of images but lists
of those to delete: 14,310 of 71,372, which leaves the 57,062 that the paper pretrains on (section
4.3.2). The lists lie in the folder `file_lists/` of
github.com/mmu-dermatology-research/isic_duplicate_removal_strategy; the challenges' own archives
are unpacked as that page says, into `2016/train/`, ..., `2020/train/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dermino_core.datasets.isic_diagnoses import YEARS, Diagnosis, read_diagnoses
from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import (
    JPEG,
    by_stem,
    entry,
    files_below,
    listed,
    refuse_missing,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

LISTS = (
    "downsampled_vs_2016_test_duplicate_filename_deleted",
    "downsampled_vs_2017_test_duplicate_filename_deleted",
    "downsampled_vs_2016_test_binary_duplicate_deleted",
    "downsampled_vs_2016_train_duplicate_filename_deleted",
    "downsampled_vs_2017_train_duplicate_filename_deleted",
    "all_train_duplicates_deleted_(all but newest)",
    "2016_train_vs_2016_test_duplicates_deleted",
    "2017_train_vs_2016_test_duplicates_deleted",
    "2017_train_vs_2017_test_duplicates_deleted",
    "2019_train_vs_2016_test_duplicates_deleted",
    "2019_train_vs_2017_test_duplicates_deleted",
)
"""The lists about training images, without number and ending; the twelfth is about test images."""

_DELETED = re.compile(r"/(20\d\d)/train/(?:.*/)?([^/]+)\.jpg$", re.IGNORECASE)
_DOWNSAMPLED = "_downsampled"
_EXPECTED = (
    "the folders " + ", ".join(f"{year}/train/" for year in YEARS) + " and file_lists/ of "
    "isic_duplicate_removal_strategy"
)

Name = tuple[int, str]
"""Year of the challenge, and the image's name in small letters without ending."""


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for the training images of five challenges, less the duplicates.

    It does not matter whether the duplicates are still on the disk.

    Parameters
    ----------
    raw
        Folder with `2016/train/` to `2020/train/`, the lists in `file_lists/` (or in the
        repository's folder around it), and the challenges' tables of diagnoses, anywhere in it.
        The manifest's images are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (a diagnosis; benign or malignant where nothing else is
        known: 2016 and most of 2020), `group` (patient of 2020, lesion of 2018 and 2019),
        `sex`, `age` (years), `binary` (benign or malignant), `year`.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if images, lists or tables are missing or not as published.
    """
    check_root(raw, _EXPECTED, _fits)
    deleted = read_deleted(_lists(raw))
    tables = {file.name.lower(): file for file in files_below(raw, (".csv",))}
    rows: list[tuple[str, ...]] = []
    for year in YEARS:
        here = by_stem(files_below(raw / str(year) / "train", JPEG))
        known = read_diagnoses(year, tables)
        missing = [
            name.upper() for name in known if name not in here and (year, name) not in deleted
        ]
        refuse_missing(missing, len(known), where=raw / str(year) / "train")
        unknown = [here[name].name for name in here if name not in known]
        if unknown:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"{len(unknown)} of {len(here)} training images of {year} have no diagnosis: "
                f"{listed(unknown)}.",
                where=raw / str(year) / "train",
                fix="Use the tables of the original download, and its training images only.",
            )
        rows += [
            _row(entry(here[name], raw), known[name], year)
            for name in sorted(here)
            if (year, name) not in deleted
        ]
    manifest = out / "manifest.csv"
    write_table(manifest, ("image", "label", "group", "sex", "age", "binary", "year"), rows)
    return manifest


def read_deleted(lists: Iterable[Path]) -> set[Name]:
    """The images of the lists of deleted training images.

    Lines are paths on the authors' computer. Images of 2019 in a folder `downsampled/` had lost
    the end `_downsampled` of their names for the comparison.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` for a line that is no path of a training image.
    """
    deleted: set[Name] = set()
    for file in lists:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            found = _DELETED.search(line.strip())
            if found is None:
                raise DerminoError(
                    "DATASET_LAYOUT",
                    f"{line.strip()!r} is not the path of a training image.",
                    where=f"{file}, line {number}",
                    fix="Use the lists of the repository as they are.",
                )
            name = found[2].casefold()
            shortened = "/downsampled/" in line and not name.endswith(_DOWNSAMPLED)
            deleted.add((int(found[1]), name + _DOWNSAMPLED if shortened else name))
    return deleted


def _lists(raw: Path) -> list[Path]:
    folder = _list_folder(raw) or raw / "file_lists"
    files = files_below(folder, (".txt",))
    absent = [name for name in LISTS if not any(file.stem.endswith(name) for file in files)]
    if absent:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"{len(absent)} of {len(LISTS)} lists are not there: {listed(absent)}.",
            where=folder,
            fix="Copy the folder file_lists/ of the repository whole.",
        )
    return [file for file in files if file.stem.endswith(LISTS)]


def _list_folder(raw: Path) -> Path | None:
    places = (raw / "file_lists", *sorted(raw.glob("isic_duplicate_removal_strategy*/file_lists")))
    return next((place for place in places if place.is_dir()), None)


def _fits(folder: Path) -> bool:
    years = all((folder / str(year) / "train").is_dir() for year in YEARS)
    return years and _list_folder(folder) is not None


def _row(image: str, known: Diagnosis, year: int) -> tuple[str, ...]:
    return (image, known.label, known.group, known.sex, known.age, known.binary, str(year))
