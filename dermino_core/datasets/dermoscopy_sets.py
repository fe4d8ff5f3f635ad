"""Public data sets: taken through a dermatoscope, wholly or in part."""

from __future__ import annotations

from types import MappingProxyType

from dermino_core.datasets.info import MALIGNANCY, DatasetInfo

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
)
