"""A segmentation federation on one machine: the real apps, every message in Flower's wire form.

Because all data is here, the baseline that a real federation cannot have is computed too: one head
on all sites' images and masks, under the same schedule.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_client.prepare import PreparedSite
from dermino_client.segmentation_prepare import PreparedMasks, prepare_masks
from dermino_client.site import SegmentationSection, Site, read_sites
from dermino_core import __version__
from dermino_core.backbone import describe_backbone
from dermino_core.errors import DerminoError
from dermino_core.paths import default_cache
from dermino_core.results import BackboneInfo
from dermino_core.segmentation_results import SegmentationResults
from dermino_server.checkpoint import latest_checkpoint
from dermino_server.demo_sites import write_masked_sites
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import new_run_folder, versions
from dermino_server.run_summary import write_results
from dermino_server.segmentation_outcome import (
    SEGMENTATION_HEADS,
    summarise_segmentation,
)
from dermino_server.segmentation_plan import (
    SegmentationPlan,
    make_method,
    make_segmentation_plan,
    read_segmentation_plan,
)
from dermino_server.segmentation_rounds import run_segmentation
from dermino_strategies.segmentation import (
    USUAL_ROUNDS,
    PooledPatches,
    SegmentationMethod,
    overlap,
    scores_of,
    train_alone,
)

DEFAULT_IMAGE_SIZE = 224


@dataclass(frozen=True)
class SegmentationRequest:
    """What the user asked for; `None` means: as the site files say, or drawn hospitals."""

    sites: Path | None = None
    backbone: str | None = None
    precision: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    rounds: int = USUAL_ROUNDS
    seed: int = 0
    replicates: int = 1000
    cache: Path | None = None
    pooled: bool = True


def simulate_segmentation(
    request: SegmentationRequest, out: Path
) -> tuple[Path, SegmentationResults]:
    """Start a simulation in a new run folder.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if the folder is in use, `CONFIG_INVALID` for a wrong setting, and what
        preparing sites and the rounds raise.
    """
    make_method(dict(request.settings))  # a typo, before anything is drawn or embedded
    cache = request.cache or default_cache()
    folder = new_run_folder(out)
    sites_folder = (request.sites or write_masked_sites(cache / "demo-masks")).absolute()
    sites = read_sites(sites_folder)
    first = sites[0].segmentation
    size = first.image_size if first else DEFAULT_IMAGE_SIZE
    method = make_method({"image_size": size, **request.settings})
    seconds: dict[str, float] = {}
    start = time.monotonic()
    prepared = _prepare(sites, method, request.backbone, request.precision, request.cache)
    seconds["prepare"] = round(time.monotonic() - start, 3)
    card = prepared[sites[0].name].card
    plan = make_segmentation_plan(
        title=f"Lesion segmentation: {', '.join(sorted(prepared))}",
        method=method,
        rounds=request.rounds,
        seed=request.seed,
        replicates=request.replicates,
        sites=sorted(prepared),
        min_sites=len(prepared),
        engine="inprocess",
        backbone=BackboneInfo.of(card, prepared[sites[0].name].precision),
        backbone_spec=request.backbone or sites[0].backbone_spec,
        sites_folder=str(sites_folder),
        data_digests={name: site.digest for name, site in prepared.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dermino_version=__version__,
        versions=versions(),
    )
    plan.write(folder)
    return folder, _run(plan, prepared, folder, seconds, pooled=request.pooled)


def resume_segmentation(
    folder: Path, *, cache: Path | None = None, pooled: bool = True
) -> tuple[Path, SegmentationResults]:
    """Continue an interrupted simulation after its newest checkpoint.

    Raises
    ------
    DerminoError
        `CHECKPOINT_INVALID` if this is no such run folder, or the sites' data is not what the run
        began with.
    """
    folder = folder.absolute()
    plan = read_segmentation_plan(folder)
    if plan.sites_folder is None:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            "This run was not a simulation.",
            where=folder,
            fix="Continue it with --superlink NAME --resume.",
        )
    start = time.monotonic()
    prepared = _prepare(
        read_sites(Path(plan.sites_folder)),
        plan.method,
        plan.backbone_spec,
        plan.backbone.precision,
        cache,
    )
    seconds = {"prepare": round(time.monotonic() - start, 3)}
    now = {name: site.digest for name, site in prepared.items()}
    if now != plan.data_digests:
        before = plan.data_digests
        names = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
        raise DerminoError(
            "CHECKPOINT_INVALID",
            f"The data of {', '.join(names)} is not what the run began with.",
            where=plan.sites_folder,
            fix="Restore the site files, images, masks and backbone, or start a new run.",
        )
    return folder, _run(plan, prepared, folder, seconds, pooled=pooled, resume=True)


def _prepare(
    sites: Sequence[Site],
    method: SegmentationMethod,
    backbone: str | None,
    precision: str | None,
    cache: Path | None,
) -> dict[str, PreparedMasks]:
    """Every site's part; a site file that does not say how gets what the run needs."""
    usual = SegmentationSection(image_size=method.image_size, heads=[method.head])
    cards = {
        site.name: describe_backbone(
            backbone or site.backbone_spec,
            image_size=method.image_size,
            cache_dir=cache or site.cache,
        )
        for site in sites
    }
    for site in sites[1:]:
        if cards[site.name].fingerprint != cards[sites[0].name].fingerprint:
            raise DerminoError(
                "BACKBONE_MISMATCH",
                f"{site.name} and {sites[0].name} use different backbones.",
                where=site.file,
                fix="Give all sites the same [backbone] name, or one with --backbone.",
            )
    return {
        site.name: prepare_masks(
            site,
            backbone=backbone,
            precision=precision,
            cache=cache,
            section=site.segmentation or usual,
        )
        for site in sites
    }


def _run(
    plan: SegmentationPlan,
    prepared: Mapping[str, PreparedMasks],
    folder: Path,
    seconds: dict[str, float],
    *,
    pooled: bool,
    resume: bool = False,
) -> SegmentationResults:
    start = time.monotonic()
    results = _federate(plan, prepared, folder, resume=resume)
    seconds["federate"] = round(time.monotonic() - start, 3)
    if pooled:
        start = time.monotonic()
        _add_pooled(plan, prepared, folder, results)
        seconds["pooled"] = round(time.monotonic() - start, 3)
    results.seconds = seconds
    write_results(folder, results)
    return results


def _federate(
    plan: SegmentationPlan, prepared: Mapping[str, PreparedMasks], folder: Path, *, resume: bool
) -> SegmentationResults:
    """Both apps in this process."""
    ended: list[SegmentationResults | DerminoError] = []
    server = ServerApp()

    @server.main()
    def _main(grid: Grid, context: Context) -> None:
        try:
            ended.append(run_segmentation(grid, plan, folder, resume=resume))
        except DerminoError as error:
            ended.append(error)

    hospitals = _hospitals(plan, prepared, folder)
    clients = {name: make_client_app(lambda _, h=h: h) for name, h in hospitals.items()}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    server(InProcessGrid(clients), context)
    outcome = ended[0] if ended else DerminoError("RUN_FAILED", "The run ended without a result.")
    if isinstance(outcome, DerminoError):
        raise outcome
    return outcome


def _hospitals(
    plan: SegmentationPlan, prepared: Mapping[str, PreparedMasks], folder: Path
) -> dict[str, Hospital]:
    """The sites with their policies; what each keeps is in the run folder, as on its own disk."""
    policies = {site.name: site.policy for site in read_sites(Path(plan.sites_folder or "."))}
    return {
        name: Hospital(
            name, policies[name], folder / "sites" / name, _no_labels, lambda site=site: site
        )
        for name, site in prepared.items()
    }


def _no_labels() -> PreparedSite:
    raise DerminoError("REQUEST_MISMATCH", "In this run the sites have masks, not labels.")


def _add_pooled(
    plan: SegmentationPlan,
    prepared: Mapping[str, PreparedMasks],
    folder: Path,
    results: SegmentationResults,
) -> None:
    """Score the head that saw all training images in one place."""
    method, width = plan.method, plan.backbone.width
    pool = PooledPatches([prepared[name].train for name in sorted(prepared)])
    pooled = train_alone(pool, method, width=width, rounds=plan.rounds, seed=plan.seed)
    state = latest_checkpoint(folder, plan.digest())
    if state is None:
        raise DerminoError("CHECKPOINT_INVALID", "The run left no checkpoint.", where=folder)
    for site in results.sites:
        own = prepared[site.name]
        first, second = (
            scores_of(own.test, method, arrays, width=width) for arrays in (state.arrays, pooled)
        )
        given = {"replicates": plan.replicates, "seed": plan.seed}
        site.scores["pooled"] = overlap(second, own.units, **given)
        site.global_minus["pooled"] = overlap(first - second, own.units, **given)
    results.models.append(SEGMENTATION_HEADS["pooled"])
    summarise_segmentation(results)
