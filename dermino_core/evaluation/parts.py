"""Finished parts of an evaluation, so that an interrupted one goes on where it was.

A part is one task on one data set for one backbone. Its file is named by everything that its
numbers depend on; a damaged file counts as absent.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermino_core import __version__
from dermino_core.evaluation.measure import Measure, Outcome
from dermino_core.files import write_atomically
from dermino_core.results import Calibration, RocCurve

FORMAT = 1


def part_key(**identity: Any) -> str:
    """A name for everything that a part's numbers depend on; values must be JSON."""
    content = {"format": FORMAT, "dermino": __version__, **identity}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def write_part(folder: Path, key: str, outcome: Outcome) -> None:
    """Keep an outcome."""
    about = {
        "measures": [
            {name: value for name, value in asdict(measure).items() if name != "replicates"}
            for measure in outcome.measures
        ],
        "predictions": list(outcome.predictions),
        "rocs": {name: curve.model_dump() for name, curve in outcome.rocs.items()},
        "calibrations": {n: curve.model_dump() for n, curve in outcome.calibrations.items()},
        "notes": list(outcome.notes),
    }
    arrays = {
        f"replicates {place}": measure.replicates
        for place, measure in enumerate(outcome.measures)
        if measure.replicates is not None
    }
    for place, scores in enumerate(outcome.predictions.values()):
        arrays[f"prediction {place}"] = scores
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        **arrays,  # pyright: ignore[reportArgumentType]
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{key}.npz", buffer.getvalue())


def read_part(folder: Path, key: str) -> Outcome | None:
    """The outcome kept under `key`; None if there is none, or it is damaged."""
    try:
        with np.load(folder / f"{key}.npz", allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            measures = [Measure(**values) for values in about["measures"]]
            for place, measure in enumerate(measures):
                if (name := f"replicates {place}") in arrays:
                    measures[place] = replace(measure, replicates=arrays[name])
            predictions = {
                name: arrays[f"prediction {place}"]
                for place, name in enumerate(about["predictions"])
            }
        return Outcome(
            measures,
            predictions,
            {name: RocCurve(**curve) for name, curve in about["rocs"].items()},
            {name: Calibration(**curve) for name, curve in about["calibrations"].items()},
            about["notes"],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
