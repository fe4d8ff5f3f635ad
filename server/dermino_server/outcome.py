"""From the sites' last replies to `results.json` and the model folder."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from dermino_core import __version__
from dermino_core.files import write_atomically
from dermino_core.heads import LinearHead
from dermino_core.machine import describe_machine
from dermino_core.metrics import mean_over_sites
from dermino_core.model_folder import ModelInfo, SiteCount, save_model, write_card
from dermino_core.results import (
    CrossSite,
    Difference,
    ModelDescription,
    ModelSummary,
    Results,
    SiteResult,
)
from dermino_server.checkpoint import RunState
from dermino_server.plan import RunPlan
from dermino_strategies.protocol import EvaluateReply

MODELS = {
    "global": ModelDescription(
        key="global",
        title="Federated",
        description="the one model the federation made; images stayed in their hospitals",
    ),
    "local": ModelDescription(
        key="local",
        title="Each hospital alone",
        description="the same method, schedule and seed on its own training images only",
    ),
    "local_converged": ModelDescription(
        key="local_converged",
        title="Each hospital alone, converged",
        description="logistic regression with a fixed penalty on its own training images, solved "
        "to its optimum: the same features without the schedule's early stop",
    ),
    "pooled": ModelDescription(
        key="pooled",
        title="All data pooled",
        description="the same method and schedule on all hospitals' training images in one place; "
        "possible in simulation only",
    ),
    "pooled_converged": ModelDescription(
        key="pooled_converged",
        title="All data pooled, converged",
        description="logistic regression with a fixed penalty on all hospitals' training images "
        "in one place, solved to its optimum; possible in simulation only",
    ),
}


SITE_MODELS = {"global", "local", "local_converged"}
"""What every site evaluates by itself."""


def build_results(plan: RunPlan, state: RunState, replies: Mapping[str, EvaluateReply]) -> Results:
    """Results of a finished run; the means are filled in by :func:`summarise`."""
    answered = sorted(replies)
    results = Results(
        dermino_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=plan.title,
        task=plan.task,
        classes=plan.classes,
        strategy=plan.strategy,
        engine=plan.engine,
        rounds_planned=plan.rounds,
        rounds_done=state.round,
        seed=plan.seed,
        backbone=plan.backbone,
        machine=describe_machine(),
        models=[MODELS[key] for key in ("global", "local", "local_converged")],
        sites=[_site_result(site, replies[site]) for site in answered],
        mean={},
        cross_site=_cross_site(state, replies),
        rounds=state.records,
        missing_sites=[site for site in plan.sites if site not in replies],
        warnings=[],
    )
    summarise(results)
    return results


def _site_result(site: str, reply: EvaluateReply) -> SiteResult:
    return SiteResult(
        name=site,
        images_total=reply.images_total,
        images_used=reply.images_used,
        unreadable=reply.unreadable,
        n_train=reply.n_train,
        n_test=reply.n_test,
        train_class_counts=reply.train_class_counts,
        precision=reply.precision,
        evaluations=reply.evaluations,
        global_minus=reply.global_minus,
    )


def _cross_site(state: RunState, replies: Mapping[str, EvaluateReply]) -> CrossSite | None:
    rows, columns = sorted(state.local_heads), sorted(replies)
    if not rows:
        return None
    cells = [[replies[column].cross.get(row) for column in columns] for row in rows]
    return CrossSite(
        rows=rows,
        columns=columns,
        auroc=[[cell.auroc if cell else None for cell in row] for row in cells],
        f1=[[cell.f1 if cell else None for cell in row] for row in cells],
    )


def summarise(results: Results) -> None:
    """Fill in the means over sites and the warnings, from what is there."""
    results.mean = {
        model.key: ModelSummary(
            auroc=mean_over_sites([s.evaluations[model.key].auroc for s in results.sites]),
            f1=mean_over_sites([s.evaluations[model.key].f1 for s in results.sites]),
        )
        for model in results.models
        if all(model.key in site.evaluations for site in results.sites)
    }
    results.mean_global_minus = {
        model.key: Difference(
            auroc=mean_over_sites(
                [s.global_minus[model.key].auroc for s in results.sites], lowest=-1
            ),
            f1=mean_over_sites([s.global_minus[model.key].f1 for s in results.sites], lowest=-1),
        )
        for model in results.models
        if all(model.key in site.global_minus for site in results.sites)
    }
    results.warnings = _warnings(results)


def _warnings(results: Results) -> list[str]:
    warnings = []
    if unfit := results.backbone.unfit_because:
        warnings.append(
            f"The backbone {unfit}: this run shows that the system works, and says nothing about "
            "skin."
        )
    if results.missing_sites:
        warnings.append(f"Not in these results: {', '.join(results.missing_sites)}.")
    precisions = {site.precision for site in results.sites}
    if len(precisions) > 1:
        warnings.append(
            "The hospitals computed their features in different arithmetic: "
            + ", ".join(f"{site.name} {site.precision}" for site in results.sites)
            + "."
        )
    for site in results.sites:
        smallest = min(site.evaluations["global"].class_counts.values())
        if smallest < 30:
            warnings.append(
                f"{site.name} has only {smallest} test images in its smallest class: read its "
                "intervals before its numbers."
            )
        if site.unreadable:
            warnings.append(f"{site.name}: {site.unreadable} images could not be read.")
    return warnings


def save_run(folder: Path, plan: RunPlan, results: Results, head: LinearHead) -> None:
    """Write the model folder and, last, `results.json`: its presence means the run is whole."""
    save_model(folder / "model", head, _model_info(plan, results), results)
    write_results(folder, results)


def save_results(folder: Path, results: Results) -> None:
    """Write results that learned more, and the model card that quotes them."""
    write_card(folder / "model", results)
    write_results(folder, results)


def _model_info(plan: RunPlan, results: Results) -> ModelInfo:
    trained: dict[str, int] = {}
    for record in results.rounds:
        trained |= record.examples
    classes = {site.name: site.train_class_counts for site in results.sites}
    return ModelInfo(
        title=plan.title,
        task=plan.task,
        classes=plan.classes,
        backbone=plan.backbone,
        backbone_spec=plan.backbone_spec,
        strategy=plan.strategy,
        rounds=results.rounds_done,
        seed=plan.seed,
        created=results.created,
        dermino_version=results.dermino_version,
        trained_on=[
            SiteCount(site=site, images=images, classes=classes.get(site, {}))
            for site, images in sorted(trained.items())
        ],
    )


def write_results(folder: Path, results: Results) -> None:
    """Write `results.json`."""
    write_atomically(folder / "results.json", results.model_dump_json(indent=1) + "\n")
