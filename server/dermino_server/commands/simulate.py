"""`dermino simulate`: the whole federation on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say
from dermino_core.errors import DerminoError
from dermino_server.commands.options import (
    ClipOption,
    DeltaOption,
    Engine,
    EpsilonOption,
    ExtendOption,
    ImagesOption,
    KeepOption,
    PersonalOption,
    PrecisionOption,
    ReportOption,
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
from dermino_server.commands.show import finish


def simulate(
    sites: Annotated[
        Path | None,
        typer.Option(help="Folder of site files. Without it: three synthetic hospitals."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Backbone of every site: a timm name, a .safetensors file, or 'demo'."),
    ] = None,
    precision: PrecisionOption = None,
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
    keep_sums: KeepOption = True,
    extend: ExtendOption = None,
    engine: Annotated[Engine, typer.Option(help="In this process, or on Ray.")] = Engine.INPROCESS,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make.", show_default="runs/simulate-DATE")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where features are kept.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue the run in this folder; other options are its own."),
    ] = None,
    report: ReportOption = True,
) -> None:
    """Run a whole federation on this machine: every hospital, the coordinator, the baselines.

    Without arguments: three synthetic hospitals on a small backbone; needs no data, no weights
    and no network.

    Examples:

        dermino simulate

        dermino simulate --sites sites/ --backbone weights/dinov2_vits14.safetensors --out RUN

        dermino simulate --secure-aggregation --epsilon 3

        dermino simulate --strategy ridge --personal

        dermino simulate --extend RUN --sites sites/ --out LATER
    """
    from dermino_server import simulate as simulation

    target = out or new_run("simulate")
    if resume is not None:
        folder, results = simulation.resume(resume, cache=cache)
    elif extend is not None:
        refuse_beside_extend("extend", "sites", "backbone", "engine", "out", "cache", "report")
        if sites is None:
            raise DerminoError(
                "CONFIG_INVALID",
                "Where are the sites that join?",
                fix="--sites DIR, a folder of site files with the new ones in it.",
            )
        folder, results = simulation.extend(
            extend, sites, target, backbone=backbone, engine=engine.value, cache=cache
        )
    else:
        if sites is None:
            say("No --sites given: three synthetic hospitals, drawn on this machine.")
        privacy = privacy_request(epsilon, delta, clip, unit, images_per_patient)
        request = simulation.SimulationRequest(
            sites=sites,
            backbone=backbone,
            precision=precision.value if precision else None,
            strategy=strategy,
            settings=parse_settings(settings or []),
            rounds=rounds,
            seed=seed,
            statistics=asks_statistics(statistics, privacy, secure_aggregation=secure_aggregation),
            secure_aggregation=secure_aggregation,
            threshold=threshold,
            privacy=privacy,
            personal=personal,
            keep_sums=keep_sums,
            engine=engine.value,
            cache=cache,
        )
        folder, results = simulation.simulate(request, target)
    finish(folder, results, report=report)
