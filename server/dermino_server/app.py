"""The Flower ServerApp of the coordinator.

In a deployment Flower starts it in a process of its own, and the run configuration names the run
folder that `dermino federate` has prepared. A failure is left there as `error.json`, because the
text of an exception would otherwise be buried in the SuperLink's log.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.results import Results
from dermino_server.plan import RunPlan, read_plan
from dermino_server.rounds import run_rounds
from dermino_server.segmentation_plan import is_segmentation, read_segmentation_plan
from dermino_server.segmentation_rounds import run_segmentation

log = logging.getLogger("dermino.server")

RUN_FOLDER_KEY = "run-folder"
RESUME_KEY = "resume"
ERROR_FILE = "error.json"


@dataclass
class RunEnd:
    """How a simulated run ended: Flower's engines do not hand a result or an error through."""

    results: Results | None = None
    error: DerminoError | None = None

    def results_or_raise(self) -> Results:
        """The results, or the error that ended the run."""
        if self.results is None:
            raise self.error or DerminoError("RUN_FAILED", "The run ended without a result.")
        return self.results


def make_server_app(plan: RunPlan, folder: Path, *, resume: bool, end: RunEnd) -> ServerApp:
    """A ServerApp that runs this plan and leaves how it ended in `end`, for simulation."""
    server_app = ServerApp()

    @server_app.main()
    def _main(grid: Grid, context: Context) -> None:
        try:
            end.results = run_rounds(grid, plan, folder, resume=resume)
        except DerminoError as error:
            end.error = error

    return server_app


def read_error(folder: Path) -> DerminoError | None:
    """The failure that a deployed run left behind, if it did."""
    try:
        content = json.loads((folder / ERROR_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return DerminoError(
        content["code"], content["what"], where=content["where"], fix=content["fix"]
    )


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan in the folder that the run configuration names."""
    logging.getLogger("dermino").setLevel(logging.INFO)
    folder = Path(str(context.run_config[RUN_FOLDER_KEY]))
    resume = bool(context.run_config.get(RESUME_KEY, False))
    try:
        if is_segmentation(folder):
            run_segmentation(grid, read_segmentation_plan(folder), folder, resume=resume)
        else:
            run_rounds(grid, read_plan(folder), folder, resume=resume)
    except DerminoError as error:
        _leave(folder, error)
        raise
    except Exception as error:
        what = f"The coordinator's app failed: {type(error).__name__}: {error}"
        fix = "The SuperLink's log has the traceback. Continue with --resume."
        _leave(folder, DerminoError("RUN_FAILED", what, fix=fix))
        raise


def _leave(folder: Path, error: DerminoError) -> None:
    content = {"code": error.code, "what": error.what, "where": error.where, "fix": error.fix}
    write_atomically(folder / ERROR_FILE, json.dumps(content, indent=1) + "\n")
