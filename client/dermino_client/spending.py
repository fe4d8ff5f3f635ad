"""A run's privacy cost, written into the site's ledger before anything is trained."""

from __future__ import annotations

from datetime import UTC, datetime

from dermino_client.hospital import Hospital
from dermino_core.privacy.accounting import epsilon
from dermino_core.privacy.plan import Mechanism, PrivacyPlan
from dermino_core.privacy.units import meaningful
from dermino_core.results import SitePrivacy
from dermino_strategies.protocol import Task


def reserve(hospital: Hospital, task: Task, plan: PrivacyPlan) -> SitePrivacy:
    """Reserve the whole run in the ledger; the same run may ask again in every round.

    Raises
    ------
    DerminoError
        `BUDGET_EXCEEDED` if this run or this year would cost more than the site's policy allows.
    """
    request = plan.request
    hospital.ledger.reserve(
        run=task.run_id,
        strategy=task.strategy,
        per_round=plan.per_round,
        rounds=plan.rounds,
        delta=request.delta,
        limits=hospital.limits,
        now=datetime.now(UTC),
    )
    one = plan.per_round
    whole = Mechanism(one.noise_multiplier, one.sampling_rate, one.steps * plan.rounds)
    cost = epsilon([whole], request.delta)
    numbers = len(task.classes) * (task.width + 1)
    return SitePrivacy(
        epsilon=cost,
        delta=request.delta,
        unit=request.unit,
        units=plan.units,
        noise_multiplier=one.noise_multiplier,
        warning=meaningful(cost, request.delta, plan.units, numbers=numbers),
    )


def begin(hospital: Hospital, task: Task, round_: int) -> None:
    """Write that a round's noise is about to be spent: from here on it counts.

    Raises
    ------
    DerminoError
        `BUDGET_EXCEEDED` if this round was answered before and once more is too much.
    """
    hospital.ledger.begin(task.run_id, round_, limits=hospital.limits, now=datetime.now(UTC))


def settle(hospital: Hospital, task: Task) -> None:
    """The run is at its end: give back what it reserved and did not use."""
    if task.privacy is not None:
        hospital.ledger.close(task.run_id)
