"""The public data sets that dermino reads: original download -> manifest.

Nothing here copies an image: a manifest's entries are relative to the folder of the download,
which is the `images` folder to name wherever the manifest is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dermino_core.datasets.clinical_sets import CLINICAL_SETS
from dermino_core.datasets.dermoscopy_sets import DERMOSCOPY_SETS
from dermino_core.datasets.info import DatasetInfo
from dermino_core.datasets.pretraining_sets import PRETRAINING_SETS
from dermino_core.datasets.synthetic_sites import SITES
from dermino_core.errors import DerminoError

__all__ = ["DATASETS", "DatasetInfo", "find_dataset"]

DATASETS: Mapping[str, DatasetInfo] = MappingProxyType(
    {info.name: info for info in (*CLINICAL_SETS, *DERMOSCOPY_SETS, *PRETRAINING_SETS)}
)
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
            fix=f"Use one of: {', '.join(sorted(DATASETS))}; drawn here: "
            + ", ".join(site.name for site in SITES)
            + ".",
        )
    return info
