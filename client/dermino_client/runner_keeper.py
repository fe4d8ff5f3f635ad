"""Keeps one runner waiting beside the SuperNode, and gives up loudly if it cannot run at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dermino_core.console import warn
from dermino_core.errors import CODES

_FIRST_DELAY = 1.0
_LONGEST_DELAY = 30.0
_STOP_SECONDS = 5.0
_CANNOT_RUN = CODES["DEPENDENCY_MISSING"].exit_code


def new_secret(file: Path) -> Path:
    """Write a new secret that only this user can read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
        output.write(os.urandom(32))
    return file


def runner_command(site_file: Path, port: int, secret: Path) -> list[str]:
    """The command line of a runner that this process starts."""
    return [
        *(sys.executable, "-m", "dermino_client.runner", str(site_file)),
        *("--address", f"127.0.0.1:{port}"),
        *("--secret", str(secret)),
        *("--parent", str(os.getpid())),
    ]


class RunnerKeeper:
    """Starts a runner, and the next one whenever it has ended.

    Parameters
    ----------
    command, environment
        How to start it.
    give_up
        Called, from another thread, when a runner says that it cannot run with this flwr: without
        it the site answers nothing, so the SuperNode is of no use.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], give_up: Callable[[], object]
    ) -> None:
        self.failed = False
        self._command = command
        self._environment = dict(environment)
        self._give_up = give_up
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        """Start the first runner."""
        self._thread.start()

    def stop(self) -> None:
        """End the runner, at once if it does not end by itself, and start no other."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(timeout=_STOP_SECONDS)

    def _keep(self) -> None:
        delay = 0.0
        while not self._stopping.wait(delay):
            process = self._start()
            if process is None:
                return
            began = time.monotonic()
            code = process.wait()
            if self._stopping.is_set():
                return
            if code == _CANNOT_RUN:
                self.failed = True
                self._give_up()
                return
            if code == 0:
                delay = 0.0
                continue
            if time.monotonic() - began > _LONGEST_DELAY:
                delay = 0.0
            delay = min(_LONGEST_DELAY, max(_FIRST_DELAY, 2 * delay))
            warn(f"the process that answers messages ended with {code}; next one in {delay:g} s")

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(self._command, env=self._environment)  # noqa: S603
            return self._process
