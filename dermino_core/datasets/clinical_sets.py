"""Public data sets: photographs taken without a dermatoscope."""

from __future__ import annotations

from types import MappingProxyType

from dermino_core.datasets.info import MALIGNANCY, DatasetInfo

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
        licence="annotations CC BY-NC-SA 3.0; images belong to the two atlases they lie at",
        where="github.com/mattgroh/fitzpatrick17k (fitzpatrick17k.csv), images with --download",
        paper_use="partition 2 as a federated site (4.2.4); 3 and 9 for classification, fairness",
        options=frozenset({"partition"}),
    ),
)
