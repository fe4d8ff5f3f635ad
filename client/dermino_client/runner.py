"""The process that answers one message of the coordinator, if its app bundle may run here.

`dermino-client` keeps one of these beside `flower-supernode --isolation process`, in the place of
`flower-superexec` and `flwr-clientapp`. It imports what it needs and makes a copy of itself, which
waits for a message, judges the bundle that the message came with, answers and ends; then comes the
next copy. So every message finds a fresh process, as with Flower alone, without its imports.

No bundle is installed, written or imported before its bytes are judged. dermino's own bundle is
never used at all: the installed package answers.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dermino_client.runner_fork import leave, next_copy
from dermino_core.console import prepare_environment, run_command
from dermino_core.polling import pause

if TYPE_CHECKING:
    from dermino_client.runner_flower import Runtime

log = logging.getLogger("dermino.client")

POLL_SECONDS = 1.0
"""Longest pause between two looks for a message."""


MODULES = (
    "dermino_client.runner_answer",
    "dermino_client.own_results",
    "dermino_core.joining_curve",
    "sklearn.linear_model",
)
"""What an answer needs and would otherwise import while the coordinator waits."""


def serve_one(runtime: Runtime, site_file: Path) -> None:
    """Wait for a message, however long, and answer it."""
    from dermino_client.runner_answer import answer

    start = time.monotonic()
    while (claimed := _acquire(runtime)) is None:
        time.sleep(pause(time.monotonic() - start, POLL_SECONDS))
    with runtime.job(*claimed) as (job, connection):
        connection.answer(answer(job, site_file))


def _acquire(runtime: Runtime) -> tuple[str, str] | None:
    try:
        return runtime.acquire()
    except ConnectionError as error:
        log.debug("the SuperNode does not answer: %s", error)
        return None


def _keep_off_proxies() -> None:
    """Messages between SuperNode and runner stay on this machine, whatever proxy is configured."""
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name)
        os.environ[name] = f"{known},127.0.0.1" if known else "127.0.0.1"


def main() -> None:
    """Answer one message of the SuperNode that the command line names."""
    parser = argparse.ArgumentParser(prog="dermino_client.runner")
    parser.add_argument("site_file", type=Path)
    parser.add_argument("--address", required=True, help="HOST:PORT of the SuperNode's Runtime API")
    parser.add_argument("--secret", required=True, type=Path, help="file with the Runtime's secret")
    parser.add_argument("--parent", required=True, type=int, help="process to end with")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _keep_off_proxies()
    # Here, so that a flwr that lacks what is needed ends the process with the error's own code.
    from dermino_client.runner_flower import Runtime

    for name in MODULES:
        import_module(name)
    runtime = Runtime(arguments.address, arguments.secret.read_bytes())
    next_copy(arguments.parent)
    serve_one(runtime, arguments.site_file)
    runtime.close()
    leave()


if __name__ == "__main__":
    prepare_environment()
    run_command(main)
