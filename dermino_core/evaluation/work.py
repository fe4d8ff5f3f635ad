"""What a task works with: a cohort, the features of one backbone, and a person's options."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dermino_core.evaluation.cohort import Cohort, Division, labelled_halves
from dermino_core.evaluation.examples import Halves, Integers
from dermino_core.evaluation.measure import Outcome
from dermino_core.features import FeatureTable
from dermino_core.manifest_table import read_rows


@dataclass(frozen=True)
class Options:
    """What a person may change about the tasks.

    Attributes
    ----------
    seed
        Of splits, replicates and training.
    replicates
        Of the bootstrap.
    neighbours
        k of retrieval.
    class_weights
        Whether probes weigh classes equally.
    language_model
        Of captioning: a hub name or a folder.
    beams
        Beams of captioning; 1 is greedy.
    readers
        A CSV file of readers' answers to test images.
    score_masks_at
        `input`: 224 pixels, as in the paper; `original`: the mask file's own size.
    device, precision
        As :func:`dermino_core.backbone.load_backbone`.
    """

    seed: int = 0
    replicates: int = 1000
    neighbours: int = 5
    class_weights: bool = False
    language_model: str = "BioMistral/BioMistral-7B"
    beams: int = 1
    readers: Path | None = None
    score_masks_at: Literal["input", "original"] = "input"
    device: str = "auto"
    precision: str = "auto"

    def as_json(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self) | {"readers": None if self.readers is None else str(self.readers)}


@dataclass
class Work:
    """One cohort with the features of one backbone, and what its tasks have found so far.

    Attributes
    ----------
    backbone, spec
        Its name for people, and for tasks that need more of it than class tokens.
    out
        Run folder; trained heads go to its `models/`.
    """

    cohort: Cohort
    division: Division
    table: FeatureTable
    backbone: str
    spec: str
    options: Options
    out: Path
    earlier: dict[str, Outcome] = field(default_factory=dict)

    @cached_property
    def _labelled(self) -> tuple[Halves, Integers, list[str]]:
        return labelled_halves(self.cohort, self.division, self.table)

    @property
    def halves(self) -> Halves:
        """Images whose label is of a class that is in both halves."""
        return self._labelled[0]

    @property
    def test_rows(self) -> Integers:
        """Manifest rows of the labelled test images."""
        return self._labelled[1]

    @property
    def label_notes(self) -> list[str]:
        """What was left out; nothing before labels were asked for."""
        return self._labelled[2] if "_labelled" in self.__dict__ else []

    @cached_property
    def columns(self) -> frozenset[str]:
        """Our names of the table's columns, in lower case."""
        called = self.cohort.columns
        header, _ = read_rows(self.cohort.manifest.file, image_column=called.get("image", "image"))
        there = {name.strip().casefold() for name in header}
        ours = {name for name, theirs in called.items() if theirs.strip().casefold() in there}
        return frozenset(there | ours)

    @property
    def models(self) -> Path:
        """Where heads that this backbone's tasks train on this cohort are kept."""
        return self.out / "models" / file_name(self.backbone) / file_name(self.cohort.name)

    def features_of(self, rows: Integers) -> npt.NDArray[np.float32]:
        """float32 [len(rows), D] of readable rows of the manifest."""
        place = np.full(len(self.cohort.records), -1)
        place[self.table.rows] = np.arange(len(self.table.rows))
        return np.asarray(self.table.vectors[place[rows]], dtype=np.float32)

    def test_labels_and_units(self) -> tuple[Integers, tuple[str, ...]]:
        """Of the labelled test images."""
        return self.halves.test.labels, self.halves.test.units

    def knows(self, *columns: str) -> bool:
        """Whether any image has a value in one of these columns of the manifest."""
        return any(
            getattr(record, column) is not None
            for record in self.cohort.records
            for column in columns
        )


def file_name(name: str) -> str:
    """`name` as one harmless part of a path."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "_"
