"""SD-198: 6,584 photographs of 198 skin diseases, from DermQuest.

Sun et al., ECCV 2016. The archive `sd-198` has a folder for each disease in `images/`, and lists:
`classes.txt` (number, name), `images.txt` (number, path in `images/`) and `image_class_labels.txt`
(image number, class number). Copies without the lists, and with the folders of diseases at the top,
go round; both are read. Its cross-validation folds (`8_2_split/`) are not: the paper pretrains on
all images.
"""

from __future__ import annotations

from pathlib import Path

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import PHOTOGRAPHS, entry, files_below, refuse_missing
from dermino_core.datasets.published import one_label
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

LISTS = ("classes.txt", "images.txt", "image_class_labels.txt")

_EXPECTED = (
    "images/ with a folder for each disease (Acne_Vulgaris/, Basal_Cell_Carcinoma/, ...), or "
    "images/ with " + ", ".join(LISTS)
)
_SOME_CLASSES = (
    "Acne_Vulgaris",
    "Basal_Cell_Carcinoma",
    "Herpes_Zoster",
    "Keloid",
    "Rosacea",
    "Seborrheic_Keratosis",
    "Tinea_Corporis",
)


def prepare(raw: Path, out: Path) -> Path:
    """Write `out/manifest.csv` for an unpacked SD-198 archive.

    Parameters
    ----------
    raw
        Folder with `images/`, or with the folders of diseases. The manifest's images are
        relative to it.

    Returns
    -------
    Path
        The manifest: `image` and `label` (the disease, with spaces for underscores). Nothing is
        known of patients.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the images are missing, or the lists do not fit together.
    """
    check_root(raw, _EXPECTED, _fits)
    folder = raw / "images" if (raw / "images").is_dir() else raw
    files = {entry(file, folder): entry(file, raw) for file in files_below(folder, PHOTOGRAPHS)}
    labels = _listed_labels(raw, folder, files) if _has_lists(raw) else _folder_labels(files)
    if not labels:
        raise DerminoError(
            "DATASET_LAYOUT",
            "The folders of diseases hold no image.",
            where=folder,
            fix="Unpack the archive again.",
        )
    manifest = out / "manifest.csv"
    rows = [(files[path], one_label(name.replace("_", " "))) for path, name in labels.items()]
    write_table(manifest, ("image", "label"), rows)
    return manifest


def _listed_labels(raw: Path, folder: Path, files: dict[str, str]) -> dict[str, str]:
    """Path in `folder` -> class, from the three lists."""
    classes, images, classes_of = (_read_list(raw / name) for name in LISTS)
    missing = [path for path in images.values() if path not in files]
    refuse_missing(missing, len(images), where=folder, kind=f"images of {LISTS[1]}")
    labels: dict[str, str] = {}
    for number, path in images.items():
        name = classes.get(classes_of.get(number, ""))
        if name is None:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"Image {number} ({path}) has the class {classes_of.get(number, 'none')}, which "
                f"{LISTS[0]} does not name.",
                where=raw / LISTS[2],
                fix="Use the three lists of one archive.",
            )
        labels[path] = name
    return labels


def _folder_labels(files: dict[str, str]) -> dict[str, str]:
    return {path: path.partition("/")[0] for path in files if "/" in path}


def _read_list(file: Path) -> dict[str, str]:
    """First word -> rest of the line."""
    words: dict[str, str] = {}
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        first, *rest = line.split(maxsplit=1)
        if not rest:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The line is {first[:60]!r}, not a number and a name.",
                where=f"{file}, line {place}",
                fix="Use the three lists of one archive.",
            )
        words[first] = rest[0].strip()
    return words


def _has_lists(folder: Path) -> bool:
    return all((folder / name).is_file() for name in LISTS)


def _fits(folder: Path) -> bool:
    if (folder / "images").is_dir() and _has_lists(folder):
        return True
    return any(
        sum((parent / name).is_dir() for name in _SOME_CLASSES) >= 2
        for parent in (folder / "images", folder)
    )
