"""Finished parts of an evaluation, so that an interrupted one goes on where it was.

A part is one task on one data set for one backbone. Its file is named by everything that its
numbers depend on; a damaged file counts as absent.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermino_core import __version__
from dermino_core.backbone_card import file_sha256
from dermino_core.evaluation.measure import Measure, Outcome
from dermino_core.files import write_atomically
from dermino_core.results import Calibration, RocCurve

FORMAT = 1
DIGEST = 32
"""Bytes of the SHA-256 that a part's file begins with."""


def part_key(**identity: Any) -> str:
    """A name for everything that a part's numbers depend on; values must be JSON."""
    content = {"format": FORMAT, "dermino": __version__, **identity}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def content_of(path: Path) -> Any:
    """What a file holds (sha256), or a folder's files and when they changed; None if absent."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file())
            return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return file_sha256(path)
    except (OSError, ValueError):
        return None


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
    content = buffer.getvalue()
    write_atomically(folder / f"{key}.part", hashlib.sha256(content).digest() + content)


def read_part(folder: Path, key: str) -> Outcome | None:
    """The outcome kept under `key`; None if there is none, or it is damaged."""
    try:
        whole = (folder / f"{key}.part").read_bytes()
        digest, content = whole[:DIGEST], whole[DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
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
    except (OSError, ValueError, KeyError, TypeError):
        return None
