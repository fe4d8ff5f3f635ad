"""From a request to the plain facts that the site's policy looks at."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from flwr.app import RecordDict

from dermino_client.hospital import Hospital
from dermino_client.policy import RequestFacts, check_policy
from dermino_strategies.protocol import Task


def admit(
    hospital: Hospital,
    task: Task,
    content: RecordDict,
    now: datetime,
    *,
    other_sites: int | None = None,
) -> None:
    """Hold a request to the site's policy.

    Parameters
    ----------
    other_sites
        Of secure aggregation, as the request tells.

    Raises
    ------
    DerminoError
        `POLICY_REFUSED` or `OUTSIDE_HOURS`; `DATA_CHANGED` if the site is not prepared.
    """
    site = hospital.prepared
    _, labels, _ = site.half("train")
    counts = np.bincount(labels, minlength=len(site.classes))
    sizes = [sum(len(a.data) for a in r.values()) for r in content.array_records.values()]
    facts = RequestFacts(
        task=task.name,
        classes=tuple(site.classes),
        strategy=task.strategy,
        rounds=task.rounds,
        model_bytes=max(sizes, default=0),
        images_per_class=dict(zip(site.classes, map(int, counts), strict=True)),
        privacy=task.privacy,
        secure_aggregation=task.secure_aggregation,
        other_sites=other_sites,
    )
    check_policy(hospital.policy, facts, now)
