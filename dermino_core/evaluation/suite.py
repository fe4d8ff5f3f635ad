"""Every public data set of the paper that is under one folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dermino_core.datasets import DATASETS
from dermino_core.datasets.info import DatasetInfo
from dermino_core.errors import DerminoError
from dermino_core.evaluation.cohort import Cohort, open_cohort
from dermino_core.evaluation.results import Skipped
from dermino_core.manifest import Manifest, read_manifest


def paper_suite(data: Path, work: Path) -> tuple[list[Cohort], list[Skipped]]:
    """Read what is there; say what is not. Sets for pretraining only are passed over.

    Parameters
    ----------
    data
        Holds one unpacked download for each data set, in a folder of its name
        (`dermino data list`).
    work
        Gets the manifests, one folder for each data set.

    Raises
    ------
    DerminoError
        `DATASET_LAYOUT` if no data set is there.
    """
    cohorts: list[Cohort] = []
    missing: list[Skipped] = []
    unread: list[str] = []
    for name, info in DATASETS.items():
        if info.task == "pretraining":
            continue
        raw = data / name
        if not raw.is_dir() and info.reader:
            raw = data / info.reader  # parts of one download share its folder
        if not raw.is_dir():
            sentence = f"not under {data}; get it from {info.where}"
            missing.append(_skipped(name, "DATASET_LAYOUT", sentence))
            continue
        try:
            table = read_manifest(info.prepare(raw, work / name), root=raw)
            cohorts.append(open_cohort(name, _as_in_the_paper(table, info), title=info.title))
        except DerminoError as error:
            missing.append(_skipped(name, error.code, error.what))
            unread.append(f"{name}: {error.what}")
    if not cohorts:
        raise DerminoError(
            "DATASET_LAYOUT",
            " ".join(unread) or f"None of the paper's {len(missing)} data sets is here.",
            where=data,
            fix=f"Put a download into a folder of its name, e.g. {data / 'ph2'}; "
            "`dermino data list` has the names.",
        )
    return cohorts, missing


def _as_in_the_paper(table: Manifest, info: DatasetInfo) -> Manifest:
    """Labels mapped onto the classes of the data set's task; others become unknown."""
    if not info.label_map:
        return table
    records = [
        replace(record, label=info.label_map.get(record.label or "")) for record in table.records
    ]
    return Manifest(table.file, table.root, records, table.notes)


def _skipped(name: str, code: str, sentence: str) -> Skipped:
    return Skipped(dataset=name, task="all", code=code, sentence=sentence)
