"""`dermino segmentation`: hospitals learn together to outline lesions."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_core.console import say
from dermino_core.errors import DerminoError
from dermino_server.commands.options import (
    PrecisionOption,
    ReportOption,
    ResumeOption,
    SeedOption,
    SettingsOption,
    new_run,
    parse_settings,
)
from dermino_server.commands.show import cell, print_wide, say_where, show_round

if TYPE_CHECKING:
    from dermino_core.results import Estimate
    from dermino_core.segmentation_results import SegmentationResults


class HeadOption(StrEnum):
    """The head that is trained."""

    LINEAR = "linear"
    UPERNET = "upernet"


EXAMPLE = (
    "Example: dermino segmentation --sites sites/ --backbone weights/vit.safetensors --head upernet"
)


def segmentation(
    sites: Annotated[
        Path | None,
        typer.Option(help="Simulate these site files. Without it: three drawn hospitals."),
    ] = None,
    superlink: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A real run: connection in $FLWR_HOME/config.toml."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", metavar="NAME", help="Real run: a site, repeatable."),
    ] = None,
    min_sites: Annotated[
        int | None,
        typer.Option(min=1, help="Real run: quorum of every round.", show_default="every --site"),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone of every site: file, timm name, 'demo'.")
    ] = None,
    precision: PrecisionOption = None,
    head: Annotated[HeadOption, typer.Option(help="Which head is trained.")] = HeadOption.LINEAR,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Global rounds.")] = 10,
    settings: SettingsOption = None,
    seed: SeedOption = 0,
    wait: Annotated[
        float, typer.Option(min=1, help="Real run: seconds to wait for sites to connect.")
    ] = 120.0,
    deadline: Annotated[
        float, typer.Option(min=1, help="Real run: seconds a round may take.")
    ] = 3600.0,
    pooled: Annotated[
        bool, typer.Option(help="Simulation: also train one head on all data in one place.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make.", show_default="runs/segmentation-DATE")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Simulation: where features are kept.")] = None,
    resume: ResumeOption = None,
    report: ReportOption = True,
) -> None:
    """Train a head that outlines lesions, with masks that stay in their hospitals.

    Sites say [segmentation] in their site file and name masks in the manifest's column mask. The
    head is averaged after every round and scored at every site beside the head that the site
    trains alone. Settings: local_epochs, learning_rate, batch_size, dropout, dice_weight,
    channels, image_size, augment.

    Examples:

        dermino segmentation

        dermino segmentation --sites sites/ --head upernet --set local_epochs=3 --out RUN

        dermino segmentation --superlink consortium --backbone vit.safetensors --site a --site b
    """
    folder = out or new_run("segmentation")
    chosen = {"head": head.value, **parse_settings(settings or [])}
    if superlink is None:
        if site:
            raise DerminoError(
                "CONFIG_INVALID",
                "--site names hospitals of a real run.",
                fix="Add --superlink NAME, or simulate a folder of site files with --sites DIR.",
            )
        from dermino_server import segmentation_simulate as simulation

        if resume is not None:
            done = simulation.resume_segmentation(resume, cache=cache, pooled=pooled)
        else:
            if sites is None:
                say("No --sites given: three synthetic hospitals, drawn on this machine.")
            request = simulation.SegmentationRequest(
                sites=sites,
                backbone=backbone,
                precision=precision.value if precision else None,
                settings=chosen,
                rounds=rounds,
                seed=seed,
                cache=cache,
                pooled=pooled,
            )
            done = simulation.simulate_segmentation(request, folder)
    else:
        from dermino_server.segmentation_deployment import Deployment, deploy_segmentation

        asked = Deployment(
            superlink=superlink,
            sites=sorted(set(site or [])),
            min_sites=min_sites,
            backbone=backbone,
            precision=precision.value if precision else "auto",
            settings=chosen,
            rounds=rounds,
            seed=seed,
            wait=wait,
            deadline=deadline,
        )
        done = deploy_segmentation(asked, folder, resume=resume, on_round=show_round)
    _finish(*done, report=report)


def _finish(folder: Path, results: SegmentationResults, *, report: bool) -> None:
    if report:
        from dermino_core.reporting.segmentation_page import write_segmentation_report

        write_segmentation_report(results, folder / "report.html")
    _print_table(results)
    say_where(folder, results.warnings, report=report, use="    (dermino segment IMAGE --model it)")


def _print_table(results: SegmentationResults) -> None:
    from rich.table import Table

    def overlap_cell(estimate: Estimate | None) -> str:
        return "" if estimate is None else cell(estimate)

    table = Table(title=f"Dice (95 % interval), {results.title}")
    table.add_column("trained on")
    for one in results.sites:
        table.add_column(f"{one.name}\nn = {one.n_test}")
    table.add_column("mean")
    for model in results.models:
        mean = results.mean.get(model.key)
        table.add_row(
            model.title,
            *(
                overlap_cell(one.scores[model.key].dice if model.key in one.scores else None)
                for one in results.sites
            ),
            overlap_cell(mean.dice if mean else None),
        )
    print_wide(table, 120)
