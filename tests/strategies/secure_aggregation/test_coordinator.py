"""The coordinator's half against sites that answer wrongly, and the words of its errors."""

from __future__ import annotations

import numpy as np
import pytest
from in_process import Federation

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation.coordinator import Coordinator
from dermino_strategies.secure_aggregation.identity import Identity, PinnedMembers
from dermino_strategies.secure_aggregation.messages import (
    ConfirmReply,
    KeysReply,
    MaskedReply,
    SharesReply,
    UnmaskReply,
)

A, B, C, D, E = (f"site-{i:02d}" for i in range(1, 6))


@pytest.fixture
def federation() -> Federation:
    return Federation(5)


def rejected(coordinator: Coordinator, *what: object, code: str = "REPLY_INVALID") -> str:
    with pytest.raises(DerminoError) as caught:
        coordinator.receive(*what)  # type: ignore[arg-type]
    assert caught.value.code == code
    return caught.value.what


def finish(federation: Federation, coordinator: Coordinator, without: str) -> None:
    """All others answer, and the sum is theirs."""
    federation.stage(coordinator, silent=[without])
    while coordinator.stage != "done":
        federation.stage(coordinator)
    wanted = federation.expected(coordinator.participants)
    for key, array in coordinator.total().items():
        np.testing.assert_allclose(array, wanted[key], rtol=1e-12)


def test_a_lost_site_is_named_with_its_stage(federation: Federation) -> None:
    coordinator = federation.until("shares", silent={"keys": [B]})
    error = federation.stage_fails(coordinator, silent=[D])
    assert "3 sites are left, 4 are needed" in error.what
    assert f"{B} (keys), {D} (shares)" in error.what
    assert "new attempt" in str(error)
    assert coordinator.requests() == {}
    assert coordinator.waiting == []
    coordinator.advance()
    assert coordinator.stage == "aborted"


def test_after_confirming_there_is_no_second_try(federation: Federation) -> None:
    coordinator = federation.until("confirm")
    assert not coordinator.repeatable
    error = federation.stage_fails(coordinator, silent=[A, B])
    assert "next round" in str(error)


def test_no_sum_before_the_end(federation: Federation) -> None:
    coordinator = federation.until("unmask")
    with pytest.raises(RuntimeError, match="stage 'unmask'"):
        coordinator.total()


@pytest.mark.parametrize(("threshold", "good"), [(2, False), (3, True), (5, True), (6, False)])
def test_the_threshold_is_checked_first(federation: Federation, threshold: int, good: bool) -> None:
    session = federation.session(threshold=threshold)
    if good:
        federation.coordinator(session)
    else:
        federation.fails("SECURE_REFUSED", lambda: federation.coordinator(session))


def test_replies_nobody_waits_for(federation: Federation) -> None:
    coordinator = federation.coordinator()
    reply, _ = federation.answer(A, coordinator.requests()[A])
    rejected(coordinator, "stranger", reply)
    coordinator.receive(A, reply)
    rejected(coordinator, A, reply)
    federation.stage_without(coordinator, [A])
    assert coordinator.stage == "shares"
    rejected(coordinator, A, reply)  # late: another stage by now
    assert coordinator.waiting == federation.names


def test_replies_of_another_session(federation: Federation) -> None:
    coordinator = federation.coordinator()
    other = federation.coordinator(federation.session(round_=2))
    reply, _ = federation.answer(A, other.requests()[A])
    assert "another session" in rejected(coordinator, A, reply)


def test_keys_that_are_not_the_senders(federation: Federation) -> None:
    coordinator = federation.coordinator()
    requests = coordinator.requests()
    a, _ = federation.answer(A, requests[A])
    b, _ = federation.answer(B, requests[B])
    assert isinstance(a, KeysReply)
    assert isinstance(b, KeysReply)
    rejected(coordinator, A, b)
    changed = a.advertisement.model_copy(update={"masking_key": b.advertisement.masking_key})
    rejected(coordinator, A, a.model_copy(update={"advertisement": changed}), code="SECURE_REFUSED")
    assert A in coordinator.waiting
    coordinator.receive(A, a)
    coordinator.receive(B, b)
    with pytest.raises(DerminoError, match="not known"):
        Coordinator(
            coordinator.session,
            federation.names,
            PinnedMembers({}),
            limits=federation.limits,
            like=federation.like,
        ).receive(A, a)


def test_a_copied_key_costs_the_copier_only(federation: Federation) -> None:
    """Two sites with one ephemeral key would make every honest site refuse the list."""
    from dermino_strategies.secure_aggregation.agreement import advertise

    coordinator = federation.coordinator()
    a, _ = federation.answer(A, coordinator.requests()[A])
    assert isinstance(a, KeysReply)
    coordinator.receive(A, a)
    copied = advertise(
        federation.identities[B],
        coordinator.session.id,
        a.advertisement.sharing_key,
        a.advertisement.masking_key,
        a.advertisement.commitment,
    )
    reply = KeysReply(session_id=coordinator.session.id, advertisement=copied)
    rejected(coordinator, B, reply, code="SECURE_REFUSED")
    federation.stage_without(coordinator, [A], silent=[B])
    assert coordinator.lost == {B: "keys"}
    while coordinator.stage != "done":
        federation.stage(coordinator)
    assert coordinator.participants == [A, C, D, E]


def test_shares_for_others_than_asked(federation: Federation) -> None:
    coordinator = federation.until("shares")
    reply, _ = federation.answer(A, coordinator.requests()[A])
    assert isinstance(reply, SharesReply)
    one = reply.sealed[B]
    for sealed in (
        {n: s for n, s in reply.sealed.items() if n != B},
        reply.sealed | {"stranger": one},
        reply.sealed | {A: one},
        {},
    ):
        rejected(coordinator, A, reply.model_copy(update={"sealed": sealed}))
    finish(federation, coordinator, A)


def test_vectors_that_do_not_fit(federation: Federation) -> None:
    coordinator = federation.until("masked")
    reply, vector = federation.answer(A, coordinator.requests()[A])
    assert vector is not None
    assert isinstance(reply, MaskedReply)
    for wrong in (
        None,
        vector[:-1],
        vector.reshape(1, -1),
        vector.astype(np.int64),
        vector.astype(np.float64),
        np.zeros(0, np.uint64),
    ):
        rejected(coordinator, A, reply, wrong)
    rejected(coordinator, A, reply.model_copy(update={"length": 1}), vector)
    # Nothing of what was rejected is in the sum.
    finish(federation, coordinator, A)
    assert coordinator.participants == [B, C, D, E]


def test_a_vector_is_added_and_let_go(federation: Federation) -> None:
    coordinator = federation.until("masked")
    reply, vector = federation.answer(A, coordinator.requests()[A])
    assert vector is not None
    coordinator.receive(A, reply, vector)
    vector[:] = 0  # the coordinator holds no reference to it
    for name in (B, C, D, E):
        coordinator.receive(name, *federation.answer(name, coordinator.requests()[name]))
    coordinator.advance()
    while coordinator.stage != "done":
        federation.stage(coordinator)
    wanted = federation.expected(federation.names)
    for key, array in coordinator.total().items():
        np.testing.assert_allclose(array, wanted[key], rtol=1e-12)


def test_confirmations_that_do_not_hold(federation: Federation) -> None:
    coordinator = federation.until("confirm")
    reply, _ = federation.answer(A, coordinator.requests()[A])
    other, _ = federation.answer(B, coordinator.requests()[B])
    assert isinstance(reply, ConfirmReply)
    rejected(coordinator, A, other)
    rejected(coordinator, A, reply.model_copy(update={"signature": bytes(64)}))
    impostor = Identity.generate(A).sign(b"x")
    rejected(coordinator, A, reply.model_copy(update={"signature": impostor}))
    finish(federation, coordinator, A)
    assert coordinator.participants == federation.names


def test_wrong_kinds_of_replies(federation: Federation) -> None:
    coordinator = federation.until("confirm")
    wrong = MaskedReply(session_id=coordinator.session.id, length=1)
    assert "MaskedReply" in rejected(coordinator, A, wrong)


def unmasking(federation: Federation, coordinator: Coordinator) -> dict[str, UnmaskReply]:
    replies = {}
    for name, request in coordinator.requests().items():
        reply, _ = federation.answer(name, request)
        assert isinstance(reply, UnmaskReply)
        replies[name] = reply
    return replies


@pytest.mark.parametrize("lost", [[], [E]])
def test_other_shares_than_asked(federation: Federation, lost: list[str]) -> None:
    coordinator = federation.until("unmask", silent={"masked": lost})
    reply = unmasking(federation, coordinator)[A]
    share = reply.seeds[B]
    for change in (
        {"seeds": {n: s for n, s in reply.seeds.items() if n != B}},
        {"seeds": reply.seeds | {"stranger": share}},
        {"masking_keys": reply.masking_keys | {B: share}},
        {"masking_keys": {} if lost else {E: share}},
    ):
        rejected(coordinator, A, reply.model_copy(update=change))


@pytest.mark.parametrize("kind", ["seeds", "masking_keys"])
@pytest.mark.parametrize("half", [0, 31])
def test_one_wrong_share_ends_it_without_a_sum(
    federation: Federation, kind: str, half: int
) -> None:
    coordinator = federation.until("unmask", silent={"masked": [E]})
    replies = unmasking(federation, coordinator)
    victim = C if kind == "seeds" else E
    shares = dict(getattr(replies[B], kind))
    changed = bytearray(shares[victim])
    changed[half] ^= 0x10
    replies[B] = replies[B].model_copy(update={kind: shares | {victim: bytes(changed)}})
    for name, reply in replies.items():
        coordinator.receive(name, reply)
    with pytest.raises(DerminoError) as caught:
        coordinator.advance()
    assert caught.value.code == "SECURE_ABORTED"
    assert victim in caught.value.what
    assert coordinator.stage == "aborted"
    with pytest.raises(RuntimeError):
        coordinator.total()


def test_swapped_shares_end_it_too(federation: Federation) -> None:
    """Each share is fine, but stands for another site."""
    coordinator = federation.until("unmask")
    replies = unmasking(federation, coordinator)
    seeds = replies[B].seeds
    swapped = seeds | {A: seeds[C], C: seeds[A]}
    replies[B] = replies[B].model_copy(update={"seeds": swapped})
    for name, reply in replies.items():
        coordinator.receive(name, reply)
    with pytest.raises(DerminoError) as caught:
        coordinator.advance()
    assert caught.value.code == "SECURE_ABORTED"


def test_a_site_that_does_not_keep_to_its_limits_is_noticed(federation: Federation) -> None:
    """A vector of noise instead of a masked one: no sum rather than a broken model."""
    federation = Federation(3, like={"w": np.zeros(64)}, limits={"w": 1.0})
    coordinator = federation.until("masked")
    for name, request in coordinator.requests().items():
        reply, vector = federation.answer(name, request)
        if name == A:
            vector = np.random.default_rng(0).integers(0, 2**64, 64, dtype=np.uint64)
        coordinator.receive(name, reply, vector)
    coordinator.advance()
    while coordinator.stage != "done":
        federation.stage(coordinator)
    federation.fails("SECURE_ABORTED", coordinator.total)
