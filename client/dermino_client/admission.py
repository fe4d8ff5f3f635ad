"""From a request to the plain facts that the site's policy looks at."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from flwr.app import RecordDict

from dermino_client.hospital import Hospital
from dermino_client.policy import RequestFacts, check_policy
from dermino_core.errors import DerminoError
from dermino_strategies.protocol import Task, Totals, largest_model


def admit(
    hospital: Hospital,
    task: Task,
    content: RecordDict,
    now: datetime,
    *,
    round_: int = 1,
    other_sites: int | None = None,
    totals: Totals | None = None,
) -> None:
    """Hold a request to the site's policy.

    Parameters
    ----------
    round_
        Of the request; the final evaluation comes after the last one.
    other_sites
        Of secure aggregation, as the request tells.
    totals
        Of the request; before there are any, the task says how many sites will be in them.

    Raises
    ------
    DerminoError
        `POLICY_REFUSED` or `OUTSIDE_HOURS`; `REQUEST_INVALID` for a round that the task does not
        have, so that the policy's limit on rounds means something; `DATA_CHANGED` if the site is
        not prepared.
    """
    if round_ > task.rounds + 1:
        raise DerminoError(
            "REQUEST_INVALID", f"Round {round_} of a task that has {task.rounds} rounds."
        )
    site = hospital.prepared
    _, labels, _ = site.half("train")
    counts = np.bincount(labels, minlength=len(site.classes))
    facts = RequestFacts(
        task=task.name,
        classes=tuple(site.classes),
        strategy=task.strategy,
        rounds=task.rounds,
        model_bytes=largest_model(content),
        images_per_class=dict(zip(site.classes, map(int, counts), strict=True)),
        privacy=task.privacy,
        secure_aggregation=task.secure_aggregation,
        other_sites=other_sites,
        personal=task.personal,
        personal_others=_others_in_totals(task, totals),
    )
    check_policy(hospital.policy, facts, now)


def _others_in_totals(task: Task, totals: Totals | None) -> int | None:
    if totals is not None:
        return totals.sites - totals.with_yours
    return None if task.fewest_sites is None else task.fewest_sites - 1
