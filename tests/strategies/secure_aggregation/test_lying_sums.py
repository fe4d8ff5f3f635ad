"""A coordinator that lies about who is in the sum: stages 3 and 4."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import pytest
from in_process import Federation

from dermino_strategies.secure_aggregation.agreement import confirmation_bytes
from dermino_strategies.secure_aggregation.keys import (
    commitment_to,
    public_of,
)
from dermino_strategies.secure_aggregation.messages import (
    Confirmation,
    ConfirmReply,
    ConfirmRequest,
    KeysRequest,
    MaskedRequest,
    SharesRequest,
    UnmaskReply,
    UnmaskRequest,
)
from dermino_strategies.secure_aggregation.records import Confirmed
from dermino_strategies.secure_aggregation.session import Session
from dermino_strategies.secure_aggregation.shares import combine_secret

A, B, C, D, E = (f"site-{i:02d}" for i in range(1, 6))


@pytest.fixture
def federation() -> Federation:
    return Federation(5)


def confirm(
    federation: Federation, name: str, session: Session, survivors: Collection[str]
) -> Confirmation:
    """The signature that a site really gives."""
    reply, _ = federation.answer(name, ConfirmRequest(session=session, survivors=sorted(survivors)))
    assert isinstance(reply, ConfirmReply)
    return Confirmation(name=name, signature=reply.signature)


def unmask_request(
    session: Session, survivors: Collection[str], confirmations: list[Confirmation]
) -> UnmaskRequest:
    return UnmaskRequest(session=session, survivors=sorted(survivors), confirmations=confirmations)


# Stage 3: survivors.


@pytest.fixture
def masked(federation: Federation) -> Session:
    """All five sent their vectors; three are needed."""
    return federation.until("confirm", federation.session(threshold=3)).session


@pytest.mark.parametrize(
    "survivors", [[], [A], [A, B], [B, C, D], [A, B, "stranger"], [A, B, C, D, E, "stranger"]]
)
def test_survivors_that_are_refused(
    federation: Federation, masked: Session, survivors: list[str]
) -> None:
    request = ConfirmRequest(session=masked, survivors=survivors)
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_survivors_are_among_those_who_shared() -> None:
    federation = Federation(5)
    session = federation.session(threshold=3)
    federation.until("confirm", session, silent={"shares": [E]})
    request = ConfirmRequest(session=session, survivors=federation.names)
    assert federation.refuses(A, request) == "SECURE_REFUSED"
    federation.answer(A, ConfirmRequest(session=session, survivors=[A, B, C, D]))


def test_a_site_may_want_more_company(federation: Federation, masked: Session) -> None:
    federation.minimum = 5
    request = ConfirmRequest(session=masked, survivors=[A, B, C, D])
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_a_list_is_confirmed_once(federation: Federation, masked: Session) -> None:
    once = confirm(federation, A, masked, [A, B, C, D])
    assert confirm(federation, A, masked, [D, C, B, A]) == once
    for other in ([A, B, C], [A, B, C, D, E], [A, B, C, E]):
        request = ConfirmRequest(session=masked, survivors=other)
        assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_no_new_attempt_after_a_confirmation(federation: Federation, masked: Session) -> None:
    confirm(federation, A, masked, federation.names)
    for attempt in (1, 2, 99):
        request = KeysRequest(session=federation.session(attempt=attempt), invited=federation.names)
        assert federation.refuses(A, request) == "SECURE_REFUSED"
    # B did not confirm, and other rounds are other sums.
    federation.answer(
        B, KeysRequest(session=federation.session(attempt=2), invited=federation.names)
    )
    federation.answer(
        A, KeysRequest(session=federation.session(round_=2), invited=federation.names)
    )


def test_a_new_attempt_ends_the_old_one(federation: Federation, masked: Session) -> None:
    federation.answer(
        A, KeysRequest(session=federation.session(attempt=2), invited=federation.names)
    )
    request = ConfirmRequest(session=masked, survivors=federation.names)
    assert federation.refuses(A, request) == "SECURE_REFUSED"


# Stage 4: unmasking.


def test_different_survivors_to_different_sites(federation: Federation, masked: Session) -> None:
    """Whom the coordinator tells what: no list but one can find three signatures."""
    small, large = [A, B, C], [A, B, C, D, E]
    told = {A: small, B: small, C: large, D: large, E: large}
    signed = {name: confirm(federation, name, masked, told[name]) for name in federation.names}
    # A and B alone confirmed the small list: whatever is mixed, the difference stays hidden.
    for names in itertools.combinations(federation.names, 3):
        request = unmask_request(masked, small, [signed[name] for name in names])
        assert federation.refuses(A, request) == "SECURE_REFUSED"
        assert federation.refuses(C, request) == "SECURE_REFUSED"
    request = unmask_request(masked, small, [signed[name] for name in (A, B)])
    assert federation.refuses(A, request) == "SECURE_REFUSED"
    # The large list has its three, and gives shares of seeds only.
    reply, _ = federation.answer(C, unmask_request(masked, large, [signed[n] for n in (C, D, E)]))
    assert isinstance(reply, UnmaskReply)
    assert not reply.masking_keys


def test_different_senders_to_different_sites(federation: Federation) -> None:
    """A is told that E shared nothing, so that it would give E's key away as never used."""
    session = federation.session(threshold=3)
    coordinator = federation.until("masked", session)
    for name, request in coordinator.requests().items():
        assert isinstance(request, MaskedRequest)
        if name == A:
            fewer = {n: s for n, s in request.sealed.items() if n != E}
            request = request.model_copy(update={"sealed": fewer})
        federation.answer(name, request)
    signed = {n: confirm(federation, n, session, [A, B, C, D]) for n in (A, B, C, D)}
    request = unmask_request(session, [A, B, C, D], [signed[n] for n in (A, B, C)])
    assert federation.refuses(B, request) == "SECURE_REFUSED"
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_unmasking_before_confirming(federation: Federation, masked: Session) -> None:
    signed = [confirm(federation, name, masked, federation.names) for name in (B, C, D)]
    request = unmask_request(masked, federation.names, signed)
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_too_few_doubled_and_foreign_confirmations(federation: Federation, masked: Session) -> None:
    names = [A, B, C, D]
    signed = {name: confirm(federation, name, masked, names) for name in names}
    a, b, c, d = (signed[name] for name in names)
    with federation.stores[A].locked(masked.round_key) as slot:
        record = slot.read()
    assert record is not None
    assert isinstance(record.state, Confirmed)
    # A member that is not in the sum, and signs the very list to help the coordinator.
    signed_list = confirmation_bytes(masked.id, record.state.transcript, federation.names, names)
    outsider = Confirmation(name=E, signature=federation.identities[E].sign(signed_list))
    assert federation.identities[A].sign(signed_list) == a.signature
    cases = {
        "none": [],
        "two": [a, b],
        "one twice": [a, b, b],
        "one of three twice": [a, b, c, c],
        "one under another name": [a, b, Confirmation(name=C, signature=b.signature)],
        "swapped": [a, c.model_copy(update={"name": D}), d.model_copy(update={"name": C})],
        "not in the sum": [a, b, outsider],
        "good ones and a bad one": [a, b, c, Confirmation(name=D, signature=bytes(64))],
        "stranger": [a, b, Confirmation(name="stranger", signature=c.signature)],
    }
    for what, confirmations in cases.items():
        request = unmask_request(masked, names, confirmations)
        assert federation.refuses(A, request) == "SECURE_REFUSED", what
    federation.answer(A, unmask_request(masked, names, [b, c, d]))


def test_replayed_confirmations(federation: Federation, masked: Session) -> None:
    """Signatures of the same sites under another session, transcript, U2 or U3."""
    everyone = federation.names
    real = {name: confirm(federation, name, masked, everyone) for name in everyone}
    later = federation.session(round_=2, threshold=3)
    federation.until("confirm", later)
    old = {name: confirm(federation, name, later, everyone) for name in everyone}
    assert (
        federation.refuses(A, unmask_request(masked, everyone, [old[name] for name in (A, B, C)]))
        == "SECURE_REFUSED"
    )
    assert (
        federation.refuses(A, unmask_request(later, everyone, [real[name] for name in (A, B, C)]))
        == "SECURE_REFUSED"
    )

    def signed(name: str, transcript: bytes, sharers: list[str], survivors: list[str]) -> bytes:
        message = confirmation_bytes(masked.id, transcript, sharers, survivors)
        return federation.identities[name].sign(message)

    with federation.stores[A].locked(masked.round_key) as slot:
        record = slot.read()
    assert record is not None
    assert isinstance(record.state, Confirmed)
    transcript = record.state.transcript
    assert signed(B, transcript, everyone, everyone) == real[B].signature
    for variant in (
        signed(B, bytes(32), everyone, everyone),
        signed(B, transcript, everyone[:4], everyone),
        signed(B, transcript, everyone, everyone[:4]),
        federation.identities[B].sign(b"".join(sorted(n.encode() for n in everyone))),
    ):
        mixed = [real[A], real[C], Confirmation(name=B, signature=variant)]
        request = unmask_request(masked, everyone, mixed)
        assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_never_both_secrets_of_one_site() -> None:
    """In one reply, and over as many requests as a coordinator cares to make."""
    federation = Federation(5)
    session = federation.session(threshold=3)
    federation.until("confirm", session, silent={"masked": [E]})
    names = [A, B, C, D]
    signed = {name: confirm(federation, name, session, names) for name in names}
    request = unmask_request(session, names, [signed[n] for n in (A, B, C)])
    reply, _ = federation.answer(A, request)
    assert isinstance(reply, UnmaskReply)
    assert set(reply.seeds) == set(names)
    assert set(reply.masking_keys) == {E}
    # The same again gives the same again.
    assert federation.answer(A, request)[0] == reply
    assert confirm(federation, A, session, names) == signed[A]
    # Anything else gives nothing: other signatures, other survivors, signed by all who would.
    forged = {
        name: Confirmation(
            name=name,
            signature=federation.identities[name].sign(
                confirmation_bytes(session.id, bytes(32), federation.names, [A, B, C])
            ),
        )
        for name in names
    }
    for other in (
        unmask_request(session, names, [signed[n] for n in (A, B, D)]),
        unmask_request(session, names, list(signed.values())),
        unmask_request(session, [A, B, C], [forged[n] for n in (A, B, C)]),
        unmask_request(session, federation.names, list(signed.values())),
    ):
        assert federation.refuses(A, other) == "SECURE_REFUSED"
    for survivors in ([A, B, C], federation.names):
        again = ConfirmRequest(session=session, survivors=survivors)
        assert federation.refuses(A, again) == "SECURE_REFUSED"


def test_all_that_all_sites_give_is_one_secret_of_each_site() -> None:
    """Over a whole session: for no site do seeds and keys together reach a threshold."""
    federation = Federation(5)
    session = federation.session(threshold=3)
    coordinator = federation.until("unmask", session, silent={"masked": [D]})
    seeds: set[str] = set()
    keys: set[str] = set()
    for name, request in coordinator.requests().items():
        reply, _ = federation.answer(name, request)
        assert isinstance(reply, UnmaskReply)
        seeds |= set(reply.seeds)
        keys |= set(reply.masking_keys)
    assert seeds == {A, B, C, E}
    assert keys == {D}


def test_one_share_too_few_gives_neither_secret() -> None:
    """Of what the sites really send: four shares give what was advertised, three do not."""
    federation = Federation(5)
    coordinator = federation.until("shares")
    request = coordinator.requests()[A]
    assert isinstance(request, SharesRequest)
    advertised = {one.name: one for one in request.advertisements}
    session = coordinator.session
    assert session.threshold == 4
    while coordinator.stage != "unmask":
        federation.stage(coordinator, [E] if coordinator.stage == "masked" else [])
    seeds: dict[int, bytes] = {}
    keys: dict[int, bytes] = {}
    for name, unmask in coordinator.requests().items():
        reply, _ = federation.answer(name, unmask)
        assert isinstance(reply, UnmaskReply)
        number = federation.names.index(name) + 1
        seeds[number], keys[number] = reply.seeds[B], reply.masking_keys[E]
    for count in (2, 3, 4):
        enough = count == session.threshold
        for chosen in itertools.combinations(seeds, count):
            seed = combine_secret({i: seeds[i] for i in chosen}, count)
            found = commitment_to(seed, session_id=session.id, name=B)
            assert (found == advertised[B].commitment) == enough
            private = combine_secret({i: keys[i] for i in chosen}, count)
            assert (public_of(private) == advertised[E].masking_key) == enough
