"""The Flower ClientApp of a hospital: which message is answered by which work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from dermino_client.admission import admit
from dermino_client.desk import Answer, Work, attend, refusal
from dermino_client.hospital import Hospital, hospital_of
from dermino_client.own_results import keep_evaluation
from dermino_client.personal_work import personal_part, read_personal
from dermino_client.secure_work import SECURE
from dermino_client.segmentation_work import EVALUATE_SEGMENTATION, TRAIN_SEGMENTATION
from dermino_client.site import read_site
from dermino_client.spending import settle
from dermino_client.statistics import STATISTICS
from dermino_client.work import evaluate_heads, expected_arrays, for_coordinator, train
from dermino_core.errors import DerminoError
from dermino_core.heads import LinearHead
from dermino_strategies.base import Arrays
from dermino_strategies.protocol import (
    EvaluateRequest,
    NameRequest,
    SiteName,
    Task,
    TrainRequest,
    named_heads,
    pack,
    pack_update,
    read_arrays,
    refuse,
    unpack,
)

log = logging.getLogger("dermino.client")

SITE_FILE_KEY = "site-file"
"""Key of the node configuration that holds the path of the site file."""


def make_client_app(load: Callable[[Context], Hospital]) -> ClientApp:
    """A ClientApp that answers for the site that `load` finds for a context."""
    client_app = ClientApp()

    @client_app.train()
    def _train(message: Message, context: Context) -> Message:
        return _answer(message, context, load, TRAIN)

    @client_app.train("secure")
    def _secure(message: Message, context: Context) -> Message:
        return _answer(message, context, load, SECURE)

    @client_app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return _answer(message, context, load, EVALUATE)

    @client_app.train("segmentation")
    def _train_segmentation(message: Message, context: Context) -> Message:
        return _answer(message, context, load, TRAIN_SEGMENTATION)

    @client_app.evaluate("segmentation")
    def _evaluate_segmentation(message: Message, context: Context) -> Message:
        return _answer(message, context, load, EVALUATE_SEGMENTATION)

    @client_app.query()
    def _query(message: Message, context: Context) -> Message:
        return _answer(message, context, load, NAME)

    @client_app.query("statistics")
    def _query_statistics(message: Message, context: Context) -> Message:
        return _answer(message, context, load, STATISTICS)

    return client_app


def _answer(
    message: Message, context: Context, load: Callable[[Context], Hospital], work: Work
) -> Message:
    try:
        hospital = load(context)
    except DerminoError as error:
        return refusal(message, error)
    except Exception:
        log.exception("unexpected error while reading the site file")
        return refuse(message, "INTERNAL")
    return attend(message, hospital, work)


def _admit_training(content: RecordDict, hospital: Hospital, now: datetime) -> TrainRequest:
    request = unpack(content, TrainRequest)
    _must_be_plain(request.task)
    admit(hospital, request.task, content, now, round_=request.round)
    return request


def _train(request: TrainRequest, content: RecordDict, hospital: Hospital) -> Answer:
    arrays = _arrays(content, "arrays", expected_arrays(hospital.prepared, request.task))
    reply, update, local = train(hospital, request, arrays)
    cost = reply.privacy.epsilon if reply.privacy else None
    return Answer(pack_update(reply, update, local), epsilon=cost)


def _admit_evaluation(content: RecordDict, hospital: Hospital, now: datetime) -> EvaluateRequest:
    request = unpack(content, EvaluateRequest)
    _must_be_plain(request.task)
    admit(hospital, request.task, content, now, totals=request.totals)
    return request


def _evaluate(request: EvaluateRequest, content: RecordDict, hospital: Hospital) -> Answer:
    like = expected_arrays(hospital.prepared, request.task)
    heads = _heads(request, content)
    arrays = _arrays(content, "arrays", like)
    personal = read_personal(content, hospital.prepared, request.task)
    own = personal_part(hospital.prepared, request.task, request.totals, arrays, personal)
    reply = evaluate_heads(hospital.prepared, request, arrays, heads, own)
    keep_evaluation(hospital, request.task, reply, own)
    settle(hospital, request.task)
    return Answer(pack(for_coordinator(reply, request.task)))


def _heads(request: EvaluateRequest, content: RecordDict) -> dict[str, Arrays]:
    """Site -> the head that it trained alone."""
    if not request.heads:
        return {}
    like = LinearHead.arrays_like(len(request.task.classes), request.task.width)
    sent = _arrays(content, "heads", named_heads(dict.fromkeys(request.heads, like)))
    return {site: {name: sent[f"{site}/{name}"] for name in like} for site in request.heads}


def _must_be_plain(task: Task) -> None:
    """A run that promises secure aggregation may not ask for anything in the clear."""
    if task.secure_aggregation:
        raise DerminoError(
            "REQUEST_MISMATCH", "The run promises secure aggregation and asks in the clear."
        )


def _arrays(content: RecordDict, group: str, like: Arrays) -> Arrays:
    try:
        return read_arrays(content, group, like)
    except ValueError as error:
        raise DerminoError(
            "REQUEST_INVALID", f"The coordinator's arrays are not usable: {error}."
        ) from None


def _admit_name(content: RecordDict, hospital: Hospital, now: datetime) -> NameRequest:
    return unpack(content, NameRequest)


def _name(request: NameRequest, content: RecordDict, hospital: Hospital) -> Answer:
    return Answer(pack(SiteName(name=hospital.name)))


TRAIN = Work(_admit_training, _train)
EVALUATE = Work(_admit_evaluation, _evaluate)
NAME = Work(_admit_name, _name)


def load_from_node_config(context: Context) -> Hospital:
    """The site whose file `dermino-client` put into the node configuration."""
    file = context.node_config.get(SITE_FILE_KEY)
    if not isinstance(file, str):
        raise DerminoError(
            "CONFIG_NOT_FOUND",
            f"The node configuration has no '{SITE_FILE_KEY}'.",
            fix="Start this node with dermino-client, not with flower-supernode.",
        )
    return hospital_of(read_site(Path(file)))


app = make_client_app(load_from_node_config)
