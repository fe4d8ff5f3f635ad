"""The public data sets that dermino reads: original download -> manifest.

Nothing here copies an image: a manifest's entries are relative to the folder of the download,
which is the `images` folder to name wherever the manifest is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from dermino_core.datasets.synthetic_sites import SITES
from dermino_core.errors import DerminoError

Prepare = Callable[..., Path]
"""`prepare(raw, out, ...)`: reads the download in `raw`, returns the manifest it wrote."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a user wants to know about a data set before asking for it.

    `label_map` maps the data set's labels onto `classes`; `images` is how many the publication
    names for this use; `where` says where a person gets it; `options` are the keyword arguments
    that its `prepare` takes.
    """

    name: str
    title: str
    task: str
    classes: tuple[str, ...]
    label_map: Mapping[str, str]
    images: int
    modality: Literal["clinical", "dermoscopy"]
    licence: str
    where: str
    paper_use: str
    options: frozenset[str] = frozenset()

    @property
    def prepare(self) -> Prepare:
        """The reader, imported on first use."""
        return import_module(f"{__name__}.{self.name}").prepare


_MALIGNANCY = ("benign", "malignant")

_ALL = (
    DatasetInfo(
        name="mednode",
        title="MED-NODE",
        task="malignancy",
        classes=_MALIGNANCY,
        label_map=MappingProxyType({"naevus": "benign", "melanoma": "malignant"}),
        images=170,
        modality="clinical",
        licence="not stated in the download: ask the University of Groningen",
        where="cs.rug.nl/~imaging/databases/melanoma_naevi (complete_mednode_dataset.zip)",
        paper_use="federated site (4.2.4); classification and retrieval",
    ),
    DatasetInfo(
        name="ph2",
        title="PH2",
        task="malignancy",
        classes=_MALIGNANCY,
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
        name="fitzpatrick17k",
        title="Fitzpatrick17k",
        task="malignancy",
        classes=_MALIGNANCY,
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

DATASETS: Mapping[str, DatasetInfo] = MappingProxyType({info.name: info for info in _ALL})
"""Name -> data set."""


def find_dataset(name: str) -> DatasetInfo:
    """The data set called `name`, in any case.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if there is none; the message lists those that there are.
    """
    info = DATASETS.get(name.casefold())
    if info is None:
        raise DerminoError(
            "CONFIG_INVALID",
            f"There is no data set called {name!r}.",
            fix=f"Use one of: {', '.join(DATASETS)}; drawn here: "
            + ", ".join(site.name for site in SITES)
            + ".",
        )
    return info
