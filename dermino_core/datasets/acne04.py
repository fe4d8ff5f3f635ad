"""ACNE04: 1,457 photographs of faces in four grades of acne (Hayashi), with lesions counted.

Wu et al., ICCV 2019. The download has a folder `Classification/` with `JPEGImages/` and five pairs
of lists, one per fold; a line is a file name, a grade and a number of lesions. File names begin
with the grade: `levle0_` (so spelt) to `levle3_`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import (
    JPEG,
    Split,
    check_choice,
    entry,
    files_below,
    refuse_missing,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

GRADES = ("mild", "moderate", "severe", "very severe")
"""Grades 0 to 3."""

IMAGES = "JPEGImages"
Fold = Literal["0", "1", "2", "3", "4"]
_NAME = re.compile(r"le(?:vle|vel)([0-3])_", re.IGNORECASE)
_EXPECTED = f"the folder {IMAGES}/ and the lists NNEW_trainval_0.txt and NNEW_test_0.txt"


def prepare(raw: Path, out: Path, *, split: Split = "halves", fold: Fold = "0") -> Path:
    """Write `out/manifest.csv` for an unpacked ACNE04 download.

    Parameters
    ----------
    raw
        The folder `Classification/`. The manifest's images are relative to it.
    split
        `"halves"`: left to whoever uses the manifest, as in the paper; `"published"`: the lists
        of `fold`, in the column `split` (train or test).
    fold
        `"0"` to `"4"`: which lists to read. All of them name the same images.

    Returns
    -------
    Path
        The manifest: `image`, `label` (one of :data:`GRADES`), `lesions` (how many were counted),
        and `split` if it is the published one. Nothing says which images are of one person.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if lists or images are missing, or a grade is not that of the file name;
        `CONFIG_INVALID` for another value of an option.
    """
    check_choice("split", split, Split)
    check_choice("fold", fold, Fold)
    lists = {"train": f"NNEW_trainval_{fold}.txt", "test": f"NNEW_test_{fold}.txt"}
    check_root(raw, _EXPECTED.replace("_0.txt", f"_{fold}.txt"), lambda at: _fits(at, lists))
    graded: dict[str, tuple[str, str, str]] = {}
    for part, name in lists.items():
        for image, cells in _read(raw / name).items():
            if image in graded:
                raise DerminoError("DATASET_LAYOUT", f"{image} is in both lists.", where=raw / name)
            graded[image] = (*cells, part)
    here = {file.name: entry(file, raw) for file in files_below(raw / IMAGES, JPEG)}
    missing = sorted(image for image in graded if image not in here)
    refuse_missing(missing, len(graded), where=raw / IMAGES, kind="images of the lists")
    header = ("image", "label", "lesions", "split")[: 4 if split == "published" else 3]
    rows = [(here[image], *graded[image])[: len(header)] for image in sorted(graded)]
    manifest = out / "manifest.csv"
    write_table(manifest, header, rows)
    return manifest


def _read(file: Path) -> dict[str, tuple[str, str]]:
    """Image -> grade in words, number of lesions."""
    found: dict[str, tuple[str, str]] = {}
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        where = f"{file}, line {number}"
        if len(cells) != 3 or not cells[2].isdecimal() or cells[1] not in {"0", "1", "2", "3"}:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"{line.strip()!r} is not a file name, a grade 0 to 3 and a number of lesions.",
                where=where,
                fix="Use the list of the original download.",
            )
        named = _NAME.match(cells[0])
        if named and named[1] != cells[1]:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The grade of {cells[0]} is {cells[1]}, its name says {named[1]}.",
                where=where,
                fix="Use the list of the original download.",
            )
        found[cells[0]] = (GRADES[int(cells[1])], cells[2])
    if not found:
        raise DerminoError("DATASET_LAYOUT", "The list names no image.", where=file)
    return found


def _fits(folder: Path, lists: dict[str, str]) -> bool:
    return (folder / IMAGES).is_dir() and all((folder / name).is_file() for name in lists.values())
