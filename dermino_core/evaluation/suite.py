"""Every public data set of the paper that is under one folder."""

from __future__ import annotations

from pathlib import Path

from dermino_core.datasets import DATASETS
from dermino_core.errors import DerminoError
from dermino_core.evaluation.cohort import Cohort, open_cohort
from dermino_core.evaluation.results import Skipped
from dermino_core.manifest import read_manifest


def paper_suite(data: Path, work: Path) -> tuple[list[Cohort], list[Skipped]]:
    """Read what is there; say what is not.

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
    for name, info in DATASETS.items():
        raw = data / name
        if not raw.is_dir():
            sentence = f"not under {data}; get it from {info.where}"
            missing.append(_skipped(name, "DATASET_LAYOUT", sentence))
            continue
        try:
            table = read_manifest(info.prepare(raw, work / name), root=raw)
            cohorts.append(open_cohort(name, table, title=info.title))
        except DerminoError as error:
            missing.append(_skipped(name, error.code, error.what))
    if not cohorts:
        raise DerminoError(
            "DATASET_LAYOUT",
            f"None of the {len(DATASETS)} data sets is here.",
            where=data,
            fix=f"Put a download into a folder of its name, e.g. {data / 'ph2'}; "
            "`dermino data list` has the names.",
        )
    return cohorts, missing


def _skipped(name: str, code: str, sentence: str) -> Skipped:
    return Skipped(dataset=name, task="all", code=code, sentence=sentence)
