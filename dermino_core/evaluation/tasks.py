"""The tasks of an evaluation: what each needs, and how it is run on a cohort's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dermino_core.errors import DerminoError
from dermino_core.evaluation.cohort import Cohort, Division, labelled_halves
from dermino_core.evaluation.examples import Halves, Integers
from dermino_core.evaluation.measure import Outcome
from dermino_core.features import FeatureTable


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
    readers
        A CSV file of readers' answers to test images.
    device, precision
        As :func:`dermino_core.backbone.load_backbone`.
    """

    seed: int = 0
    replicates: int = 1000
    neighbours: int = 5
    class_weights: bool = False
    language_model: str = "BioMistral/BioMistral-7B"
    readers: Path | None = None
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
    spec
        The backbone, for tasks that need more of it than class tokens.
    out
        Run folder; trained heads go to its `models/`.
    """

    cohort: Cohort
    division: Division
    table: FeatureTable
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


@dataclass(frozen=True)
class Task:
    """A task by name.

    Attributes
    ----------
    run
        May raise DerminoError: then this task is skipped on this data set.
    why_not
        Why a data set cannot have this task, in a sentence; None if it can.
    options
        Names of the options that its numbers depend on, beyond seed, replicates and device.
    """

    run: Callable[[Work], Outcome]
    why_not: Callable[[Work], str | None]
    options: tuple[str, ...] = ()

    def depends_on(self, options: Options) -> dict[str, Any]:
        """For the name of a finished part."""
        values = options.as_json()
        return {name: values[name] for name in ("seed", "replicates", *self.options)}


def _needs_labels(work: Work) -> str | None:
    return None if work.cohort.classes else "no image has a label"


def _needs_columns(*columns: str) -> Callable[[Work], str | None]:
    def why_not(work: Work) -> str | None:
        if not work.knows(*columns):
            return f"the table has no {' or '.join(columns)}"
        return None

    return why_not


def _retrieval(work: Work) -> Outcome:
    from dermino_core.evaluation.retrieval import retrieval

    options = work.options
    return retrieval(
        work.halves,
        k=options.neighbours,
        replicates=options.replicates,
        seed=options.seed,
        device=options.device,
    )


def _classification(work: Work) -> Outcome:
    from dermino_core.evaluation.classification import classification

    options = work.options
    return classification(
        work.halves,
        class_weights=options.class_weights,
        replicates=options.replicates,
        seed=options.seed,
    )


def _label_efficiency(work: Work) -> Outcome:
    from dermino_core.evaluation.label_efficiency import label_efficiency

    options = work.options
    return label_efficiency(work.halves, replicates=options.replicates, seed=options.seed)
