"""What a site does in a run that learns to outline lesions: admit, train, score."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from flwr.app import RecordDict

from dermino_client.desk import Answer, Work
from dermino_client.hospital import Hospital
from dermino_client.policy import RequestFacts, check_policy
from dermino_client.segmentation_prepare import PreparedMasks
from dermino_core.errors import DerminoError
from dermino_core.files import write_atomically
from dermino_core.segmentation_results import Overlap
from dermino_strategies.base import Arrays
from dermino_strategies.protocol import (
    PROTOCOL_VERSION,
    largest_model,
    pack,
    read_arrays,
    unpack,
)
from dermino_strategies.segmentation import (
    Scores,
    check_head,
    initial_arrays,
    overlap,
    require_head_fits,
    scores_of,
    site_update,
    train_alone,
)
from dermino_strategies.segmentation_messages import (
    TASK_NAME,
    SegmentationEvaluateReply,
    SegmentationEvaluateRequest,
    SegmentationTask,
    SegmentationTrainReply,
    SegmentationTrainRequest,
)


def check_segmentation(site: PreparedMasks, task: SegmentationTask) -> None:
    """Refuse a task that does not fit this site.

    Raises
    ------
    DerminoError
        `REQUEST_MISMATCH` or `BACKBONE_MISMATCH`.
    """
    if task.protocol != PROTOCOL_VERSION:
        raise DerminoError(
            "REQUEST_MISMATCH",
            f"The coordinator speaks protocol {task.protocol}, this site {PROTOCOL_VERSION}.",
            fix="Use the same version of dermino on both sides.",
        )
    if task.method.image_size != site.image_size:
        raise DerminoError(
            "REQUEST_MISMATCH",
            f"The run looks at images of {task.method.image_size} pixels a side, this site has "
            f"prepared {site.image_size}.",
            fix="Agree on image_size in [segmentation] of the site file.",
        )
    if task.backbone_fingerprint != site.card.fingerprint or task.width != site.card.width:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            f"The run uses the backbone {task.backbone_fingerprint[:12]}, this site "
            f"{site.card.fingerprint[:12]}.",
            fix="Point [backbone] name at the file the coordinator uses.",
        )
    require_head_fits(site.depths, task.method)


def _admit(
    hospital: Hospital,
    task: SegmentationTask,
    content: RecordDict,
    now: datetime,
    round_: int,
) -> None:
    if round_ > task.rounds + 1:
        raise DerminoError(
            "REQUEST_INVALID", f"Round {round_} of a task that has {task.rounds} rounds."
        )
    facts = RequestFacts(
        task=TASK_NAME,
        classes=("lesion",),
        strategy="fedavg",
        rounds=task.rounds,
        model_bytes=largest_model(content),
        images_per_class={"lesion": len(hospital.masks.train)},
    )
    check_policy(hospital.policy, facts, now)


def _admit_training(
    content: RecordDict, hospital: Hospital, now: datetime
) -> SegmentationTrainRequest:
    request = unpack(content, SegmentationTrainRequest)
    _admit(hospital, request.task, content, now, request.round)
    return request


def _train(request: SegmentationTrainRequest, content: RecordDict, hospital: Hospital) -> Answer:
    start = time.perf_counter()
    site, task = hospital.masks, request.task
    arrays = _arrays(content, site, task)
    scores = _scores(site, task, arrays)
    update = site_update(
        site.train,
        task.method,
        arrays,
        width=task.width,
        round_=request.round,
        rounds=task.rounds,
        seed=task.seed,
    )
    reply = SegmentationTrainReply(
        precision=site.precision,
        n_train=update.examples,
        train_loss=update.metrics["train-loss"],
        dice_before=float(scores[:, 0].mean()),
        seconds=time.perf_counter() - start,
    )
    return Answer(pack(reply, {"arrays": update.arrays}))


def _admit_evaluation(
    content: RecordDict, hospital: Hospital, now: datetime
) -> SegmentationEvaluateRequest:
    request = unpack(content, SegmentationEvaluateRequest)
    _admit(hospital, request.task, content, now, request.task.rounds + 1)
    return request


def _evaluate(
    request: SegmentationEvaluateRequest, content: RecordDict, hospital: Hospital
) -> Answer:
    start = time.perf_counter()
    site, task = hospital.masks, request.task
    federated = _scores(site, task, _arrays(content, site, task))
    alone = _scores(site, task, train_site_alone(site, task))
    summary = _summary(site, task)
    reply = SegmentationEvaluateReply(
        precision=site.precision,
        n_train=len(site.train),
        n_test=len(site.test),
        units_test=len(set(site.units)),
        views=site.views,
        left_out=site.left_out,
        scores={"global": summary(federated), "local": summary(alone)},
        global_minus={"local": summary(federated - alone)},
        seconds=time.perf_counter() - start,
    )
    _keep(hospital, task, reply)
    return Answer(pack(reply))


def train_site_alone(site: PreparedMasks, task: SegmentationTask) -> Arrays:
    """The head of a federation of this site only."""
    return train_alone(
        site.train, task.method, width=task.width, rounds=task.rounds, seed=task.seed
    )


def _scores(site: PreparedMasks, task: SegmentationTask, arrays: Arrays) -> Scores:
    return scores_of(site.test, task.method, arrays, width=task.width)


def _summary(site: PreparedMasks, task: SegmentationTask) -> Callable[[Scores], Overlap]:
    return lambda scores: overlap(scores, site.units, replicates=task.replicates, seed=task.seed)


def _arrays(content: RecordDict, site: PreparedMasks, task: SegmentationTask) -> Arrays:
    """The head that the coordinator sent, held to the names, shapes and types of such a head."""
    check_segmentation(site, task)
    try:
        arrays = read_arrays(
            content, "arrays", like := initial_arrays(task.method, task.width, task.seed)
        )
        check_head(like, arrays)
    except ValueError as error:
        raise DerminoError(
            "REQUEST_INVALID", f"The coordinator's arrays are not usable: {error}."
        ) from None
    return arrays


def _keep(hospital: Hospital, task: SegmentationTask, reply: SegmentationEvaluateReply) -> None:
    """`results/RUN.json` in the site's folder: what the run gave this hospital."""
    file = hospital.folder / "results" / f"{task.run_id}.json"
    try:
        write_atomically(file, reply.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise DerminoError(
            "JOURNAL_UNWRITABLE",
            f"This site's own results cannot be written: {error.strerror}.",
            where=file,
            fix="Nothing was sent. Check the disk and who owns the folder.",
        ) from error


TRAIN_SEGMENTATION = Work(_admit_training, _train)
EVALUATE_SEGMENTATION = Work(_admit_evaluation, _evaluate)
