"""The schema of an evaluation's `results.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dermino_core.results import BackboneInfo, Calibration, Results, RocCurve, read_as

SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Score(_Model):
    """One line of `results.csv`; see :class:`dermino_core.evaluation.measure.Measure`."""

    dataset: str
    task: str
    backbone: str
    method: str
    metric: str
    group: str
    setting: str
    value: float | None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    n: int
    undefined_because: str | None = None


class Comparison(_Model):
    """One backbone minus another on the same test images."""

    dataset: str
    task: str
    method: str
    metric: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    test: str = Field(description="`paired bootstrap`, `DeLong` or `t-test on replicates`")
    p_value: float
    p_adjusted: float = Field(
        description="Holm, over all data sets and pairs of its task, method, metric, test"
    )
    beyond_chance: bool = Field(description="p_adjusted below 0.05")


class DatasetSummary(_Model):
    """What was evaluated on. Class counts are of each half."""

    name: str
    title: str
    images: int
    unreadable: int
    n_train: int
    n_test: int
    units_test: int = Field(description="patients or lesions in the test half")
    grouped: bool = Field(description="whether the data say which images belong together")
    classes: list[str]
    train_counts: dict[str, int]
    test_counts: dict[str, int]
    notes: list[str] = []


class CurveOf(_Model):
    """Curves of one method on one data set for one backbone."""

    dataset: str
    task: str
    backbone: str
    method: str
    classes: int
    roc: RocCurve | None = None
    calibration: Calibration | None = None


class ProjectionOf(_Model):
    """Features of the test half in two dimensions (t-SNE), at most 2,000 images."""

    dataset: str
    backbone: str
    x: list[float]
    y: list[float]
    label: list[str]


class Skipped(_Model):
    """What was asked for and not done, and why."""

    dataset: str
    task: str
    backbone: str | None = None
    code: str
    sentence: str


class EvaluationResults(_Model):
    """Everything an evaluation found. `results.json` is exactly this."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["evaluation"] = "evaluation"
    dermino_version: str
    created: str = Field(description="ISO 8601, UTC")
    title: str
    seed: int
    replicates: int
    statistics: Literal["percentile", "paper"] = Field(
        description="`paper`: mean +- variance of the replicates and t-tests on them"
    )
    machine: str
    backbones: list[BackboneInfo]
    datasets: list[DatasetSummary]
    scores: list[Score]
    comparisons: list[Comparison] = []
    curves: list[CurveOf] = []
    projections: list[ProjectionOf] = []
    federation: Results | None = Field(
        default=None, description="a federation on one of these backbones, shown beside"
    )
    skipped: list[Skipped] = []
    seconds: dict[str, float] = Field(default={}, description="stage -> seconds")
    warnings: list[str] = []


def read_evaluation(path: Path) -> EvaluationResults:
    """Read an evaluation's results; see :func:`dermino_core.results.read_as`."""
    return read_as(EvaluationResults, path)
