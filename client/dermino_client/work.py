"""What a site does when it is asked: check the request, train, evaluate. No transport here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dermino_client.hospital import Hospital
from dermino_client.prepare import PreparedSite
from dermino_client.spending import begin, reserve
from dermino_client.tuned import site_images, tuned_view
from dermino_core.errors import DerminoError
from dermino_core.heads import LinearHead, fit_converged
from dermino_core.metrics import evaluate, macro_auroc, macro_f1, paired_difference
from dermino_core.results import Difference, Evaluation, SitePrivacy
from dermino_strategies.base import (
    Arrays,
    Private,
    SiteData,
    SiteUpdate,
    Strategy,
    Tuning,
    check_arrays,
)
from dermino_strategies.protocol import (
    PROTOCOL_VERSION,
    CrossEvaluation,
    EvaluateReply,
    EvaluateRequest,
    Task,
    TrainReply,
    TrainRequest,
)
from dermino_strategies.registry import get_strategy

if TYPE_CHECKING:
    from dermino_client.personal_work import PersonalPart

CONVERGED_PENALTY = 0.1
"""L2 penalty of the heads trained to convergence, on standardised features. Fixed, so that no
test image takes part in choosing it."""


def check_task(site: PreparedSite, task: Task) -> Strategy:
    """The strategy a request asks for, if the request fits this site.

    Raises
    ------
    DerminoError
        `REQUEST_MISMATCH`, `BACKBONE_MISMATCH` or `CONFIG_INVALID`.
    """
    if task.protocol != PROTOCOL_VERSION:
        raise DerminoError(
            "REQUEST_MISMATCH",
            f"The coordinator speaks protocol {task.protocol}, this site {PROTOCOL_VERSION}.",
            fix="Use the same version of dermino on both sides.",
        )
    if task.name != site.task or task.classes != site.classes:
        raise DerminoError(
            "REQUEST_MISMATCH",
            f"The run is about {task.name} {task.classes}, this site about {site.task} "
            f"{site.classes}.",
            fix="Agree on the task and the order of its classes ([site] task or classes).",
        )
    if task.backbone_fingerprint != site.backbone_fingerprint or task.width != site.width:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            f"The run uses the backbone {task.backbone_fingerprint[:12]}, this site "
            f"{site.backbone_fingerprint[:12]}.",
            fix="Point [backbone] name at the file the coordinator uses; its fingerprint must "
            "be the same at every site.",
        )
    return get_strategy(task.strategy, task.settings)


def expected_arrays(site: PreparedSite, task: Task) -> Arrays:
    """Arrays with the names, shapes and types that a request for this task must carry.

    Raises
    ------
    DerminoError
        As :func:`check_task`.
    """
    return _expected(check_task(site, task), task)


def _expected(strategy: Strategy, task: Task) -> Arrays:
    return strategy.for_sites(strategy.initial_arrays(len(task.classes), task.width, task.seed))


def site_data(site: PreparedSite, split: str) -> SiteData:
    """What a strategy's site half may look at of the half `train` or `test`."""
    features, labels, groups = site.half(split)
    return SiteData(site.name, features, labels, len(site.classes), groups=tuple(groups))


def train(
    hospital: Hospital, request: TrainRequest, arrays: Arrays
) -> tuple[TrainReply, SiteUpdate, Arrays | None]:
    """One round: evaluate the arrays as they came, then the strategy's site half.

    Returns the reply, the update, and the weight and bias of the head that this site trains alone
    when the coordinator asked for it.

    Raises
    ------
    DerminoError
        As :func:`check_task`; `BUDGET_EXCEEDED` before anything is trained.
    """
    start = time.perf_counter()
    site, task = hospital.prepared, request.task
    strategy = check_task(site, task)
    _check_arrays(strategy, task, arrays)
    before = _scores_before(site, strategy, arrays)
    update, privacy = site_update(hospital, strategy, task, arrays, request.round)
    shared = request.send_local_head and hospital.policy.share_local_head and not task.privacy
    shared = shared and not task.tunes_backbone
    local = strategy.head(train_alone(site, strategy, task)).arrays() if shared else None
    reply = TrainReply(
        classes=site.classes,
        precision=site.precision,
        images_total=site.images_total,
        images_used=site.images_used,
        seconds=time.perf_counter() - start,
        auroc_before=before[0],
        f1_before=before[1],
        privacy=privacy,
    )
    return reply, update, local


def _scores_before(
    site: PreparedSite, strategy: Strategy, arrays: Arrays
) -> tuple[float | None, float | None]:
    """AUROC and F1 of the arrays as they came; not where that takes embedding the test half."""
    if isinstance(strategy, Tuning):
        return None, None
    features, labels, _ = site.half("test")
    probabilities = strategy.head(arrays).probabilities(features)
    f1 = macro_f1(labels, probabilities.argmax(axis=1), len(site.classes))[0]
    return _defined(macro_auroc(labels, probabilities)[0]), _defined(f1)


def site_update(
    hospital: Hospital, strategy: Strategy, task: Task, arrays: Arrays, round_: int
) -> tuple[SiteUpdate, SitePrivacy | None]:
    """The strategy's site half, under the privacy that the task asks for, and what it cost."""
    data = site_data(hospital.prepared, "train")
    if isinstance(strategy, Tuning):
        data = replace(data, images=site_images(hospital.prepared, "train"))
    if task.privacy is None:
        return strategy.site_update(data, arrays, round_, task.seed), None
    if not isinstance(strategy, Private):
        raise DerminoError("REQUEST_MISMATCH", f"{strategy.name} cannot hold to a privacy budget.")
    plan = strategy.privacy_plan(data, task.privacy, task.rounds)
    cost = reserve(hospital, task, plan)
    begin(hospital, task, round_)
    return strategy.private_site_update(data, arrays, round_, plan), cost


def train_alone(site: PreparedSite, strategy: Strategy, task: Task) -> Arrays:
    """The baseline: the same method, schedule and seed in a federation of this site only."""
    return train_alone_on(site_data(site, "train"), strategy, task)


def train_alone_on(data: SiteData, strategy: Strategy, task: Task) -> Arrays:
    """As :func:`train_alone`, on any data: all sites' pooled data gives the other baseline."""
    arrays = strategy.initial_arrays(data.n_classes, data.features.shape[1], task.seed)
    for round_ in range(1, task.rounds + 1):
        update = strategy.site_update(data, arrays, round_, task.seed)
        arrays = strategy.aggregate(arrays, {data.site: update})
    return arrays


def converged_head(site: PreparedSite) -> LinearHead:
    """What this site's own training images give without an early stop."""
    features, labels, _ = site.half("train")
    return fit_converged(features, labels, len(site.classes), penalty=CONVERGED_PENALTY)


def evaluate_heads(
    site: PreparedSite,
    request: EvaluateRequest,
    arrays: Arrays,
    heads: dict[str, Arrays],
    own: PersonalPart | None = None,
) -> EvaluateReply:
    """Final evaluation on this site's test half: all of it, for this site's own eyes.

    Parameters
    ----------
    arrays
        The federated model.
    heads
        Site name -> weight and bias that site trained alone, for the cross-site matrix.
    own
        The site's personal model and its joining curve, in a run that makes them.
    """
    start = time.perf_counter()
    strategy = check_task(site, request.task)
    _check_arrays(strategy, request.task, arrays)
    _, train_labels, _ = site.half("train")
    features, labels, _ = site.half("test")
    named, seen = {"global": strategy.head(arrays)}, site
    if isinstance(strategy, Tuning):
        seen = tuned_view(site, strategy, arrays)
    else:
        named["local"] = strategy.head(train_alone(site, strategy, request.task))
    named["local_converged"] = converged_head(site)
    if own is not None:
        named["personal"] = own.model.head
    cross = {}
    for name in request.heads:
        probabilities = LinearHead.from_arrays(heads[name]).probabilities(features)
        cross[name] = CrossEvaluation(
            auroc=_defined(macro_auroc(labels, probabilities)[0]),
            f1=_defined(macro_f1(labels, probabilities.argmax(axis=1), len(site.classes))[0]),
        )
    counts = np.bincount(train_labels, minlength=len(site.classes))
    evaluations = {
        key: evaluate_head(seen if key == "global" else site, head, request.task)
        for key, head in named.items()
    }
    federated = named["global"]
    differences = {
        key: compare_heads(site, federated, named[key], request.task, seen=seen)
        for key in named
        if key != "global"
    }
    return EvaluateReply(
        classes=site.classes,
        precision=site.precision,
        images_total=site.images_total,
        images_used=site.images_used,
        seconds=time.perf_counter() - start + (own.seconds if own else 0.0),
        unreadable=site.unreadable,
        n_train=len(train_labels),
        n_test=len(labels),
        train_class_counts=dict(zip(site.classes, map(int, counts), strict=True)),
        evaluations=evaluations,
        global_minus=differences,
        cross=cross,
        joining=own.joining if own else None,
    )


def for_coordinator(reply: EvaluateReply, task: Task) -> EvaluateReply:
    """The part of an evaluation that leaves the building."""
    kept = set(task.models)
    return reply.model_copy(
        update={
            "evaluations": {k: v for k, v in reply.evaluations.items() if k in kept},
            "global_minus": {k: v for k, v in reply.global_minus.items() if k in kept},
            "joining": reply.joining if task.tells_joining else None,
        }
    )


def evaluate_head(site: PreparedSite, head: LinearHead, task: Task) -> Evaluation:
    """One head on this site's test half."""
    features, labels, groups = site.half("test")
    return evaluate(
        labels,
        head.probabilities(features),
        site.classes,
        groups=groups,
        replicates=task.replicates,
        seed=task.seed,
    )


def compare_heads(
    site: PreparedSite,
    first: LinearHead,
    second: LinearHead,
    task: Task,
    *,
    seen: PreparedSite | None = None,
) -> Difference:
    """`first` minus `second` on this site's test half, paired.

    `seen` is the site as `first` sees it, where that reads features of another backbone.
    """
    features, labels, groups = site.half("test")
    features_of_first = (seen or site).half("test")[0]
    return paired_difference(
        labels,
        first.probabilities(features_of_first),
        second.probabilities(features),
        groups=groups,
        replicates=task.replicates,
        seed=task.seed,
    )


def _check_arrays(strategy: Strategy, task: Task, arrays: Arrays) -> None:
    """A coordinator may be wrong too: its arrays get the checks that a site's update gets."""
    try:
        check_arrays(_expected(strategy, task), arrays)
    except ValueError as error:
        raise DerminoError(
            "REQUEST_INVALID", f"The coordinator's arrays are not usable: {error}."
        ) from None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
