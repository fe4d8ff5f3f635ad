"""The machine a measurement was made on, and a child process's bill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dermino_core.machine import describe_machine

REPOSITORY = Path(__file__).resolve().parents[2]

BUSY_LOAD_PER_CORE = 0.25
"""One-minute load above which another job probably shares the machine."""


@dataclass(frozen=True)
class Bill:
    """What a child process cost.

    `seconds` of wall clock from start to exit, imports included; `cpu_seconds` user and system,
    with those of its own ended children; `peak_mib` the resident memory of its largest process.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float


def describe() -> dict[str, str]:
    """Machine and the versions that decide speed."""
    packages = ("torch", "timm", "flwr", "numpy", "pillow")
    return {"machine": describe_machine()} | {name: version(name) for name in packages}


def load_line() -> str:
    """The load averages, with a warning when the numbers below will be someone else's too."""
    one, five, fifteen = os.getloadavg()
    line = f"load average {one:.2f}, {five:.2f}, {fifteen:.2f}"
    if one > BUSY_LOAD_PER_CORE * (os.cpu_count() or 1):
        line += "  WARNING: the machine is busy (unless by the previous section)"
    return line


def run_child(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Bill:
    """Run a command to its end in the repository root and return what it cost.

    The parent must be small: Linux counts the parent's memory at the fork towards the child's
    peak. Nothing here imports torch.

    Raises
    ------
    RuntimeError
        If the command fails; the message holds the end of its output.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            tail = output.read()[-3000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)}\nended with {child.returncode}:\n{tail}")
    return Bill(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs one of these files in a process of its own."""
    return [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]


def dermino(*arguments: str) -> list[str]:
    """The installed `dermino`, beside the interpreter that runs this."""
    return [str(Path(sys.executable).with_name("dermino")), *arguments]
