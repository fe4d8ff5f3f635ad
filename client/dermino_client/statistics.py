"""What this site tells of its training images with the first round, if its policy lets it."""

from __future__ import annotations

import time
from datetime import datetime

import numpy as np
from flwr.app import RecordDict

from dermino_client.admission import admit
from dermino_client.desk import Answer, Work
from dermino_client.hospital import Hospital
from dermino_client.work import check_task
from dermino_core.errors import DerminoError
from dermino_core.site_statistics import images_per_group, summarise_features, told_counts
from dermino_strategies.base import Arrays
from dermino_strategies.protocol import StatisticsReply, StatisticsRequest, pack, unpack


def _admit(content: RecordDict, hospital: Hospital, now: datetime) -> StatisticsRequest:
    request = unpack(content, StatisticsRequest)
    if request.task.privacy or request.task.secure_aggregation:
        raise DerminoError(
            "REQUEST_MISMATCH",
            "The run promises privacy or secure aggregation and asks for statistics, which have "
            "neither noise nor mask.",
        )
    admit(hospital, request.task, content, now)
    if not hospital.policy.share_statistics:
        raise DerminoError(
            "POLICY_REFUSED",
            "share_statistics: this site tells no statistics of its images.",
            where="[policy] of the site file",
            fix="Nothing, if the policy is meant so: the run goes on without them.",
        )
    return request


def _answer(request: StatisticsRequest, content: RecordDict, hospital: Hospital) -> Answer:
    reply, groups = site_statistics(hospital, request)
    return Answer(pack(reply, groups))


def site_statistics(
    hospital: Hospital, request: StatisticsRequest
) -> tuple[StatisticsReply, dict[str, Arrays]]:
    """Counts, and the arrays `features/mean`, `features/variance` and `classes/means`.

    Of all training images with a label of the task, and of no test image.

    Raises
    ------
    DerminoError
        `POLICY_REFUSED` if there are fewer images than the smallest count that may be told; and
        what does not fit the task.
    """
    start = time.perf_counter()
    site = hospital.prepared
    check_task(site, request.task)
    minimum = max(request.min_count, hospital.policy.min_count)
    features, labels, groups = site.half("train")
    if len(labels) < minimum:
        raise DerminoError(
            "POLICY_REFUSED",
            f"min_count: this site has {len(labels)} training images, and tells of no fewer than "
            f"{minimum}.",
            where="[policy] of the site file",
        )
    counts = np.bincount(labels, minlength=len(site.classes))
    told = told_counts(dict(zip(site.classes, map(int, counts), strict=True)), minimum)
    summary = summarise_features(features, labels, groups, len(site.classes), minimum)
    arrays: dict[str, Arrays] = {}
    if summary is not None:
        arrays["features"] = {"mean": summary.mean, "variance": summary.variance}
        if summary.class_means is not None:
            arrays["classes"] = {"means": summary.class_means}
    reply = StatisticsReply(
        classes=site.classes,
        min_count=minimum,
        images=len(labels),
        class_counts=told.counts,
        few=list(told.few),
        images_per_group=images_per_group(groups),
        seconds=time.perf_counter() - start,
        design_effect=summary.design_effect if summary else None,
        effective_features=summary.effective_features if summary else None,
    )
    return reply, arrays


STATISTICS = Work(_admit, _answer)
