"""LESION130k: 132,673 pictures of skin lesions crawled from 18,482 websites, without labels.

Cho et al., JAMA Dermatology 159 (2023). What is published is a list, `LESION130k.csv`: on each line
a number, a word in place of a label, the place of the lesion in the picture (centre x and y, width
and height, as shares of the picture's) and the picture's address. The authors' script cuts the
lesions out and saves them under their number (`dataset/<word>/00012_<word>.png`); other copies are
a folder of `00012.jpg` with the list called `all.csv`. Any folder of images is read.
"""

from __future__ import annotations

import re
from pathlib import Path

from dermino_core.datasets.layout import check_root, found_in
from dermino_core.datasets.originals import PHOTOGRAPHS, entry, files_below
from dermino_core.datasets.published import list_missing
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

LIST_NAMES = ("lesion130k.csv", "all.csv")
"""Names of the list, in any case."""

_LIST_FOLDERS = ("", "DATASET", "images")
_NUMBER = re.compile(r"\d+")
_IMAGES = (*PHOTOGRAPHS, ".webp")


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for a folder of LESION130k's images.

    With the list in `raw` (or its `DATASET/` or `images/`), lesions of one picture are a group,
    and those of the list that are not here are written to `out/missing.csv`: many addresses no
    longer exist, and the paper had 95,999 images.

    Parameters
    ----------
    raw
        Folder with the images, in it or below. The manifest's images are relative to it.

    Returns
    -------
    Path
        The manifest: `image`, `label` (empty), `group` (the picture's address, empty without the
        list).

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if there is no image, or a line of the list is not as described.
    """
    check_root(raw, "the images of LESION130k", Path.is_dir)
    images = files_below(raw, _IMAGES)
    if not images:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"Expected images, in the folder or below; found {found_in(raw)}.",
            where=raw,
            fix="Fetch them with the download script that lies beside the authors' list.",
        )
    table = _list(raw)
    addresses = read_list(table) if table else {}
    rows: list[tuple[str, str, str]] = []
    numbers: set[int] = set()
    for image in images:
        digits = _NUMBER.match(image.name)
        number = int(digits[0]) if digits else -1
        numbers.add(number)
        rows.append((entry(image, raw), "", addresses.get(number, "")))
    gone = [
        (f"{number:05d}", address, "not in the image folder")
        for number, address in addresses.items()
        if number not in numbers
    ]
    manifest = out / "manifest.csv"
    list_missing(out, ("number", "url", "reason"), gone)
    write_table(manifest, ("image", "label", "group"), rows)
    return manifest


def read_list(file: Path) -> dict[int, str]:
    """Number of a lesion -> address of its picture, from `LESION130k.csv`.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` for a line that is not a number, a word, four numbers and an address.
    """
    addresses: dict[int, str] = {}
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for place, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("##"):
            continue
        # An address may hold spaces.
        cells = line.split(maxsplit=6)
        if len(cells) < 7 or not cells[0].isdecimal():
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The line begins with {line[:40]!r}, not with a number, a word, four numbers and "
                "an address.",
                where=f"{file}, line {place}",
                fix="Use the LESION130k.csv that the authors publish, or take it away.",
            )
        addresses[int(cells[0])] = cells[6].strip()
    return addresses


def _list(raw: Path) -> Path | None:
    for folder in (raw / name for name in _LIST_FOLDERS):
        if not folder.is_dir():
            continue
        for file in sorted(folder.iterdir()):
            if file.name.casefold() in LIST_NAMES and file.is_file():
                return file
    return None
