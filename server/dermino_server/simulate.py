"""The whole federation on one machine. The one place where both apps meet.

The sites' data is prepared as at a hospital, the coordinator's and the hospitals' Flower apps are
the real ones; only the transport between them differs. Because all data is here, the baseline
that a real federation cannot have is computed too: one model on all sites' images.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import Context, RecordDict

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_client.own_results import personal_folder
from dermino_client.policy import PolicySection
from dermino_client.prepare import PreparedSite, prepare_site
from dermino_client.site import Site, read_sites
from dermino_client.tuned import seen_by
from dermino_client.work import (
    CONVERGED_PENALTY,
    compare_heads,
    converged_head,
    evaluate_head,
    train_alone,
    train_alone_on,
)
from dermino_core import __version__
from dermino_core.backbone import describe_backbone
from dermino_core.errors import DerminoError
from dermino_core.heads import LinearHead, fit_converged
from dermino_core.model_folder import load_model
from dermino_core.paths import default_cache
from dermino_core.privacy.plan import PrivacyRequest
from dermino_core.results import BackboneInfo, Results
from dermino_server.app import RunEnd, make_server_app
from dermino_server.demo_sites import write_demo_sites
from dermino_server.extend import (
    begin_extension,
    check_same_data,
    check_same_task,
    plan_extension,
)
from dermino_server.inprocess import InProcessGrid
from dermino_server.kept_run import read_kept_run, refuse_superseded
from dermino_server.outcome import (
    MODELS,
    mean_difference,
    mean_evaluation,
    save_results,
    summarise,
)
from dermino_server.plan import (
    RunPlan,
    check_protection,
    collects_heads,
    make_plan,
    new_run_folder,
    read_plan,
    versions,
    with_public_centre,
)
from dermino_server.simulated_consortium import enrol_simulated
from dermino_server.tuned import BACKBONE_FOLDER
from dermino_strategies.base import SiteData, Strategy, Tuning
from dermino_strategies.protocol import Task
from dermino_strategies.registry import get_strategy

Engine = Literal["inprocess", "ray"]


@dataclass(frozen=True)
class SimulationRequest:
    """What the user asked for; `None` means: as the site files say, or the embedded default."""

    sites: Path | None = None
    backbone: str | None = None
    precision: str | None = None
    strategy: str = "fedavg"
    settings: Mapping[str, object] = field(default_factory=dict)
    rounds: int | None = None
    seed: int = 0
    secure_aggregation: bool = False
    threshold: int | None = None
    statistics: bool = False
    privacy: PrivacyRequest | None = None
    personal: bool = False
    keep_sums: bool = True
    engine: Engine = "inprocess"
    cache: Path | None = None


def simulate(request: SimulationRequest, out: Path) -> tuple[Path, Results]:
    """Start a simulation in a new run folder.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if the folder is in use, and what preparing sites and the rounds raise.
    """
    # A typo is found before hours of extraction.
    strategy = get_strategy(request.strategy, request.settings)
    check_protection(
        strategy,
        request.privacy,
        secure_aggregation=request.secure_aggregation,
        personal=request.personal,
    )
    cache = request.cache or default_cache()
    if request.backbone:
        describe_backbone(request.backbone, cache_dir=cache)  # a typo, before anything is drawn
    if isinstance(strategy, Tuning):
        strategy.check_backbone(request.backbone or _spec_of(request.sites))
    folder = new_run_folder(out)
    sites_folder = (request.sites or write_demo_sites(cache / "demo")).absolute()
    clock = _Clock()
    sites = read_sites(sites_folder)
    # Again, because only now it is known how many there are.
    check_protection(
        strategy,
        request.privacy,
        secure_aggregation=request.secure_aggregation,
        personal=request.personal,
        sites=len(sites),
    )
    prepared = prepare_sites(
        sites, backbone=request.backbone, precision=request.precision, cache=request.cache
    )
    clock.lap("prepare")
    first = prepared[sites[0].name]
    spec = request.backbone or sites[0].backbone_spec
    plan = make_plan(
        title=f"{first.task}: {', '.join(sorted(prepared))}",
        task=first.task,
        classes=first.classes,
        strategy=request.strategy,
        settings=with_public_centre(
            request.strategy, request.settings, request.privacy, backbone=spec, cache=cache
        ),
        rounds=request.rounds or strategy.usual_rounds,
        seed=request.seed,
        sites=sorted(prepared),
        min_sites=len(prepared),
        engine=request.engine,
        cross_site=collects_heads(
            strategy,
            len(prepared),
            request.privacy,
            secure_aggregation=request.secure_aggregation,
        ),
        statistics=request.statistics,
        secure_aggregation=request.secure_aggregation,
        threshold=request.threshold,
        privacy=request.privacy,
        personal=request.personal,
        keep_sums=request.keep_sums,
        backbone=BackboneInfo.of(first.card, first.precision),
        backbone_spec=spec,
        sites_folder=str(sites_folder),
        data_digests={name: site.digest() for name, site in prepared.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dermino_version=__version__,
        versions=versions(),
    )
    plan.write(folder)
    return folder, _run(plan, prepared, folder, clock, resume=False)


def _spec_of(sites: Path | None) -> str:
    """The backbone that the site files name."""
    return read_sites(sites)[0].backbone_spec if sites else "demo"


def extend(
    run: Path,
    sites: Path,
    out: Path,
    *,
    backbone: str | None = None,
    engine: Engine = "inprocess",
    cache: Path | None = None,
) -> tuple[Path, Results]:
    """Let the sites of a folder that are new join a finished run, in a run folder of its own.

    Those of the run that are in the folder are evaluated again, and not asked to train; those
    that were withdrawn from it are left out.

    Raises
    ------
    DerminoError
        As :func:`dermino_server.kept_run.read_kept_run` and
        :func:`dermino_server.extend.plan_extension`; `DATA_CHANGED` for a site whose images are
        not those of its kept sums; `OUTPUT_EXISTS`.
    """
    base = read_kept_run(run)
    spec = backbone or base.plan.backbone_spec
    clock = _Clock()
    found = [site for site in read_sites(sites) if site.name not in base.plan.withdrawn]
    check_same_task(base, found[0].site.task, found[0].classes)
    prepared = prepare_sites(
        found, backbone=spec, precision=base.plan.backbone.precision, cache=cache
    )
    clock.lap("prepare")
    digests = {name: site.digest() for name, site in prepared.items()}
    check_same_data(base, digests)
    first = prepared[found[0].name]
    plan = plan_extension(
        base,
        sorted(set(prepared) - set(base.sites)),
        BackboneInfo.of(first.card, first.precision),
        backbone_spec=spec,
        min_sites=len(prepared),
        engine=engine,
        sites_folder=str(sites.absolute()),
        data_digests=digests,
    )
    folder = new_run_folder(out)
    begin_extension(base, plan, folder)
    return folder, _run(plan, prepared, folder, clock, resume=False)


def resume(folder: Path, *, cache: Path | None = None) -> tuple[Path, Results]:
    """Continue an interrupted simulation after its newest checkpoint.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if this is no simulation's run folder, or the sites' data now gives
        other features than the run began with.
    """
    folder = folder.absolute()
    plan = read_plan(folder)
    refuse_superseded(folder)
    if plan.sites_folder is None:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            "This run was not a simulation.",
            where=folder,
            fix="Continue it with: dermino federate --resume",
        )
    clock = _Clock()
    prepared = prepare_sites(
        [s for s in read_sites(Path(plan.sites_folder)) if s.name not in plan.withdrawn],
        backbone=plan.backbone_spec,
        precision=plan.backbone.precision,
        cache=cache,
    )
    clock.lap("prepare")
    now = {name: site.digest() for name, site in prepared.items()}
    if now != plan.data_digests:
        before = plan.data_digests
        names = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"The data of {', '.join(names)} is not what the run began with.",
            where=plan.sites_folder,
            fix="Restore the site files, images, labels and backbone, or start a new run.",
        )
    return folder, _run(plan, prepared, folder, clock, resume=True)


def prepare_sites(
    sites: Sequence[Site],
    *,
    backbone: str | None = None,
    precision: str | None = None,
    cache: Path | None = None,
) -> dict[str, PreparedSite]:
    """Prepare every site, and check that they can learn together.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if tasks or classes differ, `BACKBONE_MISMATCH` if backbones do; and
        what preparing a site may raise.
    """
    first = sites[0]
    for site in sites[1:]:
        if (site.site.task, site.classes) != (first.site.task, first.classes):
            raise DerminoError(
                "CONFIG_INVALID",
                f"{site.name} has the task {site.site.task} {site.classes}, {first.name} has "
                f"{first.site.task} {first.classes}.",
                where=site.file,
                fix="Give all sites the same task and the same order of classes.",
            )
    cards = {
        site.name: describe_backbone(backbone or site.backbone_spec, cache_dir=cache or site.cache)
        for site in sites
    }
    for site in sites[1:]:
        if cards[site.name].fingerprint != cards[first.name].fingerprint:
            raise DerminoError(
                "BACKBONE_MISMATCH",
                f"{site.name} and {first.name} use different backbones.",
                where=site.file,
                fix="Give all sites the same [backbone] name, or one with --backbone.",
            )
    return {
        site.name: prepare_site(site, backbone=backbone, precision=precision, cache=cache)
        for site in sites
    }


def _run(
    plan: RunPlan,
    prepared: Mapping[str, PreparedSite],
    folder: Path,
    clock: _Clock,
    *,
    resume: bool,
) -> Results:
    end = RunEnd()
    run_engine = {"inprocess": _run_inprocess, "ray": _run_ray}[plan.engine]
    run_engine(plan, prepared, folder, resume=resume, end=end)
    results = end.results_or_raise()
    clock.lap("federate")
    _add_baselines(plan, prepared, folder, results)
    clock.lap("baselines")
    results.seconds = clock.seconds
    save_results(folder, results)
    return results


def _run_inprocess(
    plan: RunPlan, prepared: Mapping[str, PreparedSite], folder: Path, *, resume: bool, end: RunEnd
) -> None:
    """Both apps in this process, every message in Flower's wire form."""
    hospitals = _hospitals(plan, prepared, folder)
    clients = {name: make_client_app(lambda _, h=h: h) for name, h in hospitals.items()}
    grid = InProcessGrid(clients)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    make_server_app(plan, folder, resume=resume, end=end)(grid, context)


def _hospitals(
    plan: RunPlan, prepared: Mapping[str, PreparedSite], folder: Path
) -> dict[str, Hospital]:
    """The sites with their policies; what each keeps is in the run folder, as on its own disk."""
    policies = {}
    if plan.sites_folder is not None:
        policies = {site.name: site.policy for site in read_sites(Path(plan.sites_folder))}
    hospitals = {
        name: Hospital(
            name=name,
            policy=policies.get(name, PolicySection()),
            folder=folder / "sites" / name,
            load=lambda site=site: site,
        )
        for name, site in prepared.items()
    }
    if plan.secure_aggregation:
        enrol_simulated(
            folder / "authority", {n: hospital.folder for n, hospital in hospitals.items()}
        )
    return hospitals


def _run_ray(
    plan: RunPlan, prepared: Mapping[str, PreparedSite], folder: Path, *, resume: bool, end: RunEnd
) -> None:
    """Flower's own simulation engine: one Ray actor per processor."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            "The Ray engine is not installed.",
            fix="pip install 'dermino[simulation]', or use --engine inprocess.",
        )
    from flwr.simulation import run_simulation

    hospitals = _hospitals(plan, prepared, folder)
    sites = [hospitals[name] for name in sorted(hospitals)]
    run_simulation(
        server_app=make_server_app(plan, folder, resume=resume, end=end),
        client_app=make_client_app(lambda context: sites[int(context.node_config["partition-id"])]),
        num_supernodes=len(sites),
        backend_name="ray",
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


def _add_baselines(
    plan: RunPlan, prepared: Mapping[str, PreparedSite], folder: Path, results: Results
) -> None:
    """Add the models that the run itself could not compare with.

    Those that saw all training images in one place; in a private run also those that each site
    trained alone, whose evaluations did not leave it.
    """
    strategy, task = get_strategy(plan.strategy, plan.settings), plan.for_sites()
    sites = {name: prepared[name] for name in results.site_names}
    heads = {}
    if set(plan.earlier_sites) <= set(sites):  # else there are images that are not here
        heads = _pooled_heads(strategy, task, list(sites.values()))
    if plan.privacy is not None:
        heads = _own_heads(strategy, task, sites) | _personal_heads(plan, folder, sites) | heads
    federated = load_model(folder / "model")[0]
    seen = dict(sites)
    if isinstance(strategy, Tuning):
        seen = {n: seen_by(s, str(folder / BACKBONE_FOLDER)) for n, s in sites.items()}
    for key, by_site in heads.items():
        results.models.append(MODELS[key])
        evaluations = {n: evaluate_head(site, by_site[n], task) for n, site in sites.items()}
        differences = {
            n: compare_heads(site, federated, by_site[n], task, seen=seen[n])
            for n, site in sites.items()
        }
        if results.totals is not None:
            results.mean[key] = mean_evaluation(evaluations.values())
            results.mean_global_minus[key] = mean_difference(differences.values())
        for site in results.sites:
            site.evaluations[key] = evaluations[site.name]
            site.global_minus[key] = differences[site.name]
    summarise(results)


def _pooled_heads(
    strategy: Strategy, task: Task, sites: Sequence[PreparedSite]
) -> dict[str, dict[str, LinearHead]]:
    """Model -> site -> head; the same head everywhere. Site names in order of the sum."""
    halves = [site.half("train") for site in sorted(sites, key=lambda site: site.name)]
    features = np.concatenate([features for features, _, _ in halves])
    labels = np.concatenate([labels for _, labels, _ in halves])
    data = SiteData("pooled", features, labels, len(task.classes))
    heads = {}
    if not isinstance(strategy, Tuning):  # that would take as long as all sites together
        heads["pooled"] = strategy.head(train_alone_on(data, strategy, task))
    heads["pooled_converged"] = fit_converged(
        features, labels, len(task.classes), penalty=CONVERGED_PENALTY
    )
    return {key: {site.name: head for site in sites} for key, head in heads.items()}


def _own_heads(
    strategy: Strategy, task: Task, sites: Mapping[str, PreparedSite]
) -> dict[str, dict[str, LinearHead]]:
    return {
        "local": {n: strategy.head(train_alone(site, strategy, task)) for n, site in sites.items()},
        "local_converged": {n: converged_head(site) for n, site in sites.items()},
    }


def _personal_heads(
    plan: RunPlan, folder: Path, sites: Collection[str]
) -> dict[str, dict[str, LinearHead]]:
    """As each site keeps it, where the run made them."""
    if not plan.personal:
        return {}
    return {
        "personal": {
            name: load_model(personal_folder(folder / "sites" / name, plan.run_id))[0]
            for name in sites
        }
    }


class _Clock:
    """Seconds per stage, for the results."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """File the time since the last lap under `stage`."""
        now = time.monotonic()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
