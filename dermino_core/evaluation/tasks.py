"""The tasks of an evaluation by name, and what a data set needs for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermino_core.errors import DerminoError
from dermino_core.evaluation import adapters
from dermino_core.evaluation.measure import Outcome
from dermino_core.evaluation.parts import content_of
from dermino_core.evaluation.work import Work


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
        Names of the options that its numbers depend on, beyond seed and replicates.
    after
        Tasks whose findings it adds to, if they ran before.
    """

    run: Callable[[Work], Outcome]
    why_not: Callable[[Work], str | None]
    options: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def depends_on(self, work: Work) -> dict[str, Any]:
        """For the name of a finished part: options, contents of files, earlier tasks."""
        values = work.options.as_json()
        content: dict[str, Any] = {
            name: values[name] for name in ("seed", "replicates", *self.options)
        }
        content["after"] = [name for name in self.after if name in work.earlier]
        if "readers" in self.options and work.options.readers is not None:
            content["answers"] = content_of(work.options.readers)
        if "language_model" in self.options:
            content["language"] = content_of(Path(work.options.language_model))
        if "score_masks_at" in self.options:
            content["masks"] = [
                content_of(work.cohort.manifest.root / record.mask) if record.mask else None
                for record in work.cohort.records
            ]
        return content


def _needs_labels(work: Work) -> str | None:
    return None if len(work.cohort.classes) > 1 else "its images have fewer than two labels"


def _needs_people(work: Work) -> str | None:
    if not work.knows("skin_type", "sex", "age"):
        return "its table has none of the columns skin_type, sex and age"
    return _needs_labels(work)


def _needs_readers(work: Work) -> str | None:
    if work.options.readers is None:
        return "no table of readers' answers was given (--readers)"
    return _needs_labels(work)


def _needs_masks(work: Work) -> str | None:
    return None if work.knows("mask") else "its table has no column mask"


def _needs_captions(work: Work) -> str | None:
    return None if work.knows("caption") else "its table has no column caption"


def _needs_follow_up(work: Work) -> str | None:
    return None if {"time", "event"} <= work.columns else "its table has no columns time and event"


def _needs_visits(work: Work) -> str | None:
    if work.columns & {"date", "day"} and work.columns & {"lesion", "group"}:
        return None
    return "its table has no columns date (or day) and lesion (or group)"


TASKS: Mapping[str, Task] = {
    "retrieval": Task(adapters.run_retrieval, _needs_labels, ("neighbours",)),
    "classification": Task(adapters.run_classification, _needs_labels, ("class_weights",)),
    "label_efficiency": Task(adapters.run_label_efficiency, _needs_labels, ("class_weights",)),
    "calibration": Task(adapters.run_calibration, _needs_labels, ("class_weights",)),
    "fairness": Task(adapters.run_fairness, _needs_people, ("class_weights",)),
    "reader_study": Task(
        adapters.run_reader_study,
        _needs_readers,
        ("class_weights", "readers"),
        after=("label_efficiency",),
    ),
    "segmentation": Task(adapters.run_segmentation, _needs_masks, ("score_masks_at",)),
    "captioning": Task(adapters.run_captioning, _needs_captions, ("language_model", "beams")),
    "survival": Task(adapters.run_survival, _needs_follow_up),
    "longitudinal": Task(adapters.run_longitudinal, _needs_visits),
}
"""In the order in which they run: some use what an earlier one found."""


def chosen_tasks(text: str) -> list[str]:
    """`all`, or names separated by commas, as names in the order in which they run.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for a name that is none.
    """
    wanted = [part.strip().replace("-", "_") for part in text.split(",") if part.strip()]
    if wanted == ["all"]:
        return list(TASKS)
    unknown = [name for name in wanted if name not in TASKS]
    if unknown or not wanted:
        said = f"There is no task called {unknown[0]!r}." if unknown else "No task was named."
        raise DerminoError(
            "CONFIG_INVALID", said, where="--tasks", fix=f"Use all, or: {', '.join(TASKS)}."
        )
    return [name for name in TASKS if name in wanted]
