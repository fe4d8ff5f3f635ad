"""What `dermino` and `dermino-client` share at the terminal: error lines and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from dermino_core.errors import EXIT_CODES, DerminoError

EXIT_CODES_HELP = "Exit codes: " + "; ".join(f"{n} {text}" for n, text in EXIT_CODES.items()) + "."


def say(text: str = "") -> None:
    """Print one line for a person, on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Print one line for a person, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def prepare_environment() -> None:
    """Set what Flower reads when it is imported: no telemetry, no update check."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


def debug_requested() -> bool:
    """Whether the user asked for tracebacks (`--debug` sets `DERMINO_DEBUG=1`)."""
    return os.environ.get("DERMINO_DEBUG") == "1"


def _interrupt(_number: int, _frame: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: what is finished is kept, nothing is half written."""
    raise KeyboardInterrupt


def run_command(app: Callable[[], object]) -> None:
    """Run a command-line app; turn expected errors into two lines and a documented exit code.

    `--debug` anywhere on the command line shows tracebacks instead.
    """
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["DERMINO_DEBUG"] = "1"
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except DerminoError as error:
        if debug_requested():
            raise
        warn(f"error {error.code}: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if debug_requested():
            raise
        warn(f"unexpected error: {type(error).__name__}: {error}")
        warn("  To do: run it again with --debug and report what it prints.")
        sys.exit(1)
    except KeyboardInterrupt:
        warn("interrupted")
        sys.exit(130)
