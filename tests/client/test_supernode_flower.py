"""Flower's loop with our clock: sooner while a run is on, as ever between runs."""

from __future__ import annotations

import time

import pytest
from flwr.supernode import start_client_internal as loop

from dermino_client.supernode_flower import EagerClock


class Night:
    """A clock that nobody waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slept = 1000.0, []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch) -> Night:
    return Night(monkeypatch)


def test_flower_s_loop_still_looks_at_the_time_there() -> None:
    """Else the clock is of no use, and every round takes seconds longer."""
    assert loop.time is time


def test_the_first_looks_come_soon_and_the_later_ones_as_flower_s(night: Night) -> None:
    clock = EagerClock()
    for _ in range(60):
        clock.sleep(3)
    assert night.slept[:10] == [0.1] * 10
    assert night.slept == sorted(night.slept)
    assert night.slept[-1] == 3
    assert night.now - 1000 > 30


def test_a_message_makes_it_eager_again(night: Night) -> None:
    clock = EagerClock()
    night.now += 3600
    clock.sleep(3)
    clock.sleep(0.5)  # Flower waits for the app's answer
    clock.sleep(3)
    assert night.slept == [3, 0.1, 0.1]


def test_while_the_app_works_its_answer_is_looked_for_ten_times_a_second(night: Night) -> None:
    clock = EagerClock()
    for _ in range(100):
        clock.sleep(0.5)
    assert set(night.slept) == {0.1}


def test_the_rest_of_the_module_is_there() -> None:
    clock = EagerClock()
    assert clock.time() == pytest.approx(time.time(), abs=1)  # type: ignore[operator]
    assert clock.perf_counter is time.perf_counter
