"""Public data sets: photographs taken without a dermatoscope."""

from __future__ import annotations

from types import MappingProxyType

from dermino_core.datasets.acne04 import GRADES
from dermino_core.datasets.info import MALIGNANCY, DatasetInfo

_FITZPATRICK_LICENCE = "annotations CC BY-NC-SA 3.0; images belong to the two atlases they lie at"
_FITZPATRICK_WHERE = (
    "github.com/mattgroh/fitzpatrick17k (fitzpatrick17k.csv), images with --download"
)
_PARTITION_3 = ("non-neoplastic", "benign", "malignant")
_PARTITION_9 = (
    "benign dermal",
    "benign epidermal",
    "benign melanocyte",
    "genodermatoses",
    "inflammatory",
    "malignant cutaneous lymphoma",
    "malignant dermal",
    "malignant epidermal",
    "malignant melanoma",
)

CLINICAL_SETS = (
    DatasetInfo(
        name="mednode",
        title="MED-NODE",
        task="malignancy",
        classes=MALIGNANCY,
        label_map=MappingProxyType({"naevus": "benign", "melanoma": "malignant"}),
        images=170,
        modality="clinical",
        licence="not stated in the download: ask the University of Groningen",
        where="cs.rug.nl/~imaging/databases/melanoma_naevi (complete_mednode_dataset.zip)",
        paper_use="federated site (4.2.4); classification and retrieval",
    ),
    DatasetInfo(
        name="fitzpatrick17k",
        title="Fitzpatrick17k",
        task="malignancy",
        classes=MALIGNANCY,
        label_map=MappingProxyType(
            {
                "benign": "benign",
                "malignant": "malignant",
                "benign dermal": "benign",
                "benign epidermal": "benign",
                "benign melanocyte": "benign",
                "malignant cutaneous lymphoma": "malignant",
                "malignant dermal": "malignant",
                "malignant epidermal": "malignant",
                "malignant melanoma": "malignant",
            }
        ),
        images=4497,
        modality="clinical",
        licence=_FITZPATRICK_LICENCE,
        where=_FITZPATRICK_WHERE,
        paper_use="partition 2 as a federated site (4.2.4); 3 and 9 for classification, fairness",
        options=frozenset({"partition"}),
    ),
    DatasetInfo(
        name="ddi",
        title="DDI, Diverse Dermatology Images",
        task="malignancy",
        classes=MALIGNANCY,
        label_map=MappingProxyType({name: name for name in MALIGNANCY}),
        images=656,
        modality="clinical",
        licence="Stanford research use agreement: non-commercial, no redistribution",
        where="ddi-dataset.github.io (Stanford AIMI, registration)",
        paper_use="classification and retrieval (4.4.1); training half also in pretraining (4.3.2)",
    ),
    DatasetInfo(
        name="acne04",
        title="ACNE04",
        task="severity",
        classes=GRADES,
        label_map=MappingProxyType({name: name for name in GRADES}),
        images=1457,
        modality="clinical",
        licence="academic use; for others ask the authors",
        where="github.com/xpwu95/LDL (Classification)",
        paper_use="severity grading (4.4.1); training half also in pretraining (4.3.2)",
        options=frozenset({"fold", "split"}),
    ),
    DatasetInfo(
        name="skincancer",
        title="Skin cancer detection, University of Waterloo",
        task="segmentation",
        classes=("not melanoma", "melanoma"),
        label_map=MappingProxyType({"not melanoma": "not melanoma", "melanoma": "melanoma"}),
        images=206,
        modality="clinical",
        licence="not stated in the download; images belong to DermIS and DermQuest",
        where="uwaterloo.ca/vision-image-processing-lab/research-demos/skin-cancer-detection",
        paper_use="segmentation, divided in halves (4.4.3)",
    ),
    DatasetInfo(
        name="fitzpatrick17k-3",
        title="Fitzpatrick17k-3",
        task="diagnosis",
        classes=_PARTITION_3,
        label_map=MappingProxyType({name: name for name in _PARTITION_3}),
        images=16577,
        modality="clinical",
        licence=_FITZPATRICK_LICENCE,
        where=_FITZPATRICK_WHERE,
        paper_use="classification and retrieval (4.4.1); fairness over skin types",
        reader="fitzpatrick17k",
        arguments=MappingProxyType({"partition": "3"}),
    ),
    DatasetInfo(
        name="fitzpatrick17k-9",
        title="Fitzpatrick17k-9",
        task="diagnosis",
        classes=_PARTITION_9,
        label_map=MappingProxyType({name: name for name in _PARTITION_9}),
        images=16577,
        modality="clinical",
        licence=_FITZPATRICK_LICENCE,
        where=_FITZPATRICK_WHERE,
        paper_use="classification and retrieval (4.4.1), divided as Fitzpatrick17k-3",
        reader="fitzpatrick17k",
        arguments=MappingProxyType({"partition": "9"}),
    ),
    DatasetInfo(
        name="skincap",
        title="SkinCAP",
        task="captioning",
        classes=(),
        label_map=MappingProxyType({}),
        label_words="a caption and a disease for each image",
        images=4000,
        modality="clinical",
        licence="CC BY-NC-SA 4.0, and KAUST's research use agreement: no redistribution",
        where="huggingface.co/datasets/joshuachou/SkinCAP (registration)",
        paper_use="captioning (4.4.2): 3,600 images to train on, 400 to test",
    ),
)
