"""From the sites' last replies to `results.json` and the model folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from dermino_core import __version__
from dermino_core.heads import LinearHead
from dermino_core.machine import describe_machine
from dermino_core.metrics import mean_over_sites
from dermino_core.model_folder import ModelInfo, SiteCount, save_model, write_card
from dermino_core.results import (
    BackboneInfo,
    CrossSite,
    Difference,
    Evaluation,
    ModelDescription,
    ModelSummary,
    Results,
    SiteResult,
    SiteTotals,
)
from dermino_server.checkpoint import RunState
from dermino_server.plan import RunPlan
from dermino_server.run_summary import (
    backbone_warnings,
    images_trained_on,
    means_of_all,
    missing_warnings,
    precision_warnings,
    write_results,
)
from dermino_strategies.protocol import EvaluateReply
from dermino_strategies.secure_evaluation import EvaluationSums

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
    "personal": ModelDescription(
        key="personal",
        title="Personal",
        description="each hospital's own: its images in full, the others' sums at a discount that "
        "it chose by its own patients; made there, kept there",
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


def build_results(plan: RunPlan, state: RunState, replies: Mapping[str, EvaluateReply]) -> Results:
    """Results of a finished run; the means are filled in by :func:`summarise`."""
    results = _results(plan, state, replies)
    results.sites = [_site_result(site, replies[site]) for site in sorted(replies)]
    results.cross_site = _cross_site(state, replies)
    summarise(results)
    return results


def build_secure_results(
    plan: RunPlan, state: RunState, sums: EvaluationSums, sites: Collection[str]
) -> Results:
    """Results of a run whose evaluations came as one sum over `sites`: the means, and no more."""
    results = _results(plan, state, sites)
    results.totals = SiteTotals(
        sites=sorted(sites), **sums.numbers, train_class_counts=sums.train_class_counts
    )
    results.mean = sums.mean
    results.mean_global_minus = sums.mean_global_minus
    results.warnings = _warnings(results)
    return results


def _results(plan: RunPlan, state: RunState, answered: Collection[str]) -> Results:
    return Results(
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
        models=[MODELS[key] for key in plan.for_sites().models],
        sites=[],
        mean={},
        secure_aggregation=plan.secure_aggregation,
        personal=plan.personal,
        privacy=state.privacy,
        statistics=state.statistics,
        rounds=state.records,
        missing_sites=[site for site in plan.sites if site not in answered],
        withdrawn=plan.withdrawn,
        warnings=[],
    )


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
        joining=reply.joining,
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
    if results.totals:
        results.warnings = _warnings(results)
        return
    keys = [model.key for model in results.models]
    evaluated = [site.evaluations for site in results.sites]
    compared = [site.global_minus for site in results.sites]
    results.mean = means_of_all(keys, evaluated, mean_evaluation)
    results.mean_global_minus = means_of_all(keys, compared, mean_difference)
    results.warnings = _warnings(results)


def mean_evaluation(evaluations: Collection[Evaluation]) -> ModelSummary:
    """The mean over sites of one model."""
    balanced = [e.balanced_accuracy for e in evaluations if e.balanced_accuracy]
    return ModelSummary(
        auroc=mean_over_sites([e.auroc for e in evaluations]),
        f1=mean_over_sites([e.f1 for e in evaluations]),
        balanced_accuracy=mean_over_sites(balanced) if len(balanced) == len(evaluations) else None,
    )


def mean_difference(differences: Collection[Difference]) -> Difference:
    """The mean over sites of one paired difference."""
    balanced = [d.balanced_accuracy for d in differences if d.balanced_accuracy]
    same = len(balanced) == len(differences)
    return Difference(
        auroc=mean_over_sites([d.auroc for d in differences], lowest=-1),
        f1=mean_over_sites([d.f1 for d in differences], lowest=-1),
        balanced_accuracy=mean_over_sites(balanced, lowest=-1) if same else None,
    )


def _warnings(results: Results) -> list[str]:
    warnings = backbone_warnings(results.backbone)
    if results.withdrawn:
        warnings.append(f"Without {', '.join(results.withdrawn)}: withdrawn from an earlier run.")
    if kept := sorted({site for record in results.rounds for site in record.kept}):
        warnings.append(
            f"{', '.join(kept)} did not train again: an earlier run left the sums that count."
        )
    warnings += missing_warnings(results.missing_sites)
    warnings += precision_warnings([(site.name, site.precision) for site in results.sites])
    warnings += [
        f"{site}: an update of it stands out from the other hospitals'. That is a reason to ask, "
        "not a proof; see “Updates that stand out”."
        for site in sorted(
            {one.site for r in results.rounds if r.kind == "train" for one in r.suspicious}
        )
    ]
    if results.statistics:
        warnings += [one.sentence for one in results.statistics.suspicious]
    for site, privacy in sorted(results.privacy.items()):
        if privacy.warning:
            warnings.append(f"{site}: {privacy.warning}")
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


def save_run(
    folder: Path,
    plan: RunPlan,
    results: Results,
    head: LinearHead,
    tuned: tuple[BackboneInfo, str] | None = None,
) -> None:
    """Write the model folder and, last, `results.json`: its presence means the run is whole.

    `tuned` is the backbone that the head reads, where it is not the plan's.
    """
    info = _model_info(plan, results)
    if tuned is not None:
        info = info.model_copy(update={"backbone": tuned[0], "backbone_spec": tuned[1]})
    save_model(folder / "model", head, info, results)
    write_results(folder, results)


def save_results(folder: Path, results: Results) -> None:
    """Write results that learned more, and the model card that quotes them."""
    write_card(folder / "model", results)
    write_results(folder, results)


def _model_info(plan: RunPlan, results: Results) -> ModelInfo:
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
        trained_on=_trained_on(plan, results),
    )


def _trained_on(plan: RunPlan, results: Results) -> list[SiteCount]:
    if totals := results.totals:
        counts = totals.train_class_counts
        return [SiteCount(site=" + ".join(totals.sites), images=totals.n_train, classes=counts)]
    trained = images_trained_on(results.rounds)
    if results.privacy:  # a private update counts as one example, whatever the site's size
        trained = {site.name: site.n_train for site in results.sites if site.name in trained}
    classes = {site.name: site.train_class_counts for site in results.sites}
    counts = {site.site: site for site in plan.earlier} | {
        site: SiteCount(site=site, images=images, classes=classes.get(site, {}))
        for site, images in trained.items()
    }
    return [counts[site] for site in sorted(counts)]
