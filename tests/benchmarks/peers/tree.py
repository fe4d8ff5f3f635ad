"""What a command and all processes below it cost. Linux only: it reads /proc."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.benchmarks.machine import REPOSITORY

PERIOD = 0.25
"""Seconds between samples of memory."""

GRACE = 5.0
"""Seconds that a process left behind has to end after SIGTERM."""

_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """The command failed or took too long; the message is for the table."""


@dataclass(frozen=True)
class TreeBill:
    """What a tree of processes cost.

    `seconds` of wall clock; `cpu_seconds` user and system of all of them; `peak_mib` the largest
    sum of their proportional set sizes, where a page that n processes share counts 1/n to each;
    `loopback_bytes` of TCP and its headers inside the command's own network, if it had one;
    `others_seconds` of CPU that the rest of the machine used meanwhile: 0 on a quiet one.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    processes: int
    loopback_bytes: int | None
    others_seconds: float


@dataclass
class _Sampler:
    """Looks at all processes below this one, every `PERIOD`."""

    alone: bool
    peak_kib: int = 0
    loopback_bytes: int | None = None
    cpu: dict[int, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self._stop.wait(PERIOD):
            found = below(os.getpid())
            self.peak_kib = max(self.peak_kib, sum(_proportional_kib(pid) for pid in found))
            for pid in found:
                self.cpu[pid] = _cpu_seconds(pid)
            if self.alone and found:
                self.loopback_bytes = _loopback(found) or self.loopback_bytes

    def stop(self) -> None:
        self._stop.set()


def measure(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    alone: bool = False,
    longest: float = 3600,
) -> TreeBill:
    """Run a command to its end, with everything it starts.

    Parameters
    ----------
    log
        File for its output.
    alone
        Give it a network of its own that has loopback only (:func:`can_isolate`).
    longest
        Seconds after which it is ended.

    Raises
    ------
    Failed
        If it fails or takes longer; it and all its processes are ended, each by its number.
    """
    if alone:
        command = [*_isolated(), *command]
    before, busy = resource.getrusage(resource.RUSAGE_CHILDREN), _machine_seconds()
    start = time.perf_counter()
    sampler = _Sampler(alone)
    watcher = threading.Thread(target=sampler.watch, daemon=True)
    with log.open("wb") as output, _Adopting():
        child = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        watcher.start()
        try:
            code = child.wait(longest)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {longest:.0f} s") from None
        finally:
            seconds = time.perf_counter() - start
            _end_all(child)
            sampler.stop()
            watcher.join()
    if code:
        raise Failed(f"ended with {code}: {_last_words(log)}")
    busy = _machine_seconds() - busy
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    reaped = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # A process whose parent does not wait for it is missing in the first, its end in the second.
    cpu_seconds = max(reaped, sum(sampler.cpu.values()))
    peak = sampler.peak_kib / 1024
    others = max(0.0, busy - cpu_seconds)
    loopback = sampler.loopback_bytes
    return TreeBill(seconds, cpu_seconds, peak, len(sampler.cpu), loopback, others)


class _Adopting:
    """While it lasts, orphans below this process become its children, so that they are counted."""

    def __enter__(self) -> None:
        self._set(1)

    def __exit__(self, *_: object) -> None:
        self._set(0)

    @staticmethod
    def _set(value: int) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, value, 0, 0, 0)


def below(root: int) -> list[int]:
    """Numbers of all processes that descend from one."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        more = children.get(waiting.pop(), [])
        found += more
        waiting += more
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _machine_seconds() -> float:
    """CPU seconds of everybody since the machine started; idling and waiting left out."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    idle = int(fields[3]) + int(fields[4])
    return (sum(map(int, fields)) - idle) / _TICKS


def _proportional_kib(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _loopback(pids: Sequence[int]) -> int:
    """Bytes through the loopback of these processes' network; 0 before it is their own."""
    here = os.readlink("/proc/self/ns/net")
    for pid in pids:
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/net") == here:
                continue
            for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
                if line.strip().startswith("lo:"):
                    return int(line.split(":")[1].split()[0])
    return 0


def _end_all(child: subprocess.Popen[bytes]) -> None:
    """Ends what is left, by number: asked first, then killed; all are waited for."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in below(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + GRACE
        while below(os.getpid()) and time.monotonic() < end:
            child.poll()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)
    child.poll()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if "Error" in line or line.startswith("error ")]
    return (errors or lines or ["no output"])[-1][:300]


def _isolated() -> list[str]:
    """Runs what follows in a network of its own with loopback up."""
    lift = (
        "import fcntl, os, socket, struct, sys\n"
        "up = struct.pack('16sh', b'lo', 0x41) + bytes(14)\n"
        "fcntl.ioctl(socket.socket(), 0x8914, up)\n"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    flags = ["-n"] if os.geteuid() == 0 else ["-rn"]
    return ["unshare", *flags, sys.executable, "-c", lift]


@cache
def can_isolate() -> bool:
    """Whether this machine lets us make networks (Linux, root or user namespaces)."""
    try:
        run = subprocess.run([*_isolated(), "true"], capture_output=True, check=False)
    except OSError:
        return False
    return run.returncode == 0
