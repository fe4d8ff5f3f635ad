"""A site's part in a secure sum: five stages, of training or of the final evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from flwr.app import RecordDict
from pydantic import BaseModel, ValidationError

from dermino_client.admission import admit
from dermino_client.desk import Answer, Work
from dermino_client.hospital import Hospital
from dermino_client.members import Members
from dermino_client.membership import own_identity
from dermino_client.own_results import keep_evaluation
from dermino_client.personal_work import personal_part, read_personal
from dermino_client.spending import settle
from dermino_client.work import check_task, evaluate_heads, expected_arrays, site_update
from dermino_core.errors import DerminoError
from dermino_strategies.base import Additive, Arrays
from dermino_strategies.protocol import (
    EvaluateRequest,
    SecureReply,
    SecureRequest,
    bound_arrays,
    pack,
    read_arrays,
    unpack,
)
from dermino_strategies.secure_aggregation import messages
from dermino_strategies.secure_aggregation.identity import Identity
from dermino_strategies.secure_aggregation.session import Session, task_digest
from dermino_strategies.secure_aggregation.site import SecureSite
from dermino_strategies.secure_aggregation.store import FileStore
from dermino_strategies.secure_evaluation import (
    evaluation_like,
    evaluation_limits,
    evaluation_summand,
)

REQUESTS: dict[str, type[messages.Request]] = {
    "keys": messages.KeysRequest,
    "shares": messages.SharesRequest,
    "masked": messages.MaskedRequest,
    "confirm": messages.ConfirmRequest,
    "unmask": messages.UnmaskRequest,
}


@dataclass(frozen=True)
class Stage:
    """A request and the message of secure aggregation inside it."""

    asked: SecureRequest
    message: messages.Request


def _admit(content: RecordDict, hospital: Hospital, now: datetime) -> Stage:
    asked = unpack(content, SecureRequest)
    try:
        message = REQUESTS[asked.stage].model_validate_json(asked.request)
    except ValidationError as error:
        raise DerminoError(
            "REQUEST_INVALID", f"The stage '{asked.stage}' is not valid: {error.errors()[0]['msg']}"
        ) from error
    _check_session(asked, message.session)
    others = hospital.policy.min_other_sites  # who takes part is checked by the later stages
    if isinstance(message, messages.KeysRequest):
        others = len(message.invited) - 1
    admit(
        hospital,
        asked.task,
        content,
        now,
        round_=asked.round,
        other_sites=others,
        totals=asked.totals,
    )
    return Stage(asked, message)


def _check_session(asked: SecureRequest, session: Session) -> None:
    """The session must be that of the request: a site confirms one sum per run, round and step."""
    task = asked.task
    same = (session.run, session.round, session.purpose) == (task.run_id, asked.round, asked.step)
    if not (task.secure_aggregation and same):
        raise DerminoError(
            "REQUEST_MISMATCH", "The session of secure aggregation is not that of the request."
        )


def _answer(stage: Stage, content: RecordDict, hospital: Hospital) -> Answer:
    key, certificate = own_identity(hospital.folder)
    site = SecureSite(
        Identity(hospital.name, key, certificate),
        Members(hospital.folder, new_members=hospital.policy.new_members),
        FileStore(hospital.folder / "secure"),
        minimum=hospital.policy.min_other_sites + 1,
    )
    message = stage.message
    if isinstance(message, messages.MaskedRequest):
        return _masked(site, stage.asked, message, content, hospital)
    reply: BaseModel
    if isinstance(message, messages.KeysRequest):
        reply = site.keys(message)
    elif isinstance(message, messages.SharesRequest):
        reply = site.shares(message)
    elif isinstance(message, messages.ConfirmRequest):
        reply = site.confirm(message)
    elif isinstance(message, messages.UnmaskRequest):
        reply = site.unmask(message)
    else:
        raise DerminoError("REQUEST_INVALID", f"There is no stage '{stage.asked.stage}'.")
    return Answer(pack(SecureReply(stage=stage.asked.stage, reply=reply.model_dump_json())))


@dataclass
class _Summand:
    """What this site adds, and what computing it cost."""

    like: Arrays
    limits: Mapping[str, float]
    compute: Callable[[], Arrays]
    epsilon: float | None = None


def _masked(
    site: SecureSite,
    asked: SecureRequest,
    message: messages.MaskedRequest,
    content: RecordDict,
    hospital: Hospital,
) -> Answer:
    try:
        arrays = read_arrays(content, "arrays", expected_arrays(hospital.prepared, asked.task))
    except ValueError as error:
        raise DerminoError(
            "REQUEST_INVALID", f"The coordinator's arrays are not usable: {error}."
        ) from None
    personal: Arrays = {}
    if asked.step == "train":
        summand = _training(asked, arrays, hospital)
    else:
        personal = read_personal(content, hospital.prepared, asked.task)
        summand = _evaluation(asked, arrays, personal, hospital)
    reply, vector = site.masked(
        message,
        summand.compute,
        limits=summand.limits,
        like=summand.like,
        task_digest=task_digest(asked.task.model_dump_json(), bound_arrays(arrays, personal)),
    )
    body = SecureReply(stage="masked", reply=reply.model_dump_json())
    return Answer(pack(body, {"masked": {"vector": np.asarray(vector)}}), epsilon=summand.epsilon)


def _training(asked: SecureRequest, arrays: Arrays, hospital: Hospital) -> _Summand:
    strategy = check_task(hospital.prepared, asked.task)
    if not isinstance(strategy, Additive):
        raise DerminoError(
            "REQUEST_MISMATCH", f"{strategy.name} does not work under secure aggregation."
        )

    def compute() -> Arrays:
        update, privacy = site_update(hospital, strategy, asked.task, arrays, asked.round)
        summand.epsilon = privacy.epsilon if privacy else None
        return strategy.summand(update)

    summand = _Summand(strategy.summand_like(arrays), strategy.summand_limits(arrays), compute)
    return summand


def _evaluation(
    asked: SecureRequest, arrays: Arrays, personal: Arrays, hospital: Hospital
) -> _Summand:
    models, classes = asked.task.models, len(asked.task.classes)

    def compute() -> Arrays:
        request = EvaluateRequest(task=asked.task, heads=[])
        own = personal_part(hospital.prepared, asked.task, asked.totals, arrays, personal)
        reply = evaluate_heads(hospital.prepared, request, arrays, {}, own)
        keep_evaluation(hospital, asked.task, reply, own)
        settle(hospital, asked.task)
        return evaluation_summand(reply, models)

    return _Summand(evaluation_like(models, classes), evaluation_limits(models, classes), compute)


SECURE = Work(_admit, _answer)
