"""The tuned backbone of a run: `RUN/backbone`, a backbone folder like any other."""

from __future__ import annotations

from pathlib import Path

from dermino_core.results import BackboneInfo
from dermino_server.plan import RunPlan
from dermino_strategies.base import Arrays, Strategy, Tuning

BACKBONE_FOLDER = "backbone"


def write_run_backbone(
    folder: Path, plan: RunPlan, strategy: Strategy, arrays: Arrays
) -> tuple[BackboneInfo, str] | None:
    """Write the backbone that the global arrays stand for, if the method tunes one.

    Returns
    -------
    What the model folder says of the backbone, and the specification that loads it.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if the backbone of the plan cannot be tuned so.
    """
    if not isinstance(strategy, Tuning):
        return None
    place = folder / BACKBONE_FOLDER
    card = strategy.write_backbone(place, plan.backbone_spec, arrays)
    return BackboneInfo.of(card, plan.backbone.precision), str(place.absolute())
