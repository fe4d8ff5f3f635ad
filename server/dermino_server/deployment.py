"""A run on a real SuperLink: submit the thin Flower app, follow it, bring its results home.

Only Flower's command line is used. It must run on the SuperLink's own machine (or in its
container): the Control API has no authentication and should not be reachable from elsewhere, and
the ServerApp writes into the run folder given here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.results import RoundRecord
from dermino_server.app import ERROR_FILE, RESUME_KEY, RUN_FOLDER_KEY, read_error
from dermino_server.flower_cli import FlowerCallError, call_flwr, require_connection

T = TypeVar("T")

RUN_ID_FILE = "flower-run-id"
POLL_SECONDS = 0.3
QUIET_SECONDS = 10.0
"""Without news in the run folder, Flower is asked whether the run has ended.

Its answer costs a second of this machine, where the coordinator's app may run too.
"""
_ENDED_GRACE_SECONDS = 3.0


def submit(folder: Path, connection: str, *, resume: bool) -> int:
    """Submit the app for a prepared run folder and return Flower's run id.

    Raises
    ------
    DerminoError
        `CONNECTION_FAILED` if the SuperLink cannot be reached or refuses the run.
    """
    require_connection(connection)
    for leftover in (ERROR_FILE, "results.json"):
        (folder / leftover).unlink(missing_ok=True)
    if resume:
        _stop_previous(folder, connection)
    settings = f"{RUN_FOLDER_KEY}={json.dumps(str(folder))} {RESUME_KEY}={str(resume).lower()}"
    with tempfile.TemporaryDirectory(prefix="dermino-app-") as app:
        source = files("dermino_strategies").joinpath("flower_app/pyproject.toml")
        shutil.copyfile(str(source), Path(app) / "pyproject.toml")
        try:
            run_id = int(call_flwr("run", app, connection, "--run-config", settings)["run-id"])
        except FlowerCallError as refusal:
            raise _unreachable(connection, refusal.reason) from refusal
    write_atomically(folder / RUN_ID_FILE, f"{run_id}\n")
    return run_id


def _stop_previous(folder: Path, connection: str) -> None:
    """Two ServerApps must not write one run folder: end the one this folder last belonged to."""
    try:
        previous = int((folder / RUN_ID_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    with suppress(FlowerCallError):
        call_flwr("stop", str(previous), connection)


def follow(
    folder: Path,
    connection: str,
    run_id: int,
    *,
    on_round: Callable[[RoundRecord], None],
    read: Callable[[Path], T],
) -> T:
    """Wait for a submitted run to end; `read` reads the results of its kind from its folder.

    Raises
    ------
    DerminoError
        The error that the ServerApp left in the run folder; `RUN_FAILED` if it ended without
        results and without a word; `CONNECTION_FAILED` if the SuperLink went away.
    """
    seen = 0
    ended_at: float | None = None
    quiet_since = time.monotonic()
    while True:
        before = seen
        seen = _report_rounds(folder, seen, on_round)
        if seen > before:
            quiet_since = time.monotonic()
        if error := read_error(folder):
            raise error
        if (folder / "results.json").is_file():
            _report_rounds(folder, seen, on_round)
            return read(folder)
        now = time.monotonic()
        if ended_at is not None and now - ended_at > _ENDED_GRACE_SECONDS:
            raise DerminoError(
                "RUN_FAILED",
                f"Flower ended run {run_id} without results.",
                where=folder,
                fix=f"Look at: flwr log {run_id} {connection} --show. Then continue with --resume.",
            )
        if ended_at is None and now - quiet_since > QUIET_SECONDS:
            if _status(connection, run_id).startswith("finished"):
                ended_at = time.monotonic()
            quiet_since = time.monotonic()
        time.sleep(POLL_SECONDS)


def _status(connection: str, run_id: int) -> str:
    """Flower's status of a run, for example `running` or `finished:completed`."""
    try:
        answer = call_flwr("list", connection, "--run-id", str(run_id))
    except FlowerCallError as refusal:
        raise _unreachable(connection, refusal.reason) from refusal
    runs = answer.get("runs")
    return str(runs[0].get("status", "")) if isinstance(runs, list) and runs else ""


def stop(connection: str, run_id: int) -> None:
    """Ask Flower to stop a run; that it is over already is fine."""
    with suppress(FlowerCallError):
        call_flwr("stop", str(run_id), connection)


def _report_rounds(folder: Path, seen: int, on_round: Callable[[RoundRecord], None]) -> int:
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return seen
    for line in lines[seen:]:
        on_round(RoundRecord.model_validate_json(line))
    return max(seen, len(lines))


def _unreachable(connection: str, reason: str) -> DerminoError:
    return DerminoError(
        "CONNECTION_FAILED",
        f"The SuperLink behind '{connection}' did not do what was asked: {reason}",
        where="$FLWR_HOME/config.toml, [superlink.NAME]",
        fix="Is flower-superlink running here? `dermino health` asks it; `dermino provision init "
        "--out DIR` writes the connection.",
    )
