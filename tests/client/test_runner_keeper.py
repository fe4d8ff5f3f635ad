"""The keeper of runners, with shell scripts for runners."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dermino_client.runner_keeper import RunnerKeeper, new_secret


def kept(tmp_path: Path, script: str) -> tuple[RunnerKeeper, Path, list[int]]:
    """A keeper of a shell script that writes a line to a log whenever it starts."""
    log, given_up = tmp_path / "log", []
    command = ["/bin/sh", "-c", f"echo $$ >> {log}; {script}"]
    return RunnerKeeper(command, os.environ, lambda: given_up.append(1)), log, given_up


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_after_an_answer_the_next_one_is_started_at_once(tmp_path: Path) -> None:
    keeper, log, given_up = kept(tmp_path, "exit 0")
    keeper.start()
    assert wait_for(lambda: len(lines(log)) >= 3)
    keeper.stop()
    count = len(lines(log))
    time.sleep(0.1)
    assert len(lines(log)) == count
    assert (given_up, keeper.failed) == ([], False)


def test_a_runner_that_cannot_run_ends_it_all(tmp_path: Path) -> None:
    keeper, log, given_up = kept(tmp_path, "exit 3")
    keeper.start()
    assert wait_for(lambda: bool(given_up))
    assert keeper.failed
    assert len(lines(log)) == 1
    keeper.stop()


def test_a_crash_is_said_and_does_not_spin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper, log, given_up = kept(tmp_path, "kill -9 $$")
    keeper.start()
    assert wait_for(lambda: len(lines(log)) == 1)
    time.sleep(0.3)
    assert len(lines(log)) == 1
    keeper.stop()
    assert "ended with -9; next one in 1 s" in capsys.readouterr().err
    assert not given_up


def test_stopping_ends_the_runner(tmp_path: Path) -> None:
    keeper, log, _ = kept(tmp_path, "exec sleep 60")
    keeper.start()
    assert wait_for(lambda: len(lines(log)) == 1)
    began = time.monotonic()
    keeper.stop()
    assert time.monotonic() - began < 4
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines(log)[0]), 0)


def test_a_secret_is_new_and_private(tmp_path: Path) -> None:
    one, other = new_secret(tmp_path / "one"), new_secret(tmp_path / "other")
    assert one.read_bytes() != other.read_bytes()
    assert len(one.read_bytes()) == 32
    assert one.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        new_secret(one)
