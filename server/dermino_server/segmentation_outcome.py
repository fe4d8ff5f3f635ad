"""From the sites' last replies to `results.json` and the folder that `dermino segment` takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from dermino_core import __version__
from dermino_core.machine import describe_machine
from dermino_core.metrics import mean_over_sites
from dermino_core.results import ModelDescription
from dermino_core.segmentation_results import Overlap, SegmentationResults, SegmentationSite
from dermino_server.checkpoint import RunState
from dermino_server.run_summary import (
    backbone_warnings,
    images_trained_on,
    means_of_all,
    missing_warnings,
    precision_warnings,
    write_results,
)
from dermino_server.segmentation_plan import SegmentationPlan
from dermino_strategies.base import Arrays
from dermino_strategies.segmentation import head_of
from dermino_strategies.segmentation_messages import (
    SEGMENTATION_MODELS,
    SegmentationEvaluateReply,
)

SEGMENTATION_HEADS = {
    "global": ModelDescription(
        key="global",
        title="Federated",
        description="the one head the federation made; images and masks stayed in their hospitals",
    ),
    "local": ModelDescription(
        key="local",
        title="Each hospital alone",
        description="the same method, schedule and seed on its own images and masks only",
    ),
    "pooled": ModelDescription(
        key="pooled",
        title="All data pooled",
        description="the same method and schedule on all hospitals' images and masks in one "
        "place; possible in simulation only",
    ),
}

FEW = 30
"""Test images below which an interval says more than its number."""


def build_segmentation_results(
    plan: SegmentationPlan, state: RunState, replies: Mapping[str, SegmentationEvaluateReply]
) -> SegmentationResults:
    """Results of a finished run, means and warnings included."""
    results = SegmentationResults(
        dermino_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=plan.title,
        head=plan.method.head,
        settings={**plan.method.model_dump(), "learning_rate": plan.method.rate},
        engine=plan.engine,
        rounds_planned=plan.rounds,
        rounds_done=state.round,
        seed=plan.seed,
        replicates=plan.replicates,
        backbone=plan.backbone,
        machine=describe_machine(),
        models=[SEGMENTATION_HEADS[key] for key in SEGMENTATION_MODELS],
        sites=[_site(site, replies[site]) for site in sorted(replies)],
        rounds=state.records,
        missing_sites=[site for site in plan.sites if site not in replies],
    )
    summarise_segmentation(results)
    return results


def _site(name: str, reply: SegmentationEvaluateReply) -> SegmentationSite:
    return SegmentationSite(
        name=name,
        n_train=reply.n_train,
        n_test=reply.n_test,
        units_test=reply.units_test,
        views=reply.views,
        left_out=reply.left_out,
        precision=reply.precision,
        scores=reply.scores,
        global_minus=reply.global_minus,
    )


def summarise_segmentation(results: SegmentationResults) -> None:
    """Fill in the means over sites and the warnings, from what is there."""
    keys = [model.key for model in results.models]
    scored = [site.scores for site in results.sites]
    compared = [site.global_minus for site in results.sites]
    results.mean = means_of_all(keys, scored, mean_overlap)
    results.mean_global_minus = means_of_all(
        keys, compared, lambda overlaps: mean_overlap(overlaps, lowest=-1.0)
    )
    results.warnings = _warnings(results)


def mean_overlap(overlaps: Collection[Overlap], *, lowest: float = 0.0) -> Overlap:
    """The mean over sites, every site counting the same."""
    return Overlap(
        dice=mean_over_sites([one.dice for one in overlaps], lowest=lowest),
        jaccard=mean_over_sites([one.jaccard for one in overlaps], lowest=lowest),
    )


def _warnings(results: SegmentationResults) -> list[str]:
    warnings = backbone_warnings(results.backbone)
    warnings += missing_warnings(results.missing_sites)
    warnings += precision_warnings([(site.name, site.precision) for site in results.sites])
    for site in results.sites:
        if site.n_test < FEW:
            warnings.append(
                f"{site.name} has only {site.n_test} test images: read its intervals before its "
                "numbers."
            )
        if site.left_out:
            warnings.append(f"{site.name}: {site.left_out} images or masks could not be used.")
    return warnings


def save_segmentation_run(
    folder: Path, plan: SegmentationPlan, results: SegmentationResults, arrays: Arrays
) -> None:
    """Write the model folder and, last, `results.json`: its presence means the run is whole."""
    from dermino_core.evaluation.segmentation_model import (
        SegmentationInfo,
        save_segmentation_model,
    )

    mean = results.mean["global"]
    trained = images_trained_on(results.rounds)
    info = SegmentationInfo(
        title=plan.title,
        head=plan.method.head,
        backbone=plan.backbone,
        backbone_spec=plan.backbone_spec,
        settings=plan.method.for_training(plan.rounds * plan.method.local_epochs),
        seed=plan.seed,
        n_train=sum(trained.values()),
        n_test=sum(site.n_test for site in results.sites),
        scores={"dice": mean.dice, "jaccard": mean.jaccard},
        notes=[
            f"Trained by federated averaging: {plan.rounds} rounds of "
            f"{plan.method.local_epochs} epochs at {', '.join(sorted(trained))}. Scores are means "
            "over hospitals, every hospital counting the same.",
            *results.warnings,
        ],
    )
    head = head_of(plan.method, plan.backbone.width, arrays)
    save_segmentation_model(folder / "model", head, info)
    write_results(folder, results)
