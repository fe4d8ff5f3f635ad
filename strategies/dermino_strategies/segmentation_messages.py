"""The messages of a run that learns to outline lesions.

- `train.segmentation`: the global head goes out; a site's head comes back, with the Dice of the
  head it was sent.
- `evaluate.segmentation`: the final head goes out; numbers about the test half come back.

Refusals and everything else are those of :mod:`dermino_strategies.protocol`.
"""

from __future__ import annotations

from pydantic import Field

from dermino_core.segmentation_results import Overlap
from dermino_strategies.protocol import PROTOCOL_VERSION, Body
from dermino_strategies.segmentation import SegmentationMethod

TASK_NAME = "segmentation"
"""What a site's `[policy] tasks` calls such a run."""

SEGMENTATION_MODELS = ("global", "local")
"""What every site scores by itself."""


class SegmentationTask(Body):
    """What is learned, on which features. A site refuses what does not fit its own."""

    protocol: int = PROTOCOL_VERSION
    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    backbone_fingerprint: str
    width: int = Field(ge=1, le=65536)
    method: SegmentationMethod
    rounds: int = Field(ge=1, le=10_000)
    seed: int = Field(ge=0, lt=2**63)
    replicates: int = Field(ge=2, le=10_000)


class SegmentationTrainRequest(Body):
    """Coordinator to site: one round of training. The head travels as `arrays`."""

    task: SegmentationTask
    round: int = Field(ge=1)


class SegmentationTrainReply(Body):
    """Site to coordinator, beside the head it trained."""

    precision: str
    n_train: int = Field(ge=1)
    train_loss: float
    dice_before: float = Field(ge=0, le=1)
    seconds: float = Field(ge=0)


class SegmentationEvaluateRequest(Body):
    """Coordinator to site: score this head and the one you train alone."""

    task: SegmentationTask


class SegmentationEvaluateReply(Body):
    """Site to coordinator: means over its test images, no image's own score."""

    precision: str
    n_train: int = Field(ge=1)
    n_test: int = Field(ge=1)
    units_test: int = Field(ge=1)
    views: int = Field(ge=1)
    left_out: int = Field(ge=0)
    seconds: float = Field(ge=0)
    scores: dict[str, Overlap]
    global_minus: dict[str, Overlap]
