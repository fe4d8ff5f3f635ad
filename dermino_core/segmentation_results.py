"""The schema of `results.json` of a federation that learned to outline lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dermino_core.results import (
    BackboneInfo,
    Estimate,
    ModelDescription,
    RoundRecord,
    read_as,
)

SCHEMA_VERSION = 1

KIND = "segmentation-federation"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Overlap(_Model):
    """Dice and Jaccard: of one head, the mean over test images; or of one head minus another."""

    dice: Estimate
    jaccard: Estimate


class SegmentationSite(_Model):
    """One hospital: its masks, and every head on its test images."""

    name: str
    n_train: int
    n_test: int
    units_test: int = Field(description="patients or lesions in the test half")
    views: int = Field(description="ways in which each training image was embedded")
    left_out: int = Field(description="images whose mask or file could not be used")
    precision: str
    scores: dict[str, Overlap] = Field(description="model key -> overlap on the test half")
    global_minus: dict[str, Overlap] = Field(
        default={}, description="model key -> the federated head minus that head, paired"
    )


class SegmentationResults(_Model):
    """Everything such a run found. `results.json` is exactly this."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["segmentation-federation"] = KIND
    dermino_version: str
    created: str = Field(description="ISO 8601, UTC")
    title: str
    head: Literal["linear", "upernet"]
    settings: dict[str, object]
    engine: Literal["inprocess", "deployment"]
    rounds_planned: int
    rounds_done: int
    seed: int
    replicates: int
    backbone: BackboneInfo
    machine: str
    models: list[ModelDescription]
    sites: list[SegmentationSite]
    mean: dict[str, Overlap] = Field(default={}, description="model key -> mean over sites")
    mean_global_minus: dict[str, Overlap] = {}
    rounds: list[RoundRecord]
    seconds: dict[str, float] = Field(default={}, description="stage -> seconds")
    missing_sites: list[str] = []
    warnings: list[str] = []


def read_segmentation_results(path: Path) -> SegmentationResults:
    """Read such a run's results; see :func:`dermino_core.results.read_as`."""
    return read_as(SegmentationResults, path)
