"""`dermino federate`: a real run, on a SuperLink, with the hospitals that joined it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from dermino_core import __version__
from dermino_core.console import say, warn
from dermino_core.errors import DerminoError
from dermino_core.results import BackboneInfo, RoundRecord, read_results
from dermino_server.commands.options import (
    ClipOption,
    DeltaOption,
    EpsilonOption,
    ExtendOption,
    ImagesOption,
    KeepOption,
    PersonalOption,
    Precision,
    ReportOption,
    ResumeOption,
    RoundsOption,
    SecureOption,
    SeedOption,
    SettingsOption,
    StatisticsOption,
    StrategyOption,
    ThresholdOption,
    Unit,
    UnitOption,
    asks_statistics,
    new_run,
    parse_settings,
    privacy_request,
    refuse_beside_extend,
)
from dermino_server.commands.show import finish, show_round


def federate(
    superlink: Annotated[
        str, typer.Option(metavar="NAME", help="Connection in $FLWR_HOME/config.toml.")
    ],
    backbone: Annotated[
        str | None, typer.Option(help="The backbone that every site uses: file, timm name, 'demo'.")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="NAME", help="A site that takes part; repeatable."),
    ] = None,
    min_sites: Annotated[
        int | None,
        typer.Option(min=1, help="Quorum of every round.", show_default="every --site"),
    ] = None,
    task: Annotated[str, typer.Option(help="What is learned.")] = "malignancy",
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class of a task that is not built in; repeat in order."),
    ] = None,
    strategy: StrategyOption = "fedavg",
    settings: SettingsOption = None,
    rounds: RoundsOption = None,
    seed: SeedOption = 0,
    statistics: StatisticsOption = None,
    secure_aggregation: SecureOption = False,
    threshold: ThresholdOption = None,
    epsilon: EpsilonOption = None,
    delta: DeltaOption = 1e-5,
    clip: ClipOption = 1.0,
    unit: UnitOption = Unit.PATIENT,
    images_per_patient: ImagesOption = 4,
    personal: PersonalOption = False,
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic that the sites use; for the record.")
    ] = Precision.AUTO,
    wait: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for sites to connect.")
    ] = 120.0,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds a round may take.")] = 600.0,
    cross_site: Annotated[
        bool,
        typer.Option(
            help="Also collect each site's own head, for the cross-site matrix; up to 30 sites."
        ),
    ] = True,
    keep_sums: KeepOption = True,
    extend: ExtendOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make.", show_default="runs/federate-DATE")
    ] = None,
    resume: ResumeOption = None,
    report: ReportOption = True,
) -> None:
    """Train with the hospitals that joined a SuperLink. Run it on the SuperLink's machine.

    Examples:

        dermino federate --superlink consortium --backbone backbone.safetensors
        --site mednode --site ph2 --site fitzpatrick17k --min-sites 2 --out RUN

        dermino federate --superlink consortium --resume RUN

        dermino federate --superlink consortium --backbone backbone.safetensors
        --site mednode --site ph2 --site fitzpatrick17k --secure-aggregation --epsilon 3

        dermino federate --superlink consortium --extend RUN --site isic2017 --out LATER
    """
    from dermino_core.labels import TASKS
    from dermino_core.paths import default_cache
    from dermino_server.deployment import follow, stop, submit
    from dermino_server.extend import begin_extension, plan_extension
    from dermino_server.flower_cli import require_connection
    from dermino_server.kept_run import read_kept_run, refuse_superseded
    from dermino_server.plan import (
        check_protection,
        collects_heads,
        make_plan,
        new_run_folder,
        read_plan,
        versions,
        with_public_centre,
    )
    from dermino_strategies.base import Tuning
    from dermino_strategies.registry import get_strategy

    target = out or new_run("federate")
    if resume is not None:
        folder = resume.absolute()
        plan = read_plan(folder)
        refuse_superseded(folder)
    elif extend is not None:
        refuse_beside_extend(
            *("superlink", "site", "min_sites", "backbone", "wait", "deadline"),
            *("extend", "out", "report"),
        )
        require_connection(superlink)
        base = read_kept_run(extend)
        spec = backbone or base.plan.backbone_spec
        new = sorted(set(site or []))
        plan = plan_extension(
            base,
            new,
            _backbone(spec, base.plan.backbone.precision),
            backbone_spec=spec,
            min_sites=min_sites or max(1, len(new)),
            wait_seconds=wait,
            deadline_seconds=deadline,
            engine="deployment",
        )
        folder = new_run_folder(target)
        begin_extension(base, plan, folder)
    else:
        if backbone is None:
            raise DerminoError(
                "CONFIG_INVALID",
                "Which backbone do the sites use?",
                fix="--backbone with the file or name that is in their site files.",
            )
        if not classes and task not in TASKS:
            raise DerminoError(
                "CONFIG_INVALID",
                f"Task '{task}' is not built in ({', '.join(sorted(TASKS))}).",
                fix="Name its classes in order, the positive one last: --class A --class B.",
            )
        chosen = parse_settings(settings or [])
        chosen_strategy = get_strategy(strategy, chosen)
        sites = sorted(set(site or []))
        if not sites:
            raise DerminoError(
                "CONFIG_INVALID",
                "Which sites take part?",
                fix="Name each with --site, as it was registered; --min-sites says how many must "
                "answer.",
            )
        privacy = privacy_request(epsilon, delta, clip, unit, images_per_patient)
        check_protection(
            chosen_strategy,
            privacy,
            secure_aggregation=secure_aggregation,
            personal=personal,
            sites=len(sites),
        )
        if isinstance(chosen_strategy, Tuning):
            chosen_strategy.check_backbone(backbone)
        require_connection(superlink)
        plan = make_plan(
            title=f"{task}: {', '.join(sites)}",
            task=task,
            classes=list(classes or TASKS[task]),
            strategy=strategy,
            settings=with_public_centre(
                strategy, chosen, privacy, backbone=backbone, cache=default_cache()
            ),
            rounds=rounds or chosen_strategy.usual_rounds,
            seed=seed,
            sites=sites,
            min_sites=min_sites or len(sites),
            wait_seconds=wait,
            deadline_seconds=deadline,
            cross_site=cross_site
            and collects_heads(
                chosen_strategy, len(sites), privacy, secure_aggregation=secure_aggregation
            ),
            statistics=asks_statistics(statistics, privacy, secure_aggregation=secure_aggregation),
            secure_aggregation=secure_aggregation,
            threshold=threshold,
            privacy=privacy,
            personal=personal,
            keep_sums=keep_sums,
            engine="deployment",
            backbone=_backbone(backbone, precision.value),
            backbone_spec=backbone,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            dermino_version=__version__,
            versions=versions(),
        )
        folder = new_run_folder(target)
        plan.write(folder)
    run_id = submit(folder, superlink, resume=resume is not None)
    say(f"submitted as Flower run {run_id}; waiting for {', '.join(plan.sites)}")
    try:
        results = follow(folder, superlink, run_id, on_round=_show_round, read=read_results)
    except KeyboardInterrupt:
        stop(superlink, run_id)
        warn(f"stopped; continue with: dermino federate --superlink {superlink} --resume {folder}")
        raise
    finish(folder, results, report=report)


def _show_round(record: RoundRecord) -> None:
    show_round(record)
    # The report will need it, and while the sites work there is time.
    import matplotlib.figure  # noqa: F401


def _backbone(spec: str, precision: str) -> BackboneInfo:
    from dermino_core.backbone import describe_backbone
    from dermino_core.paths import default_cache

    return BackboneInfo.of(describe_backbone(spec, cache_dir=default_cache()), precision)
