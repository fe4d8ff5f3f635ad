"""A coordinator that lies about who takes part and with which keys: stages 0 and 1."""

from __future__ import annotations

from typing import Any

import pytest
from in_process import Federation

from dermino_strategies.secure_aggregation import messages
from dermino_strategies.secure_aggregation.agreement import (
    advertise,
    share_context,
    transcript_of,
)
from dermino_strategies.secure_aggregation.identity import Identity, PinnedMembers
from dermino_strategies.secure_aggregation.keys import (
    Party,
    new_key_pair,
    new_secret,
    seal,
    sharing_key,
)
from dermino_strategies.secure_aggregation.messages import Advertisement, SharesRequest
from dermino_strategies.secure_aggregation.session import Session

A, B, C, D, E = (f"site-{i:02d}" for i in range(1, 6))
LOW_ORDER = bytes(32)


@pytest.fixture
def federation() -> Federation:
    return Federation(5)


@pytest.fixture
def request_(federation: Federation) -> SharesRequest:
    """What an honest coordinator asks at stage 1; the threshold is 4 of 5."""
    request = federation.until("shares").requests()[A]
    assert isinstance(request, SharesRequest)
    return request


def advertised(request: SharesRequest, name: str) -> Advertisement:
    return next(one for one in request.advertisements if one.name == name)


def with_(request: SharesRequest, **changed: Advertisement | None) -> SharesRequest:
    """Replace the advertisement of `site_02`; None takes it out."""
    by_name: dict[str, Advertisement | None] = {one.name: one for one in request.advertisements}
    by_name |= {name.replace("_", "-"): one for name, one in changed.items()}
    listed = [one for one in by_name.values() if one is not None]
    return request.model_copy(update={"advertisements": listed})


def forged(identity: Identity, session: Session, **changed: Any) -> Advertisement:
    """Keys of someone else, properly signed by `identity`."""
    fields = {"sharing": new_key_pair().public, "masking": new_key_pair().public} | changed
    return advertise(
        identity, session.id, fields["sharing"], fields["masking"], commitment=new_secret()
    )


def test_the_honest_list_is_accepted(federation: Federation, request_: SharesRequest) -> None:
    federation.answer(A, request_)


def test_not_invited_or_too_few_invited(federation: Federation) -> None:
    session = federation.session(threshold=3)
    for invited in ([], [B, C, D, E], [A], [A, B]):
        request = messages.KeysRequest(session=session, invited=invited)
        assert federation.refuses(A, request) == "SECURE_REFUSED"
    federation.minimum = 5
    request = messages.KeysRequest(session=session, invited=[A, B, C, D])
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_no_setting_allows_a_sum_over_two(federation: Federation) -> None:
    federation.minimum = 1
    request = messages.KeysRequest(session=federation.session(threshold=2), invited=[A, B])
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_keys_are_given_once_per_attempt(federation: Federation) -> None:
    request = messages.KeysRequest(session=federation.session(attempt=4), invited=federation.names)
    federation.answer(A, request)
    assert federation.refuses(A, request) == "SECURE_REFUSED"
    for attempt, threshold in ((4, 5), (3, 4), (1, 4)):
        session = federation.session(attempt=attempt, threshold=threshold)
        again = messages.KeysRequest(session=session, invited=federation.names)
        assert federation.refuses(A, again) == "SECURE_REFUSED"


@pytest.mark.parametrize("threshold", [1, 2, 6])
def test_a_threshold_that_does_not_protect(federation: Federation, threshold: int) -> None:
    """A coordinator that leaves out its own check."""
    session = federation.session(threshold=threshold)
    invited = messages.KeysRequest(session=session, invited=federation.names)
    if threshold == 6:
        assert federation.refuses(A, invited) == "SECURE_REFUSED"
        return
    listed = []
    for name in federation.names:
        reply, _ = federation.answer(name, invited)
        assert isinstance(reply, messages.KeysReply)
        listed.append(reply.advertisement)
    request = SharesRequest(session=session, advertisements=listed)
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_half_of_the_sites_is_no_threshold() -> None:
    federation = Federation(6)
    session = federation.session(threshold=3)
    invited = messages.KeysRequest(session=session, invited=federation.names)
    replies = [federation.answer(name, invited)[0] for name in federation.names]
    listed = [reply.advertisement for reply in replies if isinstance(reply, messages.KeysReply)]
    request = SharesRequest(session=session, advertisements=listed)
    assert federation.refuses(A, request) == "SECURE_REFUSED"
    federation.answer(A, request.model_copy(update={"advertisements": listed[:5]}))


def test_the_threshold_cannot_change_between_stages(
    federation: Federation, request_: SharesRequest
) -> None:
    lower = federation.session(threshold=3)
    assert request_.session.threshold == 4
    changed = request_.model_copy(update={"session": lower})
    assert federation.refuses(A, changed) == "SECURE_REFUSED"


def test_too_few_in_the_list(federation: Federation, request_: SharesRequest) -> None:
    assert federation.refuses(A, with_(request_, site_02=None, site_03=None)) == "SECURE_REFUSED"
    federation.minimum = 5
    assert federation.refuses(A, with_(request_, site_02=None)) == "SECURE_REFUSED"
    empty = request_.model_copy(update={"advertisements": []})
    assert federation.refuses(A, empty) == "SECURE_REFUSED"


def test_own_keys_must_be_in_the_list_as_they_were(
    federation: Federation, request_: SharesRequest
) -> None:
    assert federation.refuses(A, with_(request_, site_01=None)) == "SECURE_REFUSED"
    own = advertised(request_, A)
    for field in ("sharing_key", "masking_key", "commitment"):
        changed = own.model_copy(update={field: new_key_pair().public})
        assert federation.refuses(A, with_(request_, site_01=changed)) == "SECURE_REFUSED"
    # Even keys that its own identity did sign: it did not give them now.
    resigned = forged(federation.identities[A], request_.session)
    assert federation.refuses(A, with_(request_, site_01=resigned)) == "SECURE_REFUSED"
    both = request_.model_copy(update={"advertisements": [*request_.advertisements, resigned]})
    assert federation.refuses(A, both) == "SECURE_REFUSED"


def test_replayed_keys_of_another_session(federation: Federation, request_: SharesRequest) -> None:
    """Keys that B signed in an earlier attempt, another round, another run."""
    others = [
        federation.session(attempt=2),
        federation.session(round_=2),
        federation.session(run="other"),
        federation.session(threshold=5),
    ]
    for session in others:
        old = forged(federation.identities[B], session)
        assert federation.refuses(A, with_(request_, site_02=old)) == "SECURE_REFUSED"
    federation.answer(
        A, with_(request_, site_02=forged(federation.identities[B], request_.session))
    )


def test_replayed_keys_of_an_earlier_attempt(federation: Federation) -> None:
    """As it happens in the protocol, with what B really sent in attempt 1."""
    first = federation.until("shares").requests()[A]
    second = federation.until("shares", federation.session(attempt=2)).requests()[A]
    assert isinstance(first, SharesRequest)
    assert isinstance(second, SharesRequest)
    mixed = with_(second, site_02=advertised(first, B))
    assert federation.refuses(A, mixed) == "SECURE_REFUSED"
    assert federation.refuses(A, first) == "SECURE_REFUSED"
    federation.answer(A, second)


def test_every_signed_field_counts(federation: Federation, request_: SharesRequest) -> None:
    theirs = advertised(request_, B)
    changes: list[dict[str, object]] = [
        {"sharing_key": new_key_pair().public},
        {"masking_key": new_key_pair().public},
        {"sharing_key": theirs.masking_key, "masking_key": theirs.sharing_key},
        {"commitment": new_secret()},
        {"certificate": "another"},
        {"signature": bytes(64)},
        {"signature": advertised(request_, C).signature},
    ]
    for change in changes:
        changed = theirs.model_copy(update=change)
        assert federation.refuses(A, with_(request_, site_02=changed)) == "SECURE_REFUSED"


def test_swapped_identities(federation: Federation, request_: SharesRequest) -> None:
    session = request_.session
    attacker = Identity.generate(B)
    cases = {
        "the attacker's key under a member's name": forged(attacker, session),
        "a member's key under another's name": forged(
            Identity(B, federation.identities[C].private_key), session
        ),
        "a member's keys renamed": advertised(request_, C).model_copy(update={"name": B}),
    }
    for what, advertisement in cases.items():
        code = federation.refuses(A, with_(request_, site_02=advertisement))
        assert code == "SECURE_REFUSED", what


def test_strangers_are_not_members(federation: Federation, request_: SharesRequest) -> None:
    stranger = forged(Identity.generate("stranger"), request_.session)
    longer = request_.model_copy(update={"advertisements": [*request_.advertisements, stranger]})
    assert federation.refuses(A, longer) == "MEMBER_UNKNOWN"
    shorter = with_(longer, site_02=None)
    assert federation.refuses(A, shorter) == "MEMBER_UNKNOWN"


def test_a_member_that_was_not_invited(federation: Federation) -> None:
    session = federation.session(threshold=3)
    few = messages.KeysRequest(session=session, invited=[A, B, C, D])
    listed = []
    for name in few.invited:
        reply, _ = federation.answer(name, few)
        assert isinstance(reply, messages.KeysReply)
        listed.append(reply.advertisement)
    late = forged(federation.identities[E], session)
    request = SharesRequest(session=session, advertisements=[*listed, late])
    assert federation.refuses(A, request) == "SECURE_REFUSED"
    federation.answer(A, request.model_copy(update={"advertisements": listed}))


def test_names_and_keys_are_distinct(federation: Federation, request_: SharesRequest) -> None:
    session = request_.session
    b = federation.identities[B]
    twice = request_.model_copy(
        update={"advertisements": [*request_.advertisements, advertised(request_, B)]}
    )
    assert federation.refuses(A, twice) == "SECURE_REFUSED"
    anew = [*request_.advertisements, forged(b, session)]
    two_lists = request_.model_copy(update={"advertisements": anew})
    assert federation.refuses(A, two_lists) == "SECURE_REFUSED"
    theirs, others = advertised(request_, B), advertised(request_, C)
    own = advertised(request_, A)
    for taken in (others.masking_key, others.sharing_key, own.masking_key):
        copied = forged(b, session, sharing=taken)
        assert federation.refuses(A, with_(request_, site_02=copied)) == "SECURE_REFUSED"
    same = forged(b, session, sharing=theirs.sharing_key, masking=theirs.sharing_key)
    assert federation.refuses(A, with_(request_, site_02=same)) == "SECURE_REFUSED"


def test_one_member_under_two_names(federation: Federation, request_: SharesRequest) -> None:
    """Where the list of members itself gives one key to two names."""
    b = federation.identities[B]
    keys = {name: identity.public_key for name, identity in federation.identities.items()}
    federation.members = PinnedMembers(keys | {C: b.public_key})
    doubled = forged(Identity(C, b.private_key), request_.session)
    assert federation.refuses(A, with_(request_, site_03=doubled)) == "SECURE_REFUSED"


def test_keys_that_agree_on_nothing_or_have_two_spellings(
    federation: Federation, request_: SharesRequest
) -> None:
    b, session = federation.identities[B], request_.session
    spelled = bytearray(advertised(request_, C).sharing_key)
    spelled[31] |= 0x80
    for key in (LOW_ORDER, bytes(spelled), (2**255 - 19).to_bytes(32, "little")):
        bad = forged(b, session, sharing=key)
        assert federation.refuses(A, with_(request_, site_02=bad)) == "SECURE_REFUSED"
    for key in (bytes(spelled), (2**255 - 19).to_bytes(32, "little")):
        bad = forged(b, session, masking=key)
        assert federation.refuses(A, with_(request_, site_02=bad)) == "SECURE_REFUSED"


def test_a_masking_key_of_low_order_is_found_when_it_is_used(federation: Federation) -> None:
    """A colluding member signs it itself: no site masks with what everyone can compute."""
    session = federation.session(threshold=3)
    coordinator = federation.until("shares", session)
    request = coordinator.requests()[A]
    assert isinstance(request, SharesRequest)
    pair = new_key_pair()
    bad = forged(federation.identities[E], session, sharing=pair.public, masking=LOW_ORDER)
    listed = with_(request, site_05=bad)
    sealed = {}
    for name in (A, B, C, D):
        reply, _ = federation.answer(name, listed)
        assert isinstance(reply, messages.SharesReply)
        if name != A:
            sealed[name] = reply.sealed[A]
    receiver = Party(A, advertised(listed, A).sharing_key)
    sender = Party(E, pair.public)
    key = sharing_key(pair.private, session_id=session.id, sender=sender, receiver=receiver)
    transcript = transcript_of(listed.advertisements, session.id)
    mine = seal(key, bytes(64), share_context(session.id, transcript, E, A))
    masked = messages.MaskedRequest(session=session, sealed=sealed | {E: mine})
    assert federation.refuses(A, masked) == "SECURE_REFUSED"
    # It is the key, not the forged share: without E all is well.
    federation.answer(A, masked.model_copy(update={"sealed": sealed}))


def test_stages_do_not_come_early_or_twice(federation: Federation) -> None:
    coordinator = federation.coordinator()
    invited = coordinator.requests()[A]
    federation.stage(coordinator)
    shares = coordinator.requests()[A]
    federation.stage(coordinator)
    masked = coordinator.requests()[A]
    other = Federation(5)
    assert other.refuses(A, shares) == "SECURE_REFUSED"
    other.answer(A, invited)
    assert other.refuses(A, masked) == "SECURE_REFUSED"
    # A second list would share the same secrets a second time.
    assert federation.refuses(A, shares) == "SECURE_REFUSED"
    assert federation.refuses(A, invited) == "SECURE_REFUSED"
