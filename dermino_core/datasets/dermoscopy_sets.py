"""Public data sets: taken through a dermatoscope, wholly or in part."""

from __future__ import annotations

from types import MappingProxyType

from dermino_core.datasets.derm7pt import CLASSES as DERM7PT_CLASSES
from dermino_core.datasets.derm7pt import GROUPS as DERM7PT_GROUPS
from dermino_core.datasets.fed_isic2019 import CENTRES as FED_ISIC2019_CENTRES
from dermino_core.datasets.fed_isic2019 import LABELS as FED_ISIC2019_LABELS
from dermino_core.datasets.fed_isic2019 import TRAIN_SHARE as FED_ISIC2019_TRAIN_SHARE
from dermino_core.datasets.ham10000 import DIAGNOSES as HAM10000_DIAGNOSES
from dermino_core.datasets.info import MALIGNANCY, DatasetInfo
from dermino_core.datasets.isic_diagnoses import MEANINGS as ISIC_MEANINGS

_ISIC = "challenge.isic-archive.com/data"


def _isic(year: str, images: int, parts: str, licence: str) -> DatasetInfo:
    return DatasetInfo(
        name=f"isic{year}",
        title=f"ISIC {year}, task 1",
        task="segmentation",
        classes=(),
        label_map=MappingProxyType({}),
        images=images,
        modality="dermoscopy",
        licence=licence,
        where=f"{_ISIC}/#{year} (Task 1: images and ground truth)",
        paper_use=f"segmentation (4.4.3): {parts}, divided in halves",
        options=frozenset({"parts", "split"}),
        reader="isic_segmentation",
        arguments=MappingProxyType({"year": year}),
        label_words="none, a mask for each image",
    )


DERMOSCOPY_SETS = (
    DatasetInfo(
        name="ph2",
        title="PH2",
        task="malignancy",
        classes=MALIGNANCY,
        label_map=MappingProxyType(
            {"common nevus": "benign", "atypical nevus": "benign", "melanoma": "malignant"}
        ),
        images=200,
        modality="dermoscopy",
        licence="research and education only, no redistribution",
        where="fc.up.pt/addi/ph2 database.html (request form)",
        paper_use="federated site (4.2.4); classification and segmentation",
    ),
    DatasetInfo(
        name="ham10000",
        title="HAM10000",
        task="diagnosis",
        classes=tuple(HAM10000_DIAGNOSES.values()),
        label_map=HAM10000_DIAGNOSES,
        images=10015,
        modality="dermoscopy",
        licence="CC BY-NC 4.0",
        where="doi.org/10.7910/DVN/DBW86T (Harvard Dataverse)",
        paper_use="not by itself; it is most of ISIC 2018 within ISIC-Duplicate (4.3.2)",
    ),
    DatasetInfo(
        name="fed-isic2019",
        title="Fed-ISIC2019, ISIC 2019 at six centres",
        task="diagnosis",
        classes=tuple(FED_ISIC2019_LABELS.values()),
        label_map=FED_ISIC2019_LABELS,
        images=sum(FED_ISIC2019_CENTRES.values()),
        modality="dermoscopy",
        licence="CC BY-NC 4.0",
        where=f"{_ISIC}/#2019 (training images, metadata and ground truth); "
        "doi.org/10.7910/DVN/DBW86T (HAM10000_metadata); for the published split "
        "github.com/owkin/FLamby (train_test_split)",
        paper_use="none; the benchmark of FLamby (arXiv 2210.04620)",
        options=frozenset({"split"}),
        reader="fed_isic2019",
        centres=FED_ISIC2019_CENTRES,
        train_share=FED_ISIC2019_TRAIN_SHARE,
    ),
    DatasetInfo(
        name="derm7pt",
        title="Derm7pt, seven-point checklist",
        task="diagnosis",
        classes=DERM7PT_CLASSES,
        label_map=MappingProxyType({name: name for name in DERM7PT_CLASSES} | dict(DERM7PT_GROUPS)),
        images=2013,
        modality="both",
        licence="on registration, under the terms of Simon Fraser University's page",
        where="derm.cs.sfu.ca (registration; release_v0.zip)",
        paper_use="classification and retrieval (4.4.1); fairness by sex; training half also "
        "in pretraining (4.3.2)",
        options=frozenset({"images", "split"}),
    ),
    DatasetInfo(
        name="isic-duplicate",
        title="ISIC-Duplicate, ISIC 2016 to 2020 without duplicates",
        task="pretraining",
        classes=MALIGNANCY,
        label_map=ISIC_MEANINGS,
        images=57062,
        modality="dermoscopy",
        licence="that of each year's challenge: CC0 (2016, 2017), CC BY-NC 4.0 (2018 to 2020)",
        where=f"{_ISIC} (training images and diagnoses of five years); "
        "github.com/mmu-dermatology-research/isic_duplicate_removal_strategy (file_lists/)",
        paper_use="pretraining with labels (4.3.2)",
        reader="isic_duplicate",
        label_words="15 diagnoses, or benign or malignant where no more is known",
    ),
    _isic("2016", 379, "the test part", "CC0"),
    _isic("2017", 750, "validation and test", "CC0"),
    _isic("2018", 1100, "validation and test", "as the challenge's page says"),
)
