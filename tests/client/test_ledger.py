"""The privacy ledger: its sums are those of an independent accountant, and it refuses in time."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_client.journal import Journal
from dermino_client.ledger import YEAR, Ledger, Limits
from dermino_core.errors import DerminoError
from dermino_core.privacy.accounting import ORDERS, epsilon
from dermino_core.privacy.plan import Mechanism

_SPEC = importlib.util.spec_from_file_location(
    "kill_writer", Path(__file__).with_name("kill_writer.py")
)
kill_writer = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(kill_writer)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DELTA = 1e-5
NO_LIMITS = Limits()
GAUSSIAN = Mechanism(noise_multiplier=10.0, sampling_rate=1.0, steps=4)


def rounds_cost(rounds: int, mechanism: Mechanism = GAUSSIAN, delta: float = DELTA) -> float:
    """Of unsampled Gaussian mechanisms, in closed form: rho = 1 / (2 sigma^2) for each step."""
    rho = rounds * mechanism.steps / (2 * mechanism.noise_multiplier**2)
    bounds = rho * ORDERS + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(bounds.min())) if rounds else 0.0


def reserve(
    ledger: Ledger, run: str, rounds: int, limits: Limits = NO_LIMITS, **other: object
) -> None:
    values = {"per_round": GAUSSIAN, "delta": DELTA, "now": NOW} | other
    ledger.reserve(run, "dpfedavg", rounds=rounds, limits=limits, **values)


def refused(step: Callable[[], object], code: str = "BUDGET_EXCEEDED") -> str:
    with pytest.raises(DerminoError) as caught:
        step()
    assert caught.value.code == code
    return str(caught.value)


def entries(ledger: Ledger) -> int:
    return ledger.verify().entries


RUNS = {
    "first": (Mechanism(4.0, 0.1, 7), 4),
    "second": (Mechanism(2.0, 0.02, 30), 3),
    "third": (Mechanism(20.0, 1.0, 2), 5),
}
"""Cheap enough for whole orders to decide: at fractional ones dp-accounting has a looser bound."""


def run_in_a_process(folder: Path, name: str) -> None:
    mechanism, rounds = RUNS[name]
    Ledger(folder).reserve(name, "dpfedavg", mechanism, rounds, DELTA, NO_LIMITS, NOW)
    for number in range(1, rounds + 1):
        Ledger(folder).begin(name, number, NOW)
    Ledger(folder).close(name, NOW)


def test_three_runs_cost_what_an_independent_accountant_says(tmp_path: Path) -> None:
    """Each run in a process of its own; dp-accounting composes all their mechanisms."""
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import RdpAccountant

    def independent(names: list[str], delta: float) -> float:
        accountant = RdpAccountant(orders=list(ORDERS))
        for name in names:
            mechanism, rounds = RUNS[name]
            gaussian = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
            sampled = dp_accounting.PoissonSampledDpEvent(mechanism.sampling_rate, gaussian)
            accountant.compose(sampled, rounds * mechanism.steps)
        return accountant.get_epsilon(delta)

    for name in RUNS:
        process = multiprocessing.get_context("fork").Process(
            target=run_in_a_process, args=(tmp_path, name)
        )
        process.start()
        process.join()
        assert process.exitcode == 0
    ledger = Ledger(tmp_path)
    for delta in (1e-6, 1e-5, 1e-3):
        assert ledger.spent(NOW, delta) == pytest.approx(independent(list(RUNS), delta), abs=1e-6)
    for run in ledger.by_run():
        assert run.epsilon == pytest.approx(independent([run.run], DELTA), abs=1e-6)
    alone = sum(run.epsilon for run in ledger.by_run())
    assert ledger.spent(NOW, DELTA) < 0.95 * alone


def test_what_counts(tmp_path: Path) -> None:
    """Open: the reservation, and what was begun beyond it; closed: what was begun."""
    ledger = Ledger(tmp_path)
    assert ledger.spent(NOW, DELTA) == 0
    assert ledger.by_run() == []
    assert not list(tmp_path.iterdir())
    reserve(ledger, "a", 3)
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(3), rel=1e-12)
    for begun, counted in enumerate([3, 3, 3, 4, 5], start=1):
        ledger.begin("a", 1, NOW)  # always the same round: every answer has noise of its own
        assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(counted), rel=1e-12)
        (run,) = ledger.by_run()
        assert (run.run, run.strategy, run.rounds, run.begun) == ("a", "dpfedavg", 3, begun)
        assert run.is_open
        assert run.epsilon == pytest.approx(rounds_cost(counted), rel=1e-12)
        assert run.epsilon_begun == pytest.approx(rounds_cost(begun), rel=1e-12)
    reserve(ledger, "b", 10)
    ledger.begin("b", 1, NOW)
    ledger.begin("b", 2, NOW)
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(15), rel=1e-12)
    ledger.close("b", NOW)
    ledger.close("b", NOW)
    ledger.close("unknown", NOW)
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(7), rel=1e-12)
    assert [run.is_open for run in ledger.by_run()] == [True, False]
    assert entries(ledger) == 1 + 5 + 1 + 2 + 1


def test_reserving_again_counts_once(tmp_path: Path) -> None:
    limits = Limits(per_run=rounds_cost(3), per_year=rounds_cost(3), delta=DELTA)
    ledger = Ledger(tmp_path)
    for _ in range(4):
        reserve(Ledger(tmp_path), "a", 3, limits)
    ledger.begin("a", 1, NOW)
    reserve(ledger, "a", 3, limits)
    assert entries(ledger) == 2
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(3), rel=1e-12)
    for other in (
        {"rounds": 2},
        {"delta": 1e-6},
        {"per_round": Mechanism(11.0, 1.0, 4)},
        {"per_round": Mechanism(10.0, 0.5, 4)},
        {"per_round": Mechanism(10.0, 1.0, 3)},
    ):
        values = {"rounds": 3, "limits": limits} | other
        assert "another plan" in refused(lambda v=values: reserve(ledger, "a", **v))
    refused(lambda: ledger.reserve("a", "other", GAUSSIAN, 3, DELTA, limits, NOW))
    assert entries(ledger) == 2


def test_a_run_beyond_its_limit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    limits = Limits(per_run=rounds_cost(5) * (1 - 1e-6))
    words = refused(lambda: reserve(ledger, "a", 5, limits))
    assert f"epsilon {rounds_cost(5):.6g} at delta 1e-05 (5 rounds)" in words
    assert "epsilon_per_run in [policy]" in words
    assert entries(ledger) == 0
    assert "reserved no privacy budget" in refused(lambda: ledger.begin("a", 1, NOW))
    reserve(ledger, "a", 4, limits)
    reserve(ledger, "b", 4, limits)  # each run has the limit for itself
    reserve(Ledger(tmp_path / "exact"), "a", 5, Limits(per_run=rounds_cost(5)))
    looser = Limits(per_run=rounds_cost(5, delta=1e-3))
    refused(lambda: reserve(ledger, "c", 5, looser))
    reserve(ledger, "c", 5, looser, delta=1e-3)  # a run is judged at its own delta


def test_a_year_beyond_its_limit_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    """A ledger that is nearly full."""
    limits = Limits(per_run=100.0, per_year=rounds_cost(10) * (1 + 1e-6), delta=DELTA)
    ledger = Ledger(tmp_path)
    reserve(ledger, "old", 8, limits)
    for number in range(8):
        ledger.begin("old", number + 1, NOW)
    ledger.close("old", NOW)
    before = entries(ledger)
    words = refused(lambda: reserve(ledger, "new", 3, limits))
    assert f"365 days would cost epsilon {rounds_cost(11):.6g} at delta 1e-05" in words
    assert "epsilon_per_year in [policy]" in words
    refused(lambda: ledger.begin("new", 1, NOW))
    assert entries(ledger) == before
    reserve(ledger, "new", 2, limits)
    refused(lambda: reserve(ledger, "next", 1, limits))
    ledger.begin("new", 1, NOW)
    ledger.close("new", NOW)
    reserve(ledger, "next", 1, limits)  # what "new" did not use
    refused(lambda: reserve(ledger, "last", 1, limits))


def test_a_year_is_judged_at_the_delta_of_the_limits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    at_1e3 = rounds_cost(5, delta=1e-3)
    assert at_1e3 < rounds_cost(3)
    reserve(ledger, "a", 5, Limits(per_year=at_1e3, delta=1e-3))
    refused(lambda: reserve(ledger, "b", 1, Limits(per_year=at_1e3, delta=1e-3)))


def test_rounds_beyond_the_reservation_need_room(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    per_run = Limits(per_run=rounds_cost(3) * 1.001)
    reserve(ledger, "a", 2, per_run)
    for number in (1, 2, 2):
        ledger.begin("a", number, NOW)
    before = entries(ledger)
    refused(lambda: ledger.begin("a", 3, NOW))
    assert entries(ledger) == before
    refused(lambda: ledger.begin("a", 3, NOW, limits=Limits(per_year=rounds_cost(3) * 1.001)))
    ledger.begin("a", 3, NOW, limits=Limits(per_run=rounds_cost(4) * 1.001))
    refused(lambda: ledger.begin("a", 3, NOW))
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(4), rel=1e-12)


def test_a_closed_run_may_come_back_within_the_limits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    limits = Limits(per_year=rounds_cost(6) * 1.001, delta=DELTA)
    reserve(ledger, "a", 4, limits)
    ledger.begin("a", 1, NOW)
    ledger.close("a", NOW)
    ledger.begin("a", 2, NOW)  # an answer after all: it counts
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(2), rel=1e-12)
    reserve(ledger, "b", 3, limits)
    refused(lambda: reserve(ledger, "a", 4, limits))
    ledger.close("b", NOW)
    reserve(ledger, "a", 4, limits)
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(4), rel=1e-12)
    ledger.begin("a", 3, NOW)
    ledger.begin("a", 4, NOW)
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(4), rel=1e-12)


def test_limits_may_change_while_a_run_is_open(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    reserve(ledger, "a", 3, Limits(per_run=rounds_cost(3)))
    refused(lambda: reserve(ledger, "a", 3, Limits(per_run=rounds_cost(2))))
    ledger.begin("a", 1, NOW)
    reserve(ledger, "a", 3, Limits(per_run=rounds_cost(4) * 1.001))
    for number in (1, 2, 3):
        ledger.begin("a", number, NOW)
    refused(lambda: ledger.begin("a", 3, NOW))
    assert ledger.by_run()[0].begun == 4


def test_a_year_later_it_is_free_again(tmp_path: Path) -> None:
    limits = Limits(per_year=rounds_cost(4) * 1.001, delta=DELTA)
    ledger = Ledger(tmp_path)
    reserve(ledger, "a", 4, limits, now=NOW - 100 * DAY)
    ledger.begin("a", 1, NOW - 90 * DAY)
    ledger.begin("a", 2, NOW - 80 * DAY)
    ledger.close("a", NOW)
    second = timedelta(seconds=1)
    for after, counted in ((0 * DAY, 2), (275 * DAY, 2), (275 * DAY + second, 1), (286 * DAY, 0)):
        assert ledger.spent(NOW + after, DELTA) == pytest.approx(rounds_cost(counted))
    assert ledger.spent(NOW, DELTA, window=85 * DAY) == pytest.approx(rounds_cost(1))
    assert ledger.by_run()[0].epsilon == pytest.approx(rounds_cost(2))
    refused(lambda: reserve(ledger, "b", 3, limits, now=NOW + 274 * DAY))
    reserve(ledger, "b", 3, limits, now=NOW + 276 * DAY)
    refused(lambda: reserve(ledger, "c", 1, limits, now=NOW + 276 * DAY))
    reserve(ledger, "c", 1, limits, now=NOW + 286 * DAY)


def test_old_reservations_do_not_let_late_rounds_slip_through(tmp_path: Path) -> None:
    """Reserved more than a year ago, so another run got the room: a late round is checked."""
    limits = Limits(per_year=rounds_cost(4) * 1.001, delta=DELTA)
    ledger = Ledger(tmp_path)
    reserve(ledger, "slow", 4, limits, now=NOW - YEAR - DAY)
    assert ledger.spent(NOW, DELTA) == 0
    reserve(ledger, "other", 4, limits)
    refused(lambda: ledger.begin("slow", 1, NOW))
    ledger.close("other", NOW)
    ledger.begin("slow", 1, NOW)
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(1))


def test_a_wrong_clock_frees_nothing(tmp_path: Path) -> None:
    limits = Limits(per_year=rounds_cost(4) * 1.001, delta=DELTA)
    ledger = Ledger(tmp_path)
    reserve(ledger, "a", 3, limits)
    ledger.begin("a", 1, NOW)
    past = NOW - 5 * YEAR
    assert ledger.spent(past, DELTA) == pytest.approx(rounds_cost(3))
    refused(lambda: reserve(ledger, "b", 2, limits, now=past))
    reserve(ledger, "b", 1, limits, now=past)
    ledger.begin("b", 1, past)
    ledger.close("b", past)
    # With the clock mended, what was written while it was wrong is not five years old.
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(4))
    assert all(run.last_at == NOW for run in ledger.by_run())
    refused(lambda: ledger.begin("b", 1, NOW, limits=limits))
    reserve(ledger, "c", 2, now=past)
    assert ledger.spent(NOW, DELTA) == pytest.approx(rounds_cost(6))


Step = tuple[str, str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "begin", "begin", "begin", "close"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 3),
        st.integers(-30, 200),
    ),
    max_size=14,
)


class Slow:
    """The rules of the ledger once more, with lists: name -> rounds, open?, time of each."""

    def __init__(self) -> None:
        self.runs: dict[str, tuple[int, bool, datetime, list[datetime]]] = {}

    def counted(self, run: str, since: datetime) -> int:
        rounds, is_open, reserved, begins = self.runs[run]
        left = max(0, rounds - len(begins)) if is_open and reserved >= since else 0
        return left + sum(time >= since for time in begins)

    def after(self, what: str, run: str, time: datetime) -> Slow:
        other = Slow()
        other.runs = dict(self.runs)
        rounds, is_open, reserved, begins = self.runs.get(run, (ROUNDS[run], False, time, []))
        if what == "reserve":
            other.runs[run] = (rounds, True, reserved if is_open else time, begins)
        elif what == "begin":
            other.runs[run] = (rounds, is_open, reserved, [*begins, time])
        elif run in self.runs:
            other.runs[run] = (rounds, False, reserved, begins)
        return other

    def within(self, run: str, now: datetime) -> bool:
        own = self.counted(run, NOW - 99 * YEAR)
        year = sum(self.counted(name, now - YEAR) for name in self.runs)
        return own <= 6 and year <= 9


ROUNDS = {"a": 2, "b": 4, "c": 5}
SIX_AND_NINE = Limits(
    per_run=rounds_cost(6) * 1.0001, per_year=rounds_cost(9) * 1.0001, delta=DELTA
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_any_history_is_as_by_the_rules(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    ledger, slow = Ledger(tmp_path_factory.mktemp("ledger"), rotate_bytes=900), Slow()
    now = latest = NOW
    for what, run, round_, days in steps:
        now = now + days * DAY
        time = max(now, latest)
        allowed = True
        if what == "close":
            ledger.close(run, now)
            changes = run in slow.runs and slow.runs[run][1]
        else:
            changes = what == "begin" or not (run in slow.runs and slow.runs[run][1])
            known = what == "reserve" or run in slow.runs
            allowed = known and slow.after(what, run, time).within(run, now)
            try:
                if what == "reserve":
                    reserve(ledger, run, ROUNDS[run], SIX_AND_NINE, now=now)
                else:
                    ledger.begin(run, round_, now)
                assert allowed
            except DerminoError as error:
                assert (error.code, allowed) == ("BUDGET_EXCEEDED", False)  # noqa: PT017
        if allowed and changes:
            slow, latest = slow.after(what, run, time), time
        year = sum(slow.counted(name, now - YEAR) for name in slow.runs)
        assert ledger.spent(now, DELTA) == pytest.approx(rounds_cost(year), rel=1e-9)


def test_values_that_make_no_plan(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for other in (
        {"per_round": Mechanism(0.0, 1.0, 1)},
        {"per_round": Mechanism(math.inf, 1.0, 1)},
        {"per_round": Mechanism(1.0, 1.5, 1)},
        {"per_round": Mechanism(1.0, 1.0, 0)},
        {"delta": 0.0},
        {"rounds": 0},
        {"run": ""},
        {"now": datetime(2026, 1, 1)},
    ):
        values = {"run": "a", "rounds": 3} | other
        with pytest.raises(ValueError, match=r"greater|less|finite|zone|character"):
            reserve(ledger, **values)
    reserve(ledger, "a", 3)
    with pytest.raises(ValueError, match="greater"):
        ledger.begin("a", 0, NOW)
    assert entries(ledger) == 1


def test_a_ledger_that_is_not_understood_is_not_used(tmp_path: Path) -> None:
    good = Ledger(tmp_path / "good")
    reserve(good, "a", 3)
    good.begin("a", 1, NOW)
    begin = [entry.record for entry in Journal(tmp_path / "good").entries()][1]
    for record in ({"event": "refund", "run": "a"}, {**begin, "new": 1}, {**begin, "run": "b"}):
        folder = tmp_path / f"bad{len(list(tmp_path.iterdir()))}"
        ledger = Ledger(folder)
        reserve(ledger, "a", 3)
        Journal(folder).append(record)
        for step in (
            ledger.spent,
            ledger.by_run,
            ledger.verify,
            lambda led=ledger: led.begin("a", 1),
        ):
            assert "Entry 2" in refused(step, "LEDGER_INVALID")
    file = tmp_path / "good" / "journal-000001.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"round":1', b'"round":2'))
    for step in (good.spent, good.by_run, good.verify, lambda: reserve(good, "b", 1)):
        assert "Line 2" in refused(step, "LEDGER_INVALID")


# Several processes, and processes that are killed.


def try_to_reserve(folder: Path, number: int, start: Any, results: Any) -> None:
    limits = Limits(per_year=rounds_cost(6) * 1.001, delta=DELTA)
    start.wait()
    try:
        reserve(Ledger(folder), f"run{number}", 2, limits)
    except DerminoError as error:
        results.put(error.code)
    else:
        results.put("reserved")


def test_two_processes_do_not_both_get_the_last_of_the_budget(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.SimpleQueue()
    processes = [
        context.Process(target=try_to_reserve, args=(tmp_path, number, start, results))
        for number in range(8)
    ]
    for process in processes:
        process.start()
    with Journal(tmp_path).transaction():  # so that all of them wait for the same moment
        start.set()
        time.sleep(0.3)
    answers = sorted(results.get() for _ in processes)
    for process in processes:
        process.join()
    assert answers == ["BUDGET_EXCEEDED"] * 5 + ["reserved"] * 3
    assert Ledger(tmp_path).spent(NOW, DELTA) == pytest.approx(rounds_cost(6))


def kill_many(folder: Path, kills: int) -> None:
    chance = random.Random(11)
    ledger = Ledger(folder)
    begun: dict[str, int] = {}
    with kill_writer.Writers("ledger", folder, 3000) as writers:
        for number in range(kills):
            run = f"run{number}"
            told = writers.write_until_killed(run, chance)
            if told:
                begun[run] = int(told[-1][1])
            ledger.verify()
            found = {known.run: known for known in ledger.by_run()}
            for name, count in begun.items():
                # One more may have been whole when its writer was killed before it was told.
                assert found[name].begun in ((count, count + 1) if name == run else (count,))
                begun[name] = found[name].begun
            told_of = [kill_writer.PER_ROUND] * sum(begun.values())
            assert ledger.spent(delta=DELTA) >= epsilon(told_of, DELTA) * (1 - 1e-12)
            ledger.close(run)
            assert ledger.spent(delta=DELTA) == pytest.approx(epsilon(told_of, DELTA))
            assert ledger.verify().interrupted is False
    assert sum(begun.values()) > kills
    assert ledger.verify().files > 2


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path / "ledger", 10)


@pytest.mark.slow
def test_a_hundred_killed_writers_lose_nothing(tmp_path: Path) -> None:
    kill_many(tmp_path / "ledger", 100)
