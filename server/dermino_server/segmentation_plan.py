"""`run.json` of a run that learns to outline lesions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import Field, ValidationError, model_validator

from dermino_core.errors import DerminoError
from dermino_core.results import BackboneInfo
from dermino_core.segmentation_results import KIND
from dermino_server.plan_file import (
    PLAN_FILE,
    PlanFile,
    check_quorum,
    first_fault,
    plan_digest,
    read_plan_file,
)
from dermino_strategies.segmentation import USUAL_ROUNDS, SegmentationMethod
from dermino_strategies.segmentation_messages import SegmentationTask


class SegmentationPlan(PlanFile):
    """What such a run does. Written before it starts and never changed."""

    kind: Literal["segmentation-federation"] = KIND
    run_id: str = Field(default_factory=lambda: uuid4().hex, pattern=r"^[0-9a-f]{32}$")
    title: str
    method: SegmentationMethod = SegmentationMethod()
    rounds: int = Field(default=USUAL_ROUNDS, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    replicates: int = Field(default=1000, ge=2, le=10_000)
    sites: list[str] = Field(min_length=1, description="expected sites")
    min_sites: int = Field(ge=1, description="quorum of every exchange")
    wait_seconds: float = Field(default=120, gt=0, description="for sites to connect")
    deadline_seconds: float = Field(default=3600, gt=0, description="for the replies of a round")
    engine: Literal["inprocess", "deployment"]
    backbone: BackboneInfo
    backbone_spec: str
    sites_folder: str | None = Field(default=None, description="simulation: the site files")
    data_digests: dict[str, str] = Field(
        default={}, description="simulation: site -> SHA-256 of its features, masks and split"
    )
    created: str
    dermino_version: str
    versions: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _quorum_is_possible(self) -> SegmentationPlan:
        check_quorum(self.min_sites, len(self.sites))
        return self

    def for_sites(self) -> SegmentationTask:
        """The part that the sites are told."""
        return SegmentationTask(
            run_id=self.run_id,
            backbone_fingerprint=self.backbone.fingerprint,
            width=self.backbone.width,
            method=self.method,
            rounds=self.rounds,
            seed=self.seed,
            replicates=self.replicates,
        )

    def digest(self) -> str:
        """SHA-256 of what decides the numbers: checkpoints of other plans are refused."""
        return plan_digest(self.for_sites(), self.sites)


def make_segmentation_plan(**values: Any) -> SegmentationPlan:
    """A plan from options.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` naming the option that is wrong.
    """
    try:
        return SegmentationPlan(**values)
    except ValidationError as error:
        raise _option_error(error, "the run") from None


def make_method(settings: dict[str, object]) -> SegmentationMethod:
    """The method from `--set` options.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` naming the setting that is wrong, or the ones there are.
    """
    try:
        return SegmentationMethod(**settings)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _option_error(error, "the method") from None


def _option_error(error: ValidationError, whole: str) -> DerminoError:
    known = ", ".join(SegmentationMethod.model_fields)
    return DerminoError("CONFIG_INVALID", first_fault(error, whole), fix=f"Settings are: {known}.")


def read_segmentation_plan(folder: Path) -> SegmentationPlan:
    """Read the plan of a run folder.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if it is missing, damaged or of another kind of run.
    """
    return read_plan_file(
        SegmentationPlan,
        folder,
        holds="the folder of a segmentation run",
        began="`dermino segmentation`",
    )


def is_segmentation(folder: Path) -> bool:
    """Whether a run folder says that it is one of a segmentation run."""
    try:
        content = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND
