"""The run's log: one JSON object per line in metrics.jsonl, and the trackers a group asks for.

Nothing leaves the machine unless a person has said so in the environment: W&B logs into the run
folder (`WANDB_MODE` changes that), MLflow into a database there (`MLFLOW_TRACKING_URI`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.pretraining.trackers import Sink, open_sink

Kind = Literal["step", "probe", "warning", "event"]

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes what happens, as it happens; of several processes the first one has it.

    A line is the record with its `kind` in front. `step` in a record is the number of optimiser
    steps done. A number that is not finite becomes null, so that every line is JSON.

    Parameters
    ----------
    folder
        Of the run; made if it is missing.
    trackers
        Of `tensorboard`, `wandb`, `mlflow`.
    config
        The resolved configuration as plain values, for trackers that show it.
    resume_step
        Optimiser steps done when the run continues: records of later steps, and a last line that
        was cut off, are dropped. None for a new run, which starts an empty file.

    steps_now
        What `resume_step` is now, if the images of a step have changed; kept records are rescaled.

    Attributes
    ----------
    kept
        Records of the file that a resumed run goes on from.

    Raises
    ------
    DerminoError
        DEPENDENCY_MISSING if the package of a tracker is not installed; RESULTS_INVALID if a
        line in the middle of the file to go on with is damaged.
    """

    def __init__(
        self,
        folder: Path,
        trackers: Iterable[str],
        config: Mapping[str, object],
        resume_step: int | None = None,
        *,
        steps_now: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._sinks: list[Sink] = [open_sink(n, folder, config, resume_step) for n in trackers]
        path = folder / METRICS_FILE
        self.kept: list[dict[str, object]] = []
        if resume_step is not None and path.exists():
            self.kept = [r for r in read_metrics(path) if not _later(r, resume_step)]
            if steps_now is not None and steps_now != resume_step:
                self.kept = [_rescaled(r, steps_now / max(1, resume_step)) for r in self.kept]
        write_atomically(path, "".join(_line(record) for record in self.kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, kind: Kind, record: Mapping[str, object]) -> None:
        """Write one record; it is with the operating system when this returns.

        Parameters
        ----------
        record
            `step`, and names with numbers or, for `warning` and `event`, a `text`.
        """
        self._file.write(_line({"kind": kind, **record}))
        self._file.flush()
        for sink in self._sinks:
            sink.log(kind, record)

    def close(self) -> None:
        """Finish the file and every tracker; may be called twice."""
        self._file.close()
        while self._sinks:
            self._sinks.pop().close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, object]]:
    """The records of a metrics file. A last line that was cut off by a kill is left out.

    Raises
    ------
    DerminoError
        RESULTS_INVALID if the file cannot be read or another line is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DerminoError(
            "RESULTS_INVALID",
            f"The run's metrics cannot be read: {error.strerror or error}.",
            where=path,
            fix="Name the folder that `dermino pretrain` wrote.",
        ) from error
    records: list[dict[str, object]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise DerminoError(
                "RESULTS_INVALID",
                f"Line {number} of the run's metrics is damaged.",
                where=path,
                fix="Remove that line.",
            )
    return records


def _later(record: Mapping[str, object], step: int) -> bool:
    at = record.get("step")
    return isinstance(at, int) and at > step


def _rescaled(record: Mapping[str, object], factor: float) -> dict[str, object]:
    step = record.get("step")
    return {**record, "step": round(step * factor)} if isinstance(step, int) else dict(record)


def _line(record: Mapping[str, object]) -> str:
    return json.dumps({k: _plain(v) for k, v in record.items()}, ensure_ascii=False) + "\n"


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
