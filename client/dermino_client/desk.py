"""What happens around every message: the policy decides, the audit log records, then it is sent.

Whatever goes wrong, only a code and a fixed sentence leave the building; the details go to this
machine's log. Nothing leaves that could not be recorded first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from flwr.app import Message, RecordDict

from dermino_client.audit import ALLOWED, ArrayDigest, digest_of
from dermino_client.hospital import Hospital
from dermino_core.errors import DerminoError
from dermino_strategies.packing import parts_of
from dermino_strategies.protocol import refuse, size_in_bytes

log = logging.getLogger("dermino.client")

Request = TypeVar("Request")


@dataclass(frozen=True)
class Answer:
    """A reply, and what it cost the site's privacy budget."""

    content: RecordDict
    epsilon: float | None = None


@dataclass(frozen=True)
class Work(Generic[Request]):
    """How one kind of message is answered.

    `admit` reads it and holds it to the site's policy; `answer` does what it asks. Both may raise
    a `DerminoError`, whose code is then the answer.
    """

    admit: Callable[[RecordDict, Hospital, datetime], Request]
    answer: Callable[[Request, RecordDict, Hospital], Answer]


def attend(message: Message, hospital: Hospital, work: Work[Any]) -> Message:
    """Answer a message on behalf of a site. Never raises an `Exception`."""
    try:
        return _attend(message, hospital, work)
    except DerminoError as error:  # the audit log itself
        return refusal(message, error)
    except Exception:
        log.exception("unexpected error while answering a %s", message.metadata.message_type)
        return refuse(message, "INTERNAL")


def _attend(message: Message, hospital: Hospital, work: Work[Any]) -> Message:
    content, facts = message.content, _facts(message.content)
    request, decision = None, ALLOWED
    try:
        request = work.admit(content, hospital, datetime.now(UTC))
    except DerminoError as error:
        log.error("refused: %s: %s", error.code, error)
        decision = error.code
    except Exception:
        log.exception("unexpected error while reading a %s", facts.kind)
        decision = "INTERNAL"
    kind, run, round_ = facts.kind, facts.run, facts.round
    hospital.audit.received(
        kind,
        run=run,
        round_=round_,
        size=size_in_bytes(content),
        digests=_digests(content),
        decision=decision,
    )
    epsilon = None
    if decision == ALLOWED:
        try:
            answer = work.answer(request, content, hospital)
            reply, epsilon = Message(answer.content, reply_to=message), answer.epsilon
        except DerminoError as error:
            decision, reply = error.code, refusal(message, error)
        except Exception:
            log.exception("unexpected error while answering a %s", kind)
            decision, reply = "INTERNAL", refuse(message, "INTERNAL")
    else:
        reply = refuse(message, decision)
    hospital.audit.sent(
        _facts(reply.content).kind,
        run=run,
        round_=round_,
        size=size_in_bytes(reply.content),
        digests=_digests(reply.content),
        decision=decision,
        epsilon=epsilon,
    )
    return reply


def refusal(message: Message, error: DerminoError) -> Message:
    """A refusal for the coordinator; what happened stays in this machine's log."""
    log.error("refused: %s: %s", error.code, error)
    return refuse(message, error.code)


@dataclass(frozen=True)
class _Facts:
    kind: str
    run: str | None
    round: int | None


def _facts(content: RecordDict) -> _Facts:
    """What a message says it is, for the log: nothing of it is trusted or checked."""
    body = content.config_records.get("body") or {}
    try:
        fields = json.loads(str(body.get("json")))
    except (ValueError, RecursionError):
        fields = None
    fields = fields if isinstance(fields, dict) else {}
    task = fields.get("task")
    run = task.get("run_id") if isinstance(task, dict) else None
    round_ = fields.get("round")
    return _Facts(
        kind=str(body.get("kind", "unreadable")),
        run=run if isinstance(run, str) else None,
        round=round_ if isinstance(round_, int) else None,
    )


def _digests(content: RecordDict) -> dict[str, ArrayDigest]:
    """Digests of the arrays' bytes, whatever they are."""
    return {
        f"{group}/{part.name}": digest_of(part.data, part.dtype, part.shape)
        for group, record in content.array_records.items()
        for part in parts_of(record)
    }
