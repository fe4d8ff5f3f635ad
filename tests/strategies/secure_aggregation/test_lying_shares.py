"""A coordinator that lies about lists of sites and about shares: from stage 1 to stage 2."""

from __future__ import annotations

import pytest
from in_process import TASK, Federation

from dermino_strategies.secure_aggregation.agreement import advertise
from dermino_strategies.secure_aggregation.keys import new_key_pair, new_secret
from dermino_strategies.secure_aggregation.messages import (
    MaskedRequest,
    SharesReply,
    SharesRequest,
)

A, B, C, D, E = (f"site-{i:02d}" for i in range(1, 6))


@pytest.fixture
def federation() -> Federation:
    return Federation(5)


def masked_request(federation: Federation, name: str = A) -> MaskedRequest:
    request = federation.until("masked", federation.session(threshold=3)).requests()[name]
    assert isinstance(request, MaskedRequest)
    return request


def test_different_lists_to_different_sites(federation: Federation) -> None:
    """A is shown four sites, the others five: no share crosses between the two views."""
    coordinator = federation.until("shares", federation.session(threshold=3))
    requests = coordinator.requests()
    full = requests[B]
    assert isinstance(full, SharesRequest)
    short = full.model_copy(
        update={"advertisements": [one for one in full.advertisements if one.name != E]}
    )
    for name in federation.names:
        reply, _ = federation.answer(name, short if name == A else full)
        assert isinstance(reply, SharesReply)
        sealed = dict(reply.sealed)
        if name == A:
            # The lie has to go on: there is nothing for E.
            sealed[E] = bytes(len(sealed[B]))
        coordinator.receive(name, reply.model_copy(update={"sealed": sealed}))
    coordinator.advance()
    for name, request in coordinator.requests().items():
        assert isinstance(request, MaskedRequest)
        assert federation.refuses(name, request) == "SECURE_REFUSED"
    # Leaving A out of what the others see does not save it for A.
    request = coordinator.requests()[A]
    assert isinstance(request, MaskedRequest)
    without = {n: s for n, s in request.sealed.items() if n != E}
    assert federation.refuses(A, request.model_copy(update={"sealed": without})) == "SECURE_REFUSED"


def test_one_site_is_shown_other_keys_of_a_member(federation: Federation) -> None:
    """A colluding member signs two sets of keys; each site sees one of them."""
    coordinator = federation.until("shares", federation.session(threshold=3))
    requests = coordinator.requests()
    second = advertise(
        federation.identities[E],
        coordinator.session.id,
        new_key_pair().public,
        new_key_pair().public,
        new_secret(),
    )
    for name, request in requests.items():
        assert isinstance(request, SharesRequest)
        if name == A:
            others = [one for one in request.advertisements if one.name != E]
            request = request.model_copy(update={"advertisements": [*others, second]})
        coordinator.receive(name, *federation.answer(name, request))
    coordinator.advance()
    for name in (A, B, C, D):
        assert federation.refuses(name, coordinator.requests()[name]) == "SECURE_REFUSED"


def test_shares_cannot_be_altered_or_swapped(federation: Federation) -> None:
    coordinator = federation.until("masked", federation.session(threshold=3))
    request, others = coordinator.requests()[A], coordinator.requests()[B]
    assert isinstance(request, MaskedRequest)
    assert isinstance(others, MaskedRequest)
    first = bytes([request.sealed[B][0] ^ 1]) + request.sealed[B][1:]
    last = request.sealed[B][:-1] + bytes([request.sealed[B][-1] ^ 1])
    changes = {
        "between senders": {B: request.sealed[C], C: request.sealed[B]},
        "twice": {B: request.sealed[C]},
        "meant for another": {C: others.sealed[C]},
        "sent back to its sender": {B: others.sealed[A]},
        "nonce": {B: first},
        "tag": {B: last},
        "nothing": {B: bytes(len(last))},
    }
    for what, change in changes.items():
        changed = request.model_copy(update={"sealed": request.sealed | change})
        assert federation.refuses(A, changed) == "SECURE_REFUSED", what
    federation.answer(A, request)


def test_shares_of_an_earlier_attempt(federation: Federation) -> None:
    old = masked_request(federation)
    session = federation.session(attempt=2, threshold=3)
    new = federation.until("masked", session).requests()[A]
    assert isinstance(new, MaskedRequest)
    mixed = new.model_copy(update={"sealed": new.sealed | {B: old.sealed[B]}})
    assert federation.refuses(A, mixed) == "SECURE_REFUSED"
    # The whole old attempt is over for this site, though it never sent a vector in it.
    assert federation.refuses(A, old) == "SECURE_REFUSED"
    federation.answer(A, new)


def test_too_few_or_unknown_senders(federation: Federation) -> None:
    request = masked_request(federation)
    names = sorted(request.sealed)
    for sealed in (
        {},
        {names[0]: request.sealed[names[0]]},
        request.sealed | {"stranger": request.sealed[B]},
        request.sealed | {A: request.sealed[B]},
    ):
        changed = request.model_copy(update={"sealed": sealed})
        assert federation.refuses(A, changed) == "SECURE_REFUSED"
    federation.minimum = 4
    two = {name: request.sealed[name] for name in names[:2]}
    assert federation.refuses(A, request.model_copy(update={"sealed": two})) == "SECURE_REFUSED"
    federation.minimum = 3
    federation.answer(A, request.model_copy(update={"sealed": two}))


def test_a_second_masked_vector(federation: Federation) -> None:
    request = masked_request(federation)
    federation.answer(A, request)
    fewer = {name: sealed for name, sealed in request.sealed.items() if name != E}
    for again in (request, request.model_copy(update={"sealed": fewer})):
        assert federation.refuses(A, again) == "SECURE_REFUSED"


def test_values_out_of_bounds_are_not_sent_and_not_tried_again(federation: Federation) -> None:
    request = masked_request(federation)
    federation.summands[A]["bias"] = federation.summands[A]["bias"] + 100
    federation.fails("SECURE_REFUSED", lambda: federation.answer(A, request))
    federation.summands[A]["bias"] = federation.summands[B]["bias"]
    assert federation.refuses(A, request) == "SECURE_REFUSED"


def test_another_task(federation: Federation) -> None:
    """Other arrays than the session was made for: the site's own digest does not fit."""
    request = masked_request(federation)
    federation.fails(
        "SECURE_REFUSED",
        lambda: federation.site(A).masked(
            request,
            lambda: federation.summands[A],
            limits=federation.limits,
            like=federation.like,
            task_digest="cd" * 32,
        ),
    )
    federation.answer(A, request)
    assert request.session.task_digest == TASK
