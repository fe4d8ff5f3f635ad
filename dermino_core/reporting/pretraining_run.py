"""A pretraining run folder, read for its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_core.pretraining.tracking import METRICS_FILE, read_metrics
from dermino_core.reporting.projection import Projection, read_projection

Values = Mapping[str, object]

LARGEST = 1e30
"""Numbers beyond this, of a run that diverges, cannot be drawn and count as not finite."""


@dataclass(frozen=True)
class PretrainingRun:
    """What is known of a run; parts that it did not write are empty.

    `about`: run.json. `steps`, `probes`: records by optimiser step. `warnings`, `events`: step and
    sentence.
    """

    about: Values
    steps: Sequence[Values]
    probes: Sequence[Values]
    warnings: Sequence[tuple[int, str]]
    events: Sequence[tuple[int, str]]
    projection: Projection | None

    @property
    def config(self) -> Values:
        """The resolved configuration."""
        return part(self.about, "config")

    @property
    def title(self) -> str:
        """Of the page."""
        name = part(self.config, "model").get("architecture")
        return f"Pretraining of {name}" if name else "Pretraining"

    @property
    def last_step(self) -> int:
        """Optimiser steps of which something was logged."""
        return max((step_of(record) for record in (*self.steps, *self.probes)), default=0)

    def points(self, name: str, *, probe: bool = False) -> list[tuple[int, float]]:
        """Step and value wherever `name` was logged as a finite number."""
        records = self.probes if probe else self.steps
        return [(step_of(r), v) for r in records if (v := number(r, name)) is not None]


def read_run(folder: Path) -> PretrainingRun:
    """Read run.json, metrics.jsonl and projection.npz; only metrics.jsonl has to be there.

    Raises
    ------
    DerminoError
        RESULTS_INVALID if metrics.jsonl is missing, or a file is damaged.
    """
    kinds: dict[str, list[Values]] = {"step": [], "probe": [], "warning": [], "event": []}
    for record in read_metrics(folder / METRICS_FILE):
        kinds.get(str(record.get("kind")), []).append(record)
    maps = folder / "projection.npz"
    return PretrainingRun(
        about=_read_about(folder / "run.json"),
        steps=kinds["step"],
        probes=kinds["probe"],
        warnings=[(step_of(r), str(r.get("text", ""))) for r in kinds["warning"]],
        events=[(step_of(r), str(r.get("text", ""))) for r in kinds["event"]],
        projection=read_projection(maps) if maps.exists() else None,
    )


def part(values: Values, name: str) -> Values:
    """The entry `name` if it is a table, else an empty one."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def number(values: Values, name: str) -> float | None:
    """The entry `name` if it is a number of a size that can be drawn."""
    found = values.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if -LARGEST <= found <= LARGEST else None


def step_of(record: Values) -> int:
    """The record's optimiser step; 0 without one."""
    step = record.get("step")
    return step if isinstance(step, int) else 0


def _read_about(path: Path) -> Values:
    try:
        about = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict):
        raise DerminoError(
            "RESULTS_INVALID",
            "The description of this run cannot be read.",
            where=path,
            fix="Remove the file: the report is then written without its configuration.",
        )
    return about
