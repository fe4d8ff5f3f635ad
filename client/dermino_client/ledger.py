"""The privacy ledger: what this site promised and spent of its patients' privacy, and its limits.

A run reserves all its rounds before the first, so that it cannot run out in the middle, and every
round is written down before its training begins, so that no crash forgets what was given out. The
cost is that of all Gaussian mechanisms composed by Renyi differential privacy
(`dermino_core.privacy.accounting`), not the sum of their epsilons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dermino_client.journal import Entry, Journal, Verified
from dermino_core.errors import DerminoError
from dermino_core.privacy.plan import Mechanism

YEAR = timedelta(days=365)

_ROUNDING = 1e-9
"""Relative: a plan whose noise was fitted to a limit is not refused for the last digit."""


@dataclass(frozen=True)
class Limits:
    """What a site allows: epsilon of one run at the run's delta, of 365 days at `delta`.

    None is no limit.
    """

    per_run: float | None = None
    per_year: float | None = None
    delta: float = 1e-5


@dataclass(frozen=True)
class RunSpending:
    """A run as the ledger has it.

    `epsilon` is what counts against the limits, at the run's `delta`: the whole reservation of an
    open run, the rounds begun of a closed one. `epsilon_begun` is that of the rounds begun.
    """

    run: str
    strategy: str
    rounds: int
    begun: int
    is_open: bool
    delta: float
    epsilon: float
    epsilon_begun: float
    reserved_at: datetime
    last_at: datetime


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    time: AwareDatetime
    run: str = Field(min_length=1, max_length=200)


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    strategy: str
    noise_multiplier: float = Field(gt=0)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    rounds: int = Field(ge=1, le=100_000)
    delta: float = Field(gt=0, lt=1)

    @property
    def per_round(self) -> Mechanism:
        return Mechanism(self.noise_multiplier, self.sampling_rate, self.steps)


class _Reserve(_Event):
    """All rounds of a run; again for the same run: with new limits, or after it was closed."""

    event: Literal["reserve"] = "reserve"
    plan: _Plan
    limits: Limits


class _Begin(_Event):
    event: Literal["begin"] = "begin"
    round: int = Field(ge=1)


class _Close(_Event):
    event: Literal["close"] = "close"


_EVENT: TypeAdapter[_Reserve | _Begin | _Close] = TypeAdapter(
    Annotated[_Reserve | _Begin | _Close, Field(discriminator="event")]
)


@dataclass
class _Run:
    reserve: _Reserve
    last_at: datetime
    begins: list[datetime] = field(default_factory=list)
    is_open: bool = True

    def counted(self) -> list[datetime]:
        """When each round that counts was begun or, where it may still begin, reserved."""
        rest = self.reserve.plan.rounds - len(self.begins) if self.is_open else 0
        return self.begins + [self.reserve.time] * rest


class _State:
    """The ledger replayed: every run, and the time of the latest event."""

    def __init__(self) -> None:
        self.runs: dict[str, _Run] = {}
        self.latest = datetime.min.replace(tzinfo=UTC)

    def take(self, event: _Reserve | _Begin | _Close) -> None:
        """Let an event have happened. Raises KeyError for a run that reserved nothing."""
        if isinstance(event, _Reserve):
            run = self.runs.setdefault(event.run, _Run(event, event.time))
            run.reserve, run.is_open = event, True
        else:
            run = self.runs[event.run]
            if isinstance(event, _Begin):
                run.begins.append(event.time)
            else:
                run.is_open = False
        run.last_at = event.time
        self.latest = max(self.latest, event.time)

    def epsilon_since(self, start: datetime, delta: float) -> float:
        """What everything from `start` on costs. A time in the future is after `start` as well."""
        return _epsilon(
            (
                run.reserve.plan.per_round
                for run in self.runs.values()
                for time in run.counted()
                if time >= start
            ),
            delta,
        )


class Ledger:
    """The privacy ledger of a site, in a folder of its own; many processes may use it at once.

    Every method replays the journal under its lock and raises `LEDGER_INVALID` if it is damaged;
    those that write raise `JOURNAL_UNWRITABLE` if they cannot. Times are aware of their zone; by
    default now. An event is never dated before one that is already there, so that a clock that
    jumps back does not let it expire early.
    """

    def __init__(self, folder: Path, *, rotate_bytes: int = 8 * 2**20) -> None:
        self._journal = Journal(folder, rotate_bytes=rotate_bytes, invalid="LEDGER_INVALID")

    @property
    def folder(self) -> Path:
        """Where the ledger is."""
        return self._journal.folder

    def reserve(
        self,
        run: str,
        strategy: str,
        per_round: Mechanism,
        rounds: int,
        delta: float,
        limits: Limits,
        now: datetime | None = None,
    ) -> None:
        """Set aside what all rounds of a run cost. Again with the same plan: counts once.

        After :meth:`close` the same plan opens the run again, as far as the limits still allow.

        Raises
        ------
        DerminoError
            `BUDGET_EXCEEDED` if a limit would be passed or the run reserved another plan; nothing
            is written then.
        ValueError
            For a mechanism without noise, or other values that make no plan.
        """
        plan = _Plan(
            strategy=strategy,
            noise_multiplier=per_round.noise_multiplier,
            sampling_rate=per_round.sampling_rate,
            steps=per_round.steps,
            rounds=rounds,
            delta=delta,
        )
        now = _aware(now)
        with self._journal.transaction() as transaction:
            state = self._replay(transaction.entries())
            known = state.runs.get(run)
            if known is not None and known.reserve.plan != plan:
                raise DerminoError(
                    "BUDGET_EXCEEDED",
                    f"The run {run} reserved another plan before: {_words(known.reserve.plan)}; "
                    f"now it asks for {_words(plan)}.",
                    where=self.folder,
                    fix="A run keeps its plan to the end, and a site its training images. Ask the "
                    "coordinator to start a new run.",
                )
            event = _Reserve(time=max(now, state.latest), run=run, plan=plan, limits=limits)
            is_new = known is None or not known.is_open or known.reserve.limits != limits
            if is_new:
                state.take(event)
            self._check(state, run, limits, now)
            if is_new:
                transaction.append(event.model_dump(mode="json"))

    def begin(
        self,
        run: str,
        round_: int,
        now: datetime | None = None,
        *,
        limits: Limits | None = None,
    ) -> None:
        """Write down that a round begins; when this returns, training may.

        Every call counts, also for a round begun before: its noise is new, so a second answer is a
        second release. As many as the run reserved are set aside; those beyond must fit into
        `limits`, by default those that the run was last reserved with.

        Raises
        ------
        DerminoError
            `BUDGET_EXCEEDED` if a limit would be passed or the run reserved nothing; nothing is
            written then.
        """
        now = _aware(now)
        with self._journal.transaction() as transaction:
            state = self._replay(transaction.entries())
            if run not in state.runs:
                raise DerminoError(
                    "BUDGET_EXCEEDED",
                    f"The run {run} reserved no privacy budget at this site.",
                    where=self.folder,
                    fix="Reserve its rounds before the first of them begins.",
                )
            event = _Begin(time=max(now, state.latest), run=run, round=round_)
            state.take(event)
            self._check(state, run, limits or state.runs[run].reserve.limits, now)
            transaction.append(event.model_dump(mode="json"))

    def close(self, run: str, now: datetime | None = None) -> None:
        """Release the rounds that never began. A run that is closed or unknown stays as it is."""
        now = _aware(now)
        with self._journal.transaction() as transaction:
            state = self._replay(transaction.entries())
            if run in state.runs and state.runs[run].is_open:
                event = _Close(time=max(now, state.latest), run=run)
                transaction.append(event.model_dump(mode="json"))

    def spent(
        self, now: datetime | None = None, delta: float = 1e-5, window: timedelta = YEAR
    ) -> float:
        """Epsilon at `delta` of all rounds begun or reserved within `window` before `now`.

        What is dated after `now` counts as well: a wrong clock frees nothing.
        """
        state = self._replay(self._journal.entries())
        return state.epsilon_since(_aware(now) - window, delta)

    def by_run(self) -> list[RunSpending]:
        """What each run reserved, began and cost, in the order of their first reservations."""
        state = self._replay(self._journal.entries())
        return [
            RunSpending(
                run=name,
                strategy=run.reserve.plan.strategy,
                rounds=run.reserve.plan.rounds,
                begun=len(run.begins),
                is_open=run.is_open,
                delta=run.reserve.plan.delta,
                epsilon=_epsilon_of(run, len(run.counted())),
                epsilon_begun=_epsilon_of(run, len(run.begins)),
                reserved_at=run.reserve.time,
                last_at=run.last_at,
            )
            for name, run in state.runs.items()
        ]

    def verify(self) -> Verified:
        """Check every line and that the events make sense together. Raises `LEDGER_INVALID`."""
        verified = self._journal.verify()
        self._replay(self._journal.entries())
        return verified

    def _replay(self, entries: Iterable[Entry]) -> _State:
        state = _State()
        for entry in entries:
            try:
                state.take(_EVENT.validate_python(entry.record))
            except (ValidationError, KeyError):
                # Not to be skipped: what is not understood might be budget that was spent.
                raise DerminoError(
                    "LEDGER_INVALID",
                    f"Entry {entry.seq} of the privacy ledger is not an event that this version "
                    "of dermino knows.",
                    where=self.folder,
                    fix="If a newer dermino wrote it, use that version. Otherwise put the whole "
                    "folder back from a backup.",
                ) from None
        return state

    def _check(self, state: _State, run: str, limits: Limits, now: datetime) -> None:
        own = state.runs[run]
        if limits.per_run is not None:
            cost = _epsilon_of(own, len(own.counted()))
            if not cost <= limits.per_run * (1 + _ROUNDING):
                raise DerminoError(
                    "BUDGET_EXCEEDED",
                    f"The run {run} would cost epsilon {cost:.6g} at delta "
                    f"{own.reserve.plan.delta:g} ({len(own.counted())} rounds); this site allows "
                    f"{limits.per_run:g} a run.",
                    where=self.folder,
                    fix="Ask the coordinator for a smaller epsilon or fewer rounds, or raise "
                    "epsilon_per_run in [policy] of the site file.",
                )
        if limits.per_year is not None:
            total = state.epsilon_since(now - YEAR, limits.delta)
            if not total <= limits.per_year * (1 + _ROUNDING):
                raise DerminoError(
                    "BUDGET_EXCEEDED",
                    f"With the run {run}, {YEAR.days} days would cost epsilon {total:.6g} at delta "
                    f"{limits.delta:g}; this site allows {limits.per_year:g}.",
                    where=self.folder,
                    fix="See what was spent and reserved with: dermino-client budget --site NAME. "
                    "Wait, ask the coordinator for a smaller epsilon, or raise epsilon_per_year "
                    "in [policy] of the site file.",
                )


def _epsilon_of(run: _Run, rounds: int) -> float:
    return _epsilon([run.reserve.plan.per_round] * rounds, run.reserve.plan.delta)


def _epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon of all of them composed; equal ones are taken together as steps of one."""
    from dermino_core.privacy.accounting import epsilon

    counts = Counter(mechanisms)
    together = [
        Mechanism(m.noise_multiplier, m.sampling_rate, m.steps * n) for m, n in counts.items()
    ]
    return epsilon(together, delta) if together else 0.0


def _aware(now: datetime | None) -> datetime:
    if now is None:
        return datetime.now(UTC)
    if now.tzinfo is None:
        raise ValueError("the time must know its zone, for example datetime.now(UTC)")
    return now.astimezone(UTC)


def _words(plan: _Plan) -> str:
    return (
        f"{plan.strategy}, {plan.rounds} rounds of {plan.steps} steps, noise "
        f"{plan.noise_multiplier:g}, sampling rate {plan.sampling_rate:g}, delta {plan.delta:g}"
    )
