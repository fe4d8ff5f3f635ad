"""Messages hold what fits and nothing else; sessions have one identity each."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from in_process import STAGES, TASK, Federation
from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation import messages
from dermino_strategies.secure_aggregation.session import (
    Session,
    check_threshold,
    default_threshold,
    task_digest,
)

SESSION = Session(run="run", round=1, purpose="train", attempt=1, task_digest=TASK, threshold=3)


def test_every_message_survives_the_journey() -> None:
    federation = Federation(4)
    coordinator = federation.coordinator()
    seen = set()
    for stage in STAGES:
        assert coordinator.stage == stage
        for name, request in coordinator.requests().items():
            reply, vector = federation.answer(name, request)
            for message in (request, reply):
                text = message.model_dump_json()
                assert type(message).model_validate_json(text) == message
                seen.add(type(message).__name__)
            coordinator.receive(name, reply, vector)
        coordinator.advance()
    assert len(seen) == 10


def test_messages_are_read_by_stage() -> None:
    federation = Federation(3)
    coordinator = federation.coordinator()
    for stage in messages.REQUESTS:
        for name, request in coordinator.requests().items():
            reply, vector = federation.answer(name, request)
            assert messages.read_request(stage, request.model_dump_json()) == request
            assert messages.read_reply(stage, reply.model_dump_json().encode()) == reply
            coordinator.receive(name, reply, vector)
        coordinator.advance()
    assert coordinator.stage == "done"
    assert list(messages.REQUESTS) == list(messages.REPLIES) == list(STAGES)


def test_what_cannot_be_read_is_not_repeated() -> None:
    """A value that does not fit may be a secret all the same."""
    secret = "c2VjcmV0" * 5
    text = json.dumps({"session_id": "A" * 43 + "=", "seeds": {"a": secret}, "masking_keys": {}})
    for read, code in (
        (messages.read_reply, "REPLY_INVALID"),
        (messages.read_request, "REQUEST_INVALID"),
    ):
        for wrong in (text, "{", "[]", "", secret):
            with pytest.raises(DerminoError) as caught:
                read("unmask", wrong)
            assert caught.value.code == code
            assert secret not in str(caught.value)


ADVERTISEMENT = {
    "name": "site-01",
    "certificate": "",
    "sharing_key": "A" * 43 + "=",
    "masking_key": "A" * 43 + "=",
    "commitment": "A" * 43 + "=",
    "signature": "A" * 86 + "==",
}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../etc"},
        {"name": "x" * 64},
        {"name": ""},
        {"name": 5},
        {"certificate": "x" * 20_000},
        {"sharing_key": "A" * 44},
        {"masking_key": "AAAA"},
        {"masking_key": "no base64!"},
        {"commitment": None},
        {"signature": "A" * 43 + "="},
        {"more": 1},
    ],
)
def test_advertisements_that_do_not_fit(change: dict[str, Any]) -> None:
    messages.Advertisement.model_validate_json(json.dumps(ADVERTISEMENT))
    with pytest.raises(ValidationError):
        messages.Advertisement.model_validate_json(json.dumps(ADVERTISEMENT | change))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (messages.KeysRequest, {"invited": ["a", "a"]}),
        (messages.KeysRequest, {"invited": [f"s{i}" for i in range(1001)]}),
        (messages.SharesRequest, {"advertisements": [ADVERTISEMENT] * 1001}),
        (messages.MaskedRequest, {"sealed": {"a": "AAAA"}}),
        (messages.MaskedRequest, {"sealed": {"../a": "A" * 122 + "=="}}),
        (messages.ConfirmRequest, {"survivors": ["a", "a"]}),
        (messages.UnmaskRequest, {"survivors": ["a"], "confirmations": [{"name": "a"}]}),
        (messages.ConfirmRequest, {"survivors": ["a"], "extra": 1}),
    ],
)
def test_requests_that_do_not_fit(kind: type[messages.Request], fields: dict[str, Any]) -> None:
    body = {"session": SESSION.model_dump(), **fields}
    with pytest.raises(ValidationError):
        kind.model_validate_json(json.dumps(body))


@pytest.mark.parametrize(
    "change",
    [
        {"run": ""},
        {"run": "x" * 129},
        {"round": -1},
        {"round": "1"},
        {"purpose": "query"},
        {"attempt": -1},
        {"attempt": 2**31},
        {"task_digest": "AB" * 32},
        {"task_digest": "ab" * 31},
        {"threshold": 1001},
        {"more": 1},
    ],
)
def test_sessions_that_do_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Session.model_validate_json(json.dumps(SESSION.model_dump() | change))


def test_every_field_of_a_session_is_in_its_identity() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"run": "other"},
        {"round": 2},
        {"purpose": "evaluate"},
        {"attempt": 2},
        {"task_digest": "cd" * 32},
        {"threshold": 4},
    ]
    sessions = [SESSION.model_copy(update=change) for change in changes]
    assert len({session.id for session in sessions}) == len(sessions)
    # Attempts, tasks and thresholds share what is remembered; run, round and purpose do not.
    assert len({session.round_key for session in sessions}) == 4
    assert SESSION.next_attempt(4) == SESSION.model_copy(update={"attempt": 2, "threshold": 4})
    assert SESSION.next_attempt().threshold == 3


def test_every_bit_of_the_task_is_in_its_digest() -> None:
    start = {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(2, np.float32)}
    digests = [
        task_digest("task", start),
        task_digest("task2", start),
        task_digest("task", {"w": start["w"]}),
        task_digest("task", {"w": start["w"], "c": start["b"]}),
        task_digest("task", start | {"w": start["w"].reshape(3, 2)}),
        task_digest("task", start | {"w": start["w"].astype(np.float32)}),
        task_digest("task", start | {"b": np.array([0, 1e-30], np.float32)}),
        task_digest("task", start | {"b": np.zeros(0, np.float32)}),
    ]
    assert len(set(digests)) == len(digests)
    swapped = dict(reversed(list(start.items())))
    assert task_digest("task", swapped) == digests[0]
    big_endian = {
        name: array.astype(array.dtype.newbyteorder(">")) for name, array in start.items()
    }
    assert task_digest("task", big_endian) == digests[0]
    fortran = {"w": np.asfortranarray(start["w"]), "b": start["b"]}
    assert task_digest("task", fortran) == digests[0]
    Session.model_validate(SESSION.model_dump() | {"task_digest": digests[0]})


def test_default_threshold_holds_against_a_third() -> None:
    assert [default_threshold(n) for n in (3, 4, 5, 6, 7, 9, 10, 100)] == [3, 3, 4, 5, 5, 7, 7, 67]
    for sites in range(3, 200):
        threshold = default_threshold(sites)
        check_threshold(threshold, sites)
        colluding = math_largest_below_a_third(sites)
        assert 2 * threshold > sites + colluding  # Bonawitz et al., Theorem 6.5


def math_largest_below_a_third(sites: int) -> int:
    return max(c for c in range(sites) if 3 * c < sites)


@pytest.mark.parametrize(
    ("threshold", "sites", "good"),
    [
        *((3, 3, True), (2, 3, False), (2, 2, False), (1, 1, False)),
        *((3, 5, True), (3, 6, False), (4, 6, True), (5, 5, True), (6, 5, False)),
        *((50, 100, False), (51, 100, True)),
    ],
)
def test_thresholds_that_protect(threshold: int, sites: int, good: bool) -> None:
    if good:
        check_threshold(threshold, sites)
        return
    with pytest.raises(DerminoError) as caught:
        check_threshold(threshold, sites)
    assert caught.value.code == "SECURE_REFUSED"
