"""The `dermino` command: one sub-command per file in `commands/`."""

from __future__ import annotations

from typing import Annotated

import typer

from dermino_core import __version__
from dermino_core.console import EXIT_CODES_HELP, say
from dermino_server.commands.audit import audit
from dermino_server.commands.backbones import EXAMPLE as BACKBONES_EXAMPLE
from dermino_server.commands.backbones import backbones
from dermino_server.commands.caption import caption
from dermino_server.commands.data import data_app
from dermino_server.commands.dataset_sites import EXAMPLE as SITES_EXAMPLE
from dermino_server.commands.dataset_sites import sites
from dermino_server.commands.evaluate import EXAMPLE as EVALUATE_EXAMPLE
from dermino_server.commands.evaluate import SpreadOptions, evaluate
from dermino_server.commands.federate import federate
from dermino_server.commands.health import health
from dermino_server.commands.labels import labels_app
from dermino_server.commands.predict import predict
from dermino_server.commands.pretrain import EXAMPLE as PRETRAIN_EXAMPLE
from dermino_server.commands.pretrain import pretrain
from dermino_server.commands.provision import provision_app
from dermino_server.commands.region import region_app
from dermino_server.commands.report import report
from dermino_server.commands.segment import segment
from dermino_server.commands.segmentation import EXAMPLE as SEGMENTATION_EXAMPLE
from dermino_server.commands.segmentation import segmentation
from dermino_server.commands.shards import EXAMPLE as SHARDS_EXAMPLE
from dermino_server.commands.shards import shards
from dermino_server.commands.simulate import simulate
from dermino_server.commands.strategies import EXAMPLE as STRATEGIES_EXAMPLE
from dermino_server.commands.strategies import strategies
from dermino_server.commands.withdraw import EXAMPLE as WITHDRAW_EXAMPLE
from dermino_server.commands.withdraw import withdraw

app = typer.Typer(
    name="dermino",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES_HELP,
    help="Federated learning for dermatology. Try: dermino simulate",
)
app.command()(simulate)
app.command()(federate)
app.command()(report)
app.command()(predict)
app.command(epilog=PRETRAIN_EXAMPLE)(pretrain)
app.command(epilog=BACKBONES_EXAMPLE)(backbones)
app.command()(segment)
app.command(epilog=SEGMENTATION_EXAMPLE)(segmentation)
app.command()(caption)
app.command(cls=SpreadOptions, epilog=EVALUATE_EXAMPLE)(evaluate)
app.command(epilog=STRATEGIES_EXAMPLE)(strategies)
app.command(epilog=WITHDRAW_EXAMPLE)(withdraw)
app.command()(health)
data_app.command(
    "audit", epilog="Example: dermino data audit ph2.csv web.csv --images data --out audit"
)(audit)
data_app.command("shards", epilog=SHARDS_EXAMPLE)(shards)
data_app.command("sites", epilog=SITES_EXAMPLE)(sites)
app.add_typer(provision_app, name="provision")
app.add_typer(data_app, name="data")
app.add_typer(labels_app, name="labels")
app.add_typer(region_app, name="region")


def _print_version(value: bool) -> None:
    if value:
        say(f"dermino {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere on the line.")
    ] = False,
) -> None:
    """Options before the command."""
