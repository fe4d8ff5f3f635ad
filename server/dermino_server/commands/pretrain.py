"""`dermino pretrain`: the central job that makes the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermino_core.console import say

EXAMPLE = """\
Example: dermino pretrain pretrain.toml --out RUN --set run.epochs=20

On several GPUs: torchrun --nproc-per-node 8 -m dermino_core.pretraining pretrain.toml --out RUN"""


def pretrain(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; --example prints one.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value; may be given again."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print every field with its default, and stop.")
    ] = False,
) -> None:
    """Pretrain a backbone with the hybrid recipe (or a baseline) on one device.

    Writes RUN/model (a backbone for --backbone and for timm), RUN/report.html, RUN/metrics.jsonl.
    SIGTERM and Ctrl-C keep a checkpoint; --resume goes on from it.
    """
    if example:
        from dermino_core.pretraining.example import example_toml

        say(example_toml())
        return
    if config is None or out is None:
        raise typer.BadParameter("give CONFIG.toml and --out RUN, or --example")

    from dermino_core.pretraining.config_file import read_config
    from dermino_core.pretraining.run import pretrain as run

    outcome = run(read_config(config, setting or ()), out, resume=resume)
    if not outcome.complete:
        say(f"Stopped. Go on with: dermino pretrain {config} --out {out} --resume")
        raise KeyboardInterrupt
    say(f"backbone  {out / 'model'}")
    say(f"report    {out / 'report.html'}")
