"""Processes that write to an audit log or a ledger until they are killed.

Run as a script it forks a writer for every line on standard input and says on standard output what
they were told is on the disk; :class:`Writers` is the other end, for tests.

    python kill_writer.py audit|ledger FOLDER ROTATE_BYTES
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from dermino_client.audit import AuditLog
from dermino_client.ledger import Ledger, Limits
from dermino_core.privacy.plan import Mechanism

PER_ROUND = Mechanism(noise_multiplier=2.0, sampling_rate=0.1, steps=7)
DELTA = 1e-5
REAL_WRITE = os.write
STEPS = ("open", "write", "fsync", "replace", "truncate", "ftruncate")


def tell(text: str) -> None:
    REAL_WRITE(1, f"{text}\n".encode())


def die_at(step: int) -> None:
    """Die by SIGKILL before the `step`-th call that changes a file; a write is done by half."""
    left = step

    def patch(name: str) -> None:
        real = getattr(os, name)

        def stepping(*arguments: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    handle, data = arguments
                    real(handle, bytes(data)[: len(bytes(data)) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(os, name, stepping)

    for name in STEPS:
        patch(name)


def write_audit(folder: Path, rotate: int, name: str, times: int) -> None:
    log = AuditLog(folder, rotate_bytes=rotate)
    for number in range(times):
        entry = log.sent("TrainReply", run=name, round_=number, size=number)
        tell(f"ack {entry.seq} {entry.hash}")


def write_ledger(folder: Path, rotate: int, name: str, times: int) -> None:
    ledger = Ledger(folder, rotate_bytes=rotate)
    ledger.reserve(name, "dpfedavg", PER_ROUND, 3, DELTA, Limits())
    tell("ack reserved 0")
    for number in range(1, times + 1):
        ledger.begin(name, number)
        tell(f"ack begun {number}")


def serve(kind: str, folder: Path, rotate: int) -> None:
    write = {"audit": write_audit, "ledger": write_ledger}[kind]
    for line in sys.stdin:
        name, times, step = line.split()
        child = os.fork()
        if child == 0:
            tell(f"start {os.getpid()}")
            if int(step):
                die_at(int(step))
            write(folder, rotate, name, int(times))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        tell(f"end {os.waitstatus_to_exitcode(status)}")


class Writers:
    """Writers of one folder, one after another."""

    def __init__(self, kind: str, folder: Path, rotate: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, kind, str(folder), str(rotate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()

    def write_until_killed(self, name: str, chance: random.Random) -> list[tuple[str, str]]:
        """What a writer was told is on the disk before it was killed, a while after it began."""
        pid = self._start(f"{name} 1000000 0")
        acknowledged = [self._acknowledged() for _ in range(chance.randint(0, 5))]
        time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        more, code = self._until_the_end()
        assert code == -signal.SIGKILL
        return acknowledged + more

    def write(self, name: str, times: int, die_at: int) -> tuple[list[tuple[str, str]], bool]:
        """Write `times` times, dying at a step; also whether the writer lived to the end."""
        self._start(f"{name} {times} {die_at}")
        acknowledged, code = self._until_the_end()
        assert code in (0, -signal.SIGKILL)
        return acknowledged, code == 0

    def _start(self, line: str) -> int:
        self.process.stdin.write(line + "\n")
        word, pid = self.process.stdout.readline().split()
        assert word == "start"
        return int(pid)

    def _acknowledged(self) -> tuple[str, str]:
        word, first, second = self.process.stdout.readline().split()
        assert word == "ack"
        return first, second

    def _until_the_end(self) -> tuple[list[tuple[str, str]], int]:
        acknowledged = []
        while (words := self.process.stdout.readline().split())[0] != "end":
            acknowledged.append((words[1], words[2]))
        return acknowledged, int(words[1])


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
