"""What is known of a public data set before it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Prepare = Callable[..., Path]
"""`prepare(raw, out, ...)`: reads the download in `raw`, returns the manifest it wrote."""

MALIGNANCY = ("benign", "malignant")
"""Classes of the task `malignancy`."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a user wants to know about a data set before asking for it.

    `label_map` maps the data set's labels onto `classes`; `images` is how many the publication
    names for this use; `where` says where a person gets it; `options` are the keyword arguments
    that its `prepare` takes; `reader` is the module that has `prepare`, if it has another name, and
    `arguments` are what that is given for this data set; `label_words` says what the labels are
    where `label_map` does not, or at too great length. `centres` are the hospitals that a data set
    for federated learning comes from, and their images: `prepare` writes `CENTRE.csv` for each, and
    `train_share` is the protocol's share of training images.
    """

    name: str
    title: str
    task: str
    classes: tuple[str, ...]
    label_map: Mapping[str, str]
    images: int
    modality: Literal["clinical", "dermoscopy", "both"]
    licence: str
    where: str
    paper_use: str
    options: frozenset[str] = frozenset()

    reader: str = ""
    arguments: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    label_words: str = ""
    centres: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    train_share: float = 0.5

    @property
    def prepare(self) -> Prepare:
        """The reader, imported on first use."""
        prepare = import_module(f"dermino_core.datasets.{self.reader or self.name}").prepare
        return partial(prepare, **self.arguments) if self.arguments else prepare
