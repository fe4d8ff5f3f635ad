"""`torchrun --nproc-per-node N -m dermino_core.pretraining CONFIG.toml --out RUN`.

The same run as `dermino pretrain`, on several processes; on one without torchrun.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dermino_core.console import EXIT_CODES_HELP, run_command, say


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m dermino_core.pretraining",
        description=__doc__,
        epilog=EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="TOML file")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for example run.steps=200"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    arguments = parser.parse_args()

    from dermino_core.pretraining.config_file import read_config
    from dermino_core.pretraining.run import pretrain

    outcome = pretrain(
        read_config(arguments.config, arguments.set), arguments.out, resume=arguments.resume
    )
    if not outcome.complete:
        raise KeyboardInterrupt
    if outcome.model is not None:
        say(f"backbone: {outcome.model}")


if __name__ == "__main__":
    run_command(main)
    sys.exit(0)
