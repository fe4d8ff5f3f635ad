"""Public data sets that the paper pretrains on and measures nothing on (4.3.2, 4.3.3)."""

from __future__ import annotations

from types import MappingProxyType

from dermino_core.datasets.dermnet import CATEGORIES, label_of
from dermino_core.datasets.info import DatasetInfo
from dermino_core.datasets.padufes20 import LABELS as PADUFES20_LABELS

_UNMAPPED = MappingProxyType[str, str]({})
_DERMNET_LABELS = tuple(label_of(category) for category in CATEGORIES)

PRETRAINING_SETS = (
    DatasetInfo(
        name="scin",
        title="SCIN",
        task="pretraining",
        classes=(),
        label_map=_UNMAPPED,
        label_words="conditions that dermatologists named from the pictures",
        images=10379,
        modality="both",
        licence="SCIN Data Use License: attribution, no attempt to identify anybody",
        where="github.com/google-research-datasets/scin (bucket dx-scin-public-data, dataset/)",
        paper_use="pretraining with 10,379 images, 6,505 of them labelled",
        options=frozenset({"min_weight"}),
    ),
    DatasetInfo(
        name="sd198",
        title="SD-198",
        task="pretraining",
        classes=(),
        label_map=_UNMAPPED,
        label_words="198 diseases",
        images=6584,
        modality="both",
        licence="not stated in the download; images from DermQuest (Galderma), research use",
        where="from the authors of Sun et al., ECCV 2016 (xiaoxiaosun.com)",
        paper_use="pretraining with all 6,584 images and labels",
    ),
    DatasetInfo(
        name="padufes20",
        title="PAD-UFES-20",
        task="pretraining",
        classes=tuple(PADUFES20_LABELS.values()),
        label_map=MappingProxyType({name: name for name in PADUFES20_LABELS.values()}),
        images=1149,
        modality="clinical",
        licence="CC BY 4.0",
        where="data.mendeley.com/datasets/zr7vgbcyr2 (metadata.csv, imgs_part_1.zip to _3.zip)",
        paper_use="pretraining with 1,149 of its 2,298 images; which ones is not published",
    ),
    DatasetInfo(
        name="dermnet",
        title="DermNet",
        task="pretraining",
        classes=_DERMNET_LABELS,
        label_map=MappingProxyType({name: name for name in _DERMNET_LABELS}),
        label_words="23 categories of diseases",
        images=18856,
        modality="clinical",
        licence="images belong to DermNet; the paper's authors asked for permission",
        where="kaggle.com/datasets/shubhamgoel27/dermnet (train/ and test/)",
        paper_use="pretraining with 18,856 images and labels; which ones is not published",
    ),
    DatasetInfo(
        name="lesion130k",
        title="LESION130k",
        task="pretraining",
        classes=(),
        label_map=_UNMAPPED,
        label_words="none",
        images=95999,
        modality="both",
        licence="list of addresses: MIT; images belong to the websites they lie at",
        where="github.com/whria78/can (DATASET/LESION130k.csv and download.py)",
        paper_use="pretraining without labels, with 95,999 of the 132,673 listed images",
    ),
)
