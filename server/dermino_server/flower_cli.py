"""Flower's command line, called and understood.

It is Flower's only stable surface for submitting runs and registering sites. With `--format json`,
flwr 1.41 ends with status 0 whatever happened: the answer is in the JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from dermino_core.errors import DerminoError

TIMEOUT_SECONDS = 120
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Set for every Flower process: no telemetry, no update check."""


class FlowerCallError(Exception):
    """Flower did not do what was asked; `reason` is in its own words."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(reason.split())[-600:]
        super().__init__(self.reason)


def call_flwr(*arguments: str) -> dict[str, Any]:
    """Run `flwr ARGUMENTS --format json` of this environment and return its answer.

    Raises
    ------
    FlowerCallError
        If Flower says no, or gives no answer in time.
    DerminoError
        `DEPENDENCY_MISSING` if there is no `flwr` beside this Python.
    """
    executable = Path(sys.executable).parent / "flwr"
    path = f"{executable.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        done = subprocess.run(  # noqa: S603 - our own command line
            [str(executable), *arguments, "--format", "json"],
            env={**os.environ, **QUIET, "PATH": path},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise DerminoError(
            "DEPENDENCY_MISSING",
            "The `flwr` command is missing.",
            where=executable,
            fix="Install dermino with its dependencies into one environment.",
        ) from error
    except subprocess.TimeoutExpired:
        raise FlowerCallError(f"no answer in {TIMEOUT_SECONDS} s") from None
    start = done.stdout.find("{")
    try:
        answer = json.loads(done.stdout[start:]) if start >= 0 else None
    except json.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise FlowerCallError(done.stderr or done.stdout or "it said nothing")
    if answer.get("success") is not True:
        raise FlowerCallError(str(answer.get("error-message") or answer))
    return answer


def flower_home() -> Path:
    """Flower's folder: `$FLWR_HOME`, else `~/.flwr`."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


def require_connection(name: str) -> None:
    """Check that Flower's configuration has a connection of this name.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` listing the connections there are.
    """
    file = flower_home() / "config.toml"
    try:
        links = tomllib.loads(file.read_text(encoding="utf-8")).get("superlink", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        links = {}
    known = sorted(key for key, value in links.items() if isinstance(value, dict))
    if name not in known:
        raise DerminoError(
            "CONFIG_INVALID",
            f"Flower's configuration has no connection '{name}'"
            + (f"; it has {', '.join(known)}." if known else "."),
            where=file,
            fix="`dermino provision init --out DIR --host NAME` writes one; $FLWR_HOME says where "
            "Flower looks.",
        )
