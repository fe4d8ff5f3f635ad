"""Diagnoses of the training images of the ISIC challenges 2016 to 2020, from five kinds of table.

The classification tasks: Gutman et al. 2016 (benign or malignant), Codella et al. 2017 and 2018,
ISIC 2019, Rotemberg et al. 2021 (2020). File names as the challenge's page gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from dermino_core.datasets.originals import Line, read_lines, unknown_label
from dermino_core.errors import DerminoError

BENIGN, MALIGNANT = "benign", "malignant"

CODES: Mapping[str, str] = MappingProxyType(
    {
        "MEL": "melanoma",
        "NV": "melanocytic nevus",
        "BCC": "basal cell carcinoma",
        "AKIEC": "actinic keratosis / intraepithelial carcinoma",
        "AK": "actinic keratosis",
        "BKL": "benign keratosis",
        "DF": "dermatofibroma",
        "VASC": "vascular lesion",
        "SCC": "squamous cell carcinoma",
    }
)
"""Columns of the tables of 2018 and 2019 -> diagnosis."""

_CANCERS = ("MEL", "BCC", "AKIEC", "AK", "SCC")
NAMES_2020: Mapping[str, str] = MappingProxyType(
    {
        "nevus": "melanocytic nevus",
        "melanoma": "melanoma",
        "seborrheic keratosis": "seborrheic keratosis",
        "lentigo nos": "lentigo",
        "solar lentigo": "solar lentigo",
        "lichenoid keratosis": "lichenoid keratosis",
        "cafe-au-lait macule": "cafe-au-lait macule",
        "atypical melanocytic proliferation": "atypical melanocytic proliferation",
    }
)
"""Diagnoses of the table of 2020 -> ours. `unknown` has only benign or malignant."""

MEANINGS: Mapping[str, str] = MappingProxyType(
    {BENIGN: BENIGN, MALIGNANT: MALIGNANT}
    | {name: MALIGNANT if code in _CANCERS else BENIGN for code, name in CODES.items()}
    | {name: MALIGNANT if name == "melanoma" else BENIGN for name in NAMES_2020.values()}
)
"""Every label -> benign or malignant. Actinic keratosis counts as malignant everywhere here."""

_TRUTHS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        2016: ("ISBI2016_ISIC_Part3_Training_GroundTruth.csv",),
        2017: ("ISIC-2017_Training_Part3_GroundTruth.csv",),
        2018: ("ISIC2018_Task3_Training_GroundTruth.csv",),
        2019: ("ISIC_2019_Training_GroundTruth.csv",),
        2020: ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv"),
    }
)
_DETAILS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        2017: ("image_id", "ISIC-2017_Training_Data_metadata.csv"),
        2018: ("image", "ISIC2018_Task3_Training_LesionGroupings.csv"),
        2019: ("image", "ISIC_2019_Training_Metadata.csv"),
    }
)
"""Year -> the image column and name of a table with more about the images, read if it is here."""

YEARS = tuple(_TRUTHS)


@dataclass(frozen=True)
class Diagnosis:
    """What is known of an image. `group` is the patient (2020) or the lesion (2018, 2019)."""

    label: str
    binary: str
    group: str = ""
    sex: str = ""
    age: str = ""


def read_diagnoses(year: int, tables: Mapping[str, Path]) -> dict[str, Diagnosis]:
    """Image name in small letters, without ending -> its diagnosis.

    Parameters
    ----------
    year
        One of :data:`YEARS`.
    tables
        Name in small letters -> file: what CSV files there are.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if the year's table is missing, lacks a column, or holds a diagnosis that
        is not known.
    """
    names = _TRUTHS[year]
    file = next((tables[name.lower()] for name in names if name.lower() in tables), None)
    if file is None:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"The diagnoses of {year} are not there: {' or '.join(names)}.",
            fix=f"Put the table into the folder {year}/.",
        )
    found = _READERS[year](file)
    image, detail = _DETAILS.get(year, ("", ""))
    if detail.lower() in tables:
        for line in read_lines(tables[detail.lower()], (image,)):
            name = line[image].casefold()
            if name in found:
                found[name] = replace(found[name], **_personal(line))
    return found


def _read_2016(file: Path) -> dict[str, Diagnosis]:
    words = {"0": BENIGN, "0.0": BENIGN, "1": MALIGNANT, "1.0": MALIGNANT}
    words |= {BENIGN: BENIGN, MALIGNANT: MALIGNANT}
    found: dict[str, Diagnosis] = {}
    for line in read_lines(file, (), header=("image", "label")):
        if not line["image"].upper().startswith("ISIC_"):  # some copies have a header
            continue
        if line["label"] not in words:
            raise unknown_label(f"The label of {line['image']}", line["label"], words, line.where)
        label = words[line["label"]]
        found[line["image"].casefold()] = Diagnosis(label, label)
    return found


def _read_2017(file: Path) -> dict[str, Diagnosis]:
    found: dict[str, Diagnosis] = {}
    names = {"melanoma": "melanoma", "seborrheic_keratosis": "seborrheic keratosis"}
    for line in read_lines(file, ("image_id", *names)):
        given = _marked(line, tuple(names))
        if len(given) > 1:
            raise _undecided(line["image_id"], given, line.where)
        label = names[given[0]] if given else "melanocytic nevus"
        found[line["image_id"].casefold()] = Diagnosis(label, MEANINGS[label])
    return found


def _read_columns(file: Path) -> dict[str, Diagnosis]:
    """2018 and 2019: one column for each diagnosis, 1.0 in one of them."""
    found: dict[str, Diagnosis] = {}
    for line in read_lines(file, ("image", "MEL", "NV")):
        given = _marked(line, [name for name in line.cells if name != "image"])
        if len(given) != 1 or given[0] not in CODES:
            raise _undecided(line["image"], given, line.where)
        label = CODES[given[0]]
        found[line["image"].casefold()] = Diagnosis(label, MEANINGS[label])
    return found


def _read_2020(file: Path) -> dict[str, Diagnosis]:
    found: dict[str, Diagnosis] = {}
    columns = ("image_name", "patient_id", "diagnosis", "benign_malignant")
    for line in read_lines(file, columns):
        name, binary = line["image_name"], line["benign_malignant"]
        if binary not in {BENIGN, MALIGNANT}:
            raise unknown_label(f"The kind of {name}", binary, (BENIGN, MALIGNANT), line.where)
        told = line.known("diagnosis").casefold()
        if told and told not in NAMES_2020:
            raise unknown_label(f"The diagnosis of {name}", told, NAMES_2020, line.where)
        label = NAMES_2020[told] if told else binary
        known = _personal(line) | {"group": line["patient_id"]}
        found[name.casefold()] = replace(Diagnosis(label, binary), **known)
    return found


_READERS = MappingProxyType(
    {
        2016: _read_2016,
        2017: _read_2017,
        2018: _read_columns,
        2019: _read_columns,
        2020: _read_2020,
    }
)


def _marked(line: Line, columns: Sequence[str]) -> list[str]:
    return [column for column in columns if line[column] in {"1", "1.0"}]


def _undecided(image: str, given: Sequence[str], where: str) -> DerminoError:
    return DerminoError(
        "DATASET_LAYOUT",
        f"{image} has {' and '.join(given) or 'no diagnosis'} marked, not one of "
        f"{', '.join(CODES)}.",
        where=where,
        fix="Use the table of the original download.",
    )


def _personal(line: Line) -> dict[str, str]:
    return {
        "group": line.known("lesion_id"),
        "sex": line.known("sex"),
        "age": line.known("age_approx") or line.known("age_approximate"),
    }
