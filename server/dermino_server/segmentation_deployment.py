"""A segmentation run on a real SuperLink: plan it, submit it, follow it, bring its results home."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dermino_core import __version__
from dermino_core.console import say, warn
from dermino_core.errors import DerminoError
from dermino_core.results import BackboneInfo, RoundRecord
from dermino_core.segmentation_results import SegmentationResults, read_segmentation_results
from dermino_server.deployment import follow, stop, submit
from dermino_server.flower_cli import require_connection
from dermino_server.plan import new_run_folder, versions
from dermino_server.segmentation_plan import (
    SegmentationPlan,
    make_method,
    make_segmentation_plan,
    read_segmentation_plan,
)


@dataclass(frozen=True)
class Deployment:
    """What the user asked for."""

    superlink: str
    sites: list[str]
    min_sites: int | None
    backbone: str | None
    precision: str
    settings: Mapping[str, object]
    rounds: int
    seed: int
    wait: float
    deadline: float


def deploy_segmentation(
    asked: Deployment,
    out: Path,
    *,
    resume: Path | None,
    on_round: Callable[[RoundRecord], None],
) -> tuple[Path, SegmentationResults]:
    """Run with the hospitals that joined a SuperLink, in a new run folder or an earlier one.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` for what is missing on the command line; `CONNECTION_FAILED`; what the
        ServerApp left behind.
    """
    if resume is not None:
        folder = resume.absolute()
        plan = read_segmentation_plan(folder)
    else:
        plan = _plan(asked)
        folder = new_run_folder(out)
        plan.write(folder)
    run_id = submit(folder, asked.superlink, resume=resume is not None)
    say(f"submitted as Flower run {run_id}; waiting for {', '.join(plan.sites)}")
    try:
        results = follow(
            folder, asked.superlink, run_id, on_round=on_round, read=read_segmentation_results
        )
    except KeyboardInterrupt:
        stop(asked.superlink, run_id)
        again = f"dermino segmentation --superlink {asked.superlink} --resume {folder}"
        warn(f"stopped; continue with: {again}")
        raise
    return folder, results


def _plan(asked: Deployment) -> SegmentationPlan:
    from dermino_core.backbone import describe_backbone
    from dermino_core.paths import default_cache

    if asked.backbone is None:
        raise DerminoError(
            "CONFIG_INVALID",
            "Which backbone do the sites use?",
            fix="--backbone with the file or name that is in their site files.",
        )
    if not asked.sites:
        raise DerminoError(
            "CONFIG_INVALID",
            "Which sites take part?",
            fix="Name each with --site, as it was registered; --min-sites says how many must "
            "answer.",
        )
    method = make_method(dict(asked.settings))
    require_connection(asked.superlink)
    card = describe_backbone(
        asked.backbone, image_size=method.image_size, cache_dir=default_cache()
    )
    return make_segmentation_plan(
        title=f"Lesion segmentation: {', '.join(asked.sites)}",
        method=method,
        rounds=asked.rounds,
        seed=asked.seed,
        sites=asked.sites,
        min_sites=asked.min_sites or len(asked.sites),
        wait_seconds=asked.wait,
        deadline_seconds=asked.deadline,
        engine="deployment",
        backbone=BackboneInfo.of(card, asked.precision),
        backbone_spec=asked.backbone,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dermino_version=__version__,
        versions=versions(),
    )
