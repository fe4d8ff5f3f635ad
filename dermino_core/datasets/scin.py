"""SCIN: 5,033 cases of up to three photographs, given by people who searched the web in the USA.

Ward et al., JAMA Network Open 7 (2024). The bucket holds `dataset/scin_cases.csv`,
`dataset/scin_labels.csv` and `dataset/images/`; a table fetched by itself may be called
`dataset_scin_cases.csv`. Up to three dermatologists named conditions for a case; the data set
weighs them into one list whose weights sum to 1 (`weighted_skin_condition_label`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from dermino_core.datasets.layout import check_root
from dermino_core.datasets.originals import PHOTOGRAPHS, Line, by_stem, entry, files_below
from dermino_core.datasets.published import (
    fitzpatrick_type,
    list_missing,
    one_label,
    read_published,
    sex_of,
)
from dermino_core.datasets.tables import write_table
from dermino_core.errors import DerminoError

PATHS = ("image_1_path", "image_2_path", "image_3_path")
CONDITIONS = "weighted_skin_condition_label"
COLUMNS = ("image", "label", "group", "skin_type", "sex", "age_group", "differential")

_EXPECTED = "scin_cases.csv, scin_labels.csv and the folder images/ of SCIN"


def prepare(raw: Path, out: Path, *, min_weight: float | None = None) -> Path:
    """Write `out/manifest.csv` for SCIN's two tables and the images that are here.

    Each image is written once, even if several cases show it (some do); its labels are then the
    first labelled case's, and these cases are one group. Images that are not here are left out
    and listed in `out/missing.csv`: the published folder itself lacks one.

    Parameters
    ----------
    raw
        Folder with the two tables and `images/`, or the folder around it. The manifest's images
        are relative to it.
    min_weight
        A case's labels are all conditions of at least this weight (0..1); by default those of
        the greatest weight, which are several where dermatologists tie.

    Returns
    -------
    Path
        The manifest: `image`, `label` (several separated by `|`; empty where no dermatologist
        named a condition), `group` (the case), `skin_type` (1..6 as the person said), `sex`,
        `age_group` (such as 18-29; an age in years is not published), `differential` (every
        condition with its weight).

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a weight outside 0..1; `DATASET_LAYOUT` if a table, a column or all
        images are missing, or a list of conditions is not one.
    """
    if min_weight is not None and not 0.0 <= min_weight <= 1.0:
        raise DerminoError(
            "CONFIG_INVALID",
            f"The least weight of a label is {min_weight:g}, which is not in 0..1.",
            fix="Leave it out to take the conditions of the greatest weight.",
        )
    check_root(raw, _EXPECTED, lambda folder: _tables(folder) is not None)
    cases_table, labels_table = _tables(raw) or (raw, raw)
    cases = read_published(cases_table, ("case_id", PATHS[0]))
    conditions = {
        line["case_id"]: read_conditions(line)
        for line in read_published(labels_table, ("case_id", CONDITIONS))
    }
    here = by_stem(files_below(cases_table.parent, PHOTOGRAPHS))
    groups = _groups(cases)
    rows: dict[str, tuple[str, ...]] = {}
    missing: dict[str, tuple[str, str, str]] = {}
    for line in cases:
        found = conditions.get(line["case_id"], {})
        for name in _images(line):
            file = here.get(name)
            if file is None:
                reason = "not in the image folder"
                missing.setdefault(name, (name, line["case_id"], reason))
            elif name not in rows or (found and not rows[name][1]):
                label = "|".join(_leading(found, min_weight))
                case = (entry(file, raw), label, groups[line["case_id"]])
                rows[name] = (*case, *_about(line), _differential(found))
    if not rows:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"None of the {len(missing):,} images of the table is here.",
            where=cases_table.parent / "images",
            fix="Fetch the bucket's folder dataset/images/ too.",
        )
    manifest = out / "manifest.csv"
    list_missing(out, ("image", "case_id", "reason"), list(missing.values()))
    write_table(manifest, COLUMNS, rows.values())
    return manifest


def read_conditions(line: Line) -> dict[str, float]:
    """Condition -> weight, greatest first, from a row of `scin_labels.csv`; empty if not labelled.

    Example
    -------
    >>> read_conditions(Line({CONDITIONS: "{'Acne': 0.3, 'Rosacea': 0.7}"}, where=""))
    {'Rosacea': 0.7, 'Acne': 0.3}

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the cell is not a list of conditions with weights.
    """
    text = line[CONDITIONS]
    try:
        cell = ast.literal_eval(text or "{}")
        weights = {one_label(str(name)): float(weight) for name, weight in cell.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        raise DerminoError(
            "DATASET_LAYOUT",
            f"The conditions are {text[:60]!r}, not like {{'Eczema': 0.69, 'Psoriasis': 0.31}}.",
            where=line.where,
            fix="Use the scin_labels.csv that the authors publish.",
        ) from None
    return dict(sorted(weights.items(), key=lambda item: -item[1]))


def _leading(conditions: Mapping[str, float], min_weight: float | None) -> list[str]:
    # Weights are rounded, or sums of thirds in floating point: equal means nearly equal.
    least = max(conditions.values(), default=0.0) - 1e-6 if min_weight is None else min_weight
    return [name for name, weight in conditions.items() if weight >= least]


def _differential(conditions: Mapping[str, float]) -> str:
    return "|".join(f"{name}={weight:g}" for name, weight in conditions.items())


def _about(line: Line) -> tuple[str, str, str]:
    """Skin type, sex and age group of the person."""
    age = line["age_group"].removeprefix("AGE_").replace("_TO_", "-").replace("_OR_ABOVE", "+")
    return (
        fitzpatrick_type(line["fitzpatrick_skin_type"]),
        sex_of(line["sex_at_birth"]),
        "" if age == "UNKNOWN" else age,
    )


def _images(line: Line) -> list[str]:
    """Names of a case's image files, without ending."""
    return [PurePosixPath(path).stem.casefold() for name in PATHS if (path := line[name])]


def _groups(cases: Iterable[Line]) -> dict[str, str]:
    """Case -> the first case that it is tied to by a shared image."""
    group: dict[str, str] = {}
    first_with: dict[str, str] = {}
    for line in cases:
        case = line["case_id"]
        group.setdefault(case, case)
        for name in _images(line):
            other, own = group[first_with.setdefault(name, case)], group[case]
            if other != own:
                group.update({tied: other for tied, root in group.items() if root == own})
    return group


def _tables(folder: Path) -> tuple[Path, Path] | None:
    for parent in (folder, folder / "dataset"):
        for prefix in ("", "dataset_"):
            cases, labels = (parent / f"{prefix}scin_{name}.csv" for name in ("cases", "labels"))
            if cases.is_file() and labels.is_file():
                return cases, labels
    return None
