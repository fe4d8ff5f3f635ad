"""Fed-ISIC2019: the training images of ISIC 2019 at the six centres that took them.

The protocol of FLamby (Ogier du Terrail et al., NeurIPS Datasets and Benchmarks 2022, arXiv
2210.04620): of 25,331 dermoscopic images with eight diagnoses those 23,247 are used whose centre is
known. The first four letters of an image's `lesion_id` name its collection: `BCN_` (Barcelona),
`MSK4` (one of Memorial Sloan Kettering's) or `HAM_` (HAM10000). HAM10000's own table divides the
last into four: three of Vienna's archives and Cliff Rosendahl's practice. The 2,084 images without
a `lesion_id` have no centre. The metric is balanced accuracy, on 20 % of each centre's images.

FLamby draws these 20 % image by image, so that photographs of one lesion are on both sides of its
published split, and its images are shrunk and their colours made constant beforehand. Here lesions
stay together unless the published split is asked for, and images are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dermino_core.datasets import ham10000
from dermino_core.datasets.isic_diagnoses import CODES
from dermino_core.datasets.layout import check_root, child
from dermino_core.datasets.originals import (
    JPEG,
    Line,
    Split,
    by_stem,
    check_choice,
    entry,
    files_below,
    listed,
    read_lines,
    refuse_missing,
    unknown_label,
)
from dermino_core.datasets.published import list_missing
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

CENTRES: Mapping[str, int] = MappingProxyType(
    {
        "bcn": 12_413,
        "vidir-molemax": 3_954,
        "vidir-modern": 3_363,
        "rosendahl": 2_259,
        "msk4": 819,
        "vienna-dias": 439,
    }
)
"""Site -> its images in the publication, in FLamby's order: the first is its centre 0."""

LABELS: Mapping[str, str] = MappingProxyType(
    {code: CODES[code] for code in ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")}
)
"""Column of the table of diagnoses -> class, in FLamby's order: the first is its target 0."""

TRAIN_SHARE = 0.8

TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
IMAGES = "ISIC_2019_Training_Input"
SPLIT_TABLES = ("train_test_split", "train_test_split.csv", "train_test_folds.csv")
HEADER = ("image", "label", "group", "sex", "age", "localization", "centre")
PUBLISHED_HEADER = ("image", "label", "lesion", "sex", "age", "localization", "centre", "split")

_COLLECTIONS: Mapping[str, str] = MappingProxyType({"BCN_": "bcn", "MSK4": "msk4"})
_HAM = "HAM_"
_HAM_CENTRES: Mapping[str, str] = MappingProxyType(
    {
        "vidir_molemax": "vidir-molemax",
        "vidir_modern": "vidir-modern",
        "rosendahl": "rosendahl",
        "vienna_dias": "vienna-dias",
    }
)
_EXPECTED = f"{TRUTH}, {METADATA}, HAM10000_metadata and the folder {IMAGES}/"
_NO_CENTRE = "no lesion_id in the metadata, so its centre is not known"


@dataclass(frozen=True)
class _Image:
    """One image that has a centre."""

    name: str
    code: str
    centre: str
    line: Line


def prepare(raw: Path, out: Path, *, split: Split = "halves") -> Path:
    """Write a manifest for each centre, and one for all of them.

    Images without a centre are listed in `out/missing.csv`; they need not be there.

    Parameters
    ----------
    raw
        Folder with ISIC 2019's two tables of the training images, HAM10000's table
        (`HAM10000_metadata`, with the ending .csv, .tab or none) and the images, in
        `ISIC_2019_Training_Input/` or any folders. The manifests' images are relative to it.
    split
        `"halves"`: left to whoever uses the manifest; lesions are groups. `"published"`: FLamby's,
        from its file `train_test_split` in `raw`. Because that tears lesions apart, the manifests
        then have the column `lesion` in place of `group`.

    Returns
    -------
    Path
        `out/manifest.csv`: `image`, `label` (one of eight codes), `group` or `lesion`, `sex`, `age`
        (years), `localization`, `centre`, and `split` if it is the published one. Beside it
        `out/CENTRE.csv` for each of :data:`CENTRES`, with the same columns.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if tables or images are missing or do not belong together, a diagnosis or
        centre is unknown, or a centre has no image; `CONFIG_INVALID` for another `split`.
    """
    check_choice("split", split, Split)
    check_root(
        raw, _EXPECTED, lambda folder: all((folder / f).is_file() for f in (TRUTH, METADATA))
    )
    images, without_centre = _read_images(raw)
    here = by_stem(files_below(child(raw, IMAGES) or raw, JPEG))
    absent = [image.name for image in images if image.name.casefold() not in here]
    refuse_missing(absent, len(images), where=raw)
    header, sides = HEADER, {}
    if split == "published":
        header, sides = PUBLISHED_HEADER, _read_split(raw, images)
    rows: dict[str, list[tuple[str, ...]]] = {centre: [] for centre in CENTRES}
    for image in images:
        side = (sides[image.name],) if sides else ()
        file = entry(here[image.name.casefold()], raw)
        rows[image.centre].append((file, *_facts(image), image.centre, *side))
    if empty := [centre for centre, those in rows.items() if not those]:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"The tables have no image of the centre {', '.join(empty)}.",
            where=raw,
            fix="Use the tables of the original downloads, whole.",
        )
    for centre, those in rows.items():
        write_table(out / f"{centre}.csv", header, those)
    list_missing(out, ("image", "reason"), [(name, _NO_CENTRE) for name in without_centre])
    manifest = out / "manifest.csv"
    write_table(manifest, header, [row for those in rows.values() for row in those])
    return manifest


def _facts(image: _Image) -> tuple[str, ...]:
    line = image.line
    known = [line.known(name) for name in ("sex", "age_approx", "anatom_site_general")]
    return (image.code, line["lesion_id"], *known)


def _read_images(raw: Path) -> tuple[list[_Image], list[str]]:
    """The images with a centre, and the names of the others, both by name."""
    codes = _read_codes(raw / TRUTH)
    details = _by_image(raw / METADATA, ("image", "lesion_id", "sex", "age_approx"))
    for file, names, others in ((METADATA, details, codes), (TRUTH, codes, details)):
        if lacking := sorted(set(others) - set(names)):
            raise DerminoError(
                "DATASET_LAYOUT",
                f"{file} lacks {len(lacking)} images that the other table has: {listed(lacking)}.",
                where=raw / file,
                fix="Use both tables of the original download.",
            )
    if not codes:
        raise DerminoError("DATASET_LAYOUT", "The table names no image.", where=raw / TRUTH)
    with_lesion = [name for name in sorted(details) if details[name].known("lesion_id")]
    from_ham = [name for name in with_lesion if details[name]["lesion_id"].startswith(_HAM)]
    sources = _read_sources(raw, from_ham)
    images = [
        _Image(name, codes[name], _centre(name, details[name], sources), details[name])
        for name in with_lesion
    ]
    return images, sorted(set(details) - set(with_lesion))


def _centre(name: str, line: Line, sources: Mapping[str, str]) -> str:
    if name in sources:
        return sources[name]
    collection = line["lesion_id"][:4]
    if collection not in _COLLECTIONS:
        what = f"The collection of {name}"
        raise unknown_label(what, collection, (*_COLLECTIONS, _HAM), line.where)
    return _COLLECTIONS[collection]


def _read_codes(file: Path) -> dict[str, str]:
    """Image -> the one column that is marked."""
    codes: dict[str, str] = {}
    for name, line in _by_image(file, ("image", *LABELS)).items():
        others = [column for column in line.cells if column != "image"]
        marked = [column for column in others if line[column] in {"1", "1.0"}]
        if len(marked) != 1 or marked[0] not in LABELS:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"{name} has {' and '.join(marked) or 'no diagnosis'} marked, not one of "
                f"{', '.join(LABELS)}.",
                where=line.where,
                fix="Use the table of the original download.",
            )
        codes[name] = marked[0]
    return codes


def _read_sources(raw: Path, from_ham: list[str]) -> dict[str, str]:
    """Image -> centre, for those of HAM10000."""
    if not from_ham:
        return {}
    file = next((raw / name for name in ham10000.TABLES if (raw / name).is_file()), None)
    if file is None:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"HAM10000_metadata is not there: it tells the centre of {len(from_ham)} images.",
            where=raw,
            fix="Put HAM10000_metadata (.csv, .tab or without ending) from "
            "doi.org/10.7910/DVN/DBW86T beside the tables of ISIC 2019.",
        )
    lines = _by_image(file, ("image_id", "dataset"))
    absent = [name for name in from_ham if name not in lines]
    refuse_missing(absent, len(from_ham), where=file, kind="images of HAM10000 in its table")
    centres: dict[str, str] = {}
    for name in from_ham:
        source = lines[name]["dataset"]
        if source not in _HAM_CENTRES:
            raise unknown_label(f"The source of {name}", source, _HAM_CENTRES, lines[name].where)
        centres[name] = _HAM_CENTRES[source]
    return centres


def _read_split(raw: Path, images: list[_Image]) -> dict[str, str]:
    """Image -> `train` or `test` of the column `fold2`, FLamby's split by centre."""
    file = next((raw / name for name in SPLIT_TABLES if (raw / name).is_file()), None)
    if file is None:
        raise DerminoError(
            "DATASET_LAYOUT",
            "The published split is not there: train_test_split.",
            where=raw,
            fix="Put the file train_test_split of github.com/owkin/FLamby (flamby/datasets/"
            "fed_isic2019/dataset_creation_scripts/) beside the tables, or leave the option out.",
        )
    lines = _by_image(file, ("image", "target", "center", "fold2"))
    absent = [image.name for image in images if image.name not in lines]
    refuse_missing(absent, len(images), where=file, kind="images in the published split")
    numbers = {centre: str(number) for number, centre in enumerate(CENTRES)}
    targets = {code: str(number) for number, code in enumerate(LABELS)}
    sides: dict[str, str] = {}
    for image in images:
        line, number = lines[image.name], numbers[image.centre]
        expected = (targets[image.code], number)
        side = {f"train_{number}": "train", f"test_{number}": "test"}.get(line["fold2"])
        if side is None or (line["target"], line["center"]) != expected:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The published split has {image.name} as target {line['target']!r}, center "
                f"{line['center']!r}, fold2 {line['fold2']!r}; the tables of ISIC 2019 and "
                f"HAM10000 say target {expected[0]}, center {expected[1]}.",
                where=line.where,
                fix="Use the file of the publication with the tables of the original downloads.",
            )
        sides[image.name] = side
    return sides


def _by_image(file: Path, columns: tuple[str, ...]) -> dict[str, Line]:
    """Name of the image, in the first of `columns` -> its line."""
    lines: dict[str, Line] = {}
    for line in read_lines(file, columns):
        name = line[columns[0]]
        if name in lines:
            raise DerminoError(
                "DATASET_LAYOUT",
                f"The table names {name or 'no image'} twice.",
                where=line.where,
                fix="Use the table of the original download.",
            )
        lines[name] = line
    return lines
