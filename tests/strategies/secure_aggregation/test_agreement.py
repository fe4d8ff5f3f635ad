"""What is signed and bound: every argument counts, order where it should not matter does not."""

from __future__ import annotations

from in_process import site_names

from dermino_strategies.secure_aggregation.agreement import (
    advertise,
    confirmation_bytes,
    share_context,
    transcript_of,
    verify_advertisements,
)
from dermino_strategies.secure_aggregation.identity import Identity, PinnedMembers
from dermino_strategies.secure_aggregation.keys import new_key_pair, new_secret
from dermino_strategies.secure_aggregation.messages import Advertisement

ONE, OTHER = bytes(32), bytes(31) + b"\1"


def test_the_context_of_a_share() -> None:
    contexts = {
        share_context(ONE, ONE, "a", "b"),
        share_context(OTHER, ONE, "a", "b"),
        share_context(ONE, OTHER, "a", "b"),
        share_context(ONE, ONE, "b", "a"),
        share_context(ONE, ONE, "a", "c"),
        share_context(ONE, ONE, "c", "b"),
        share_context(ONE, ONE, "ab", ""),
    }
    assert len(contexts) == 7


def test_what_is_confirmed() -> None:
    signed = [
        confirmation_bytes(ONE, ONE, ["a", "b"], ["a"]),
        confirmation_bytes(OTHER, ONE, ["a", "b"], ["a"]),
        confirmation_bytes(ONE, OTHER, ["a", "b"], ["a"]),
        confirmation_bytes(ONE, ONE, ["a", "b", "c"], ["a"]),
        confirmation_bytes(ONE, ONE, ["a", "b"], ["b"]),
        confirmation_bytes(ONE, ONE, ["a"], ["a", "b"]),
        confirmation_bytes(ONE, ONE, ["a", "b", "a"], []),
        confirmation_bytes(ONE, ONE, ["ab"], ["a"]),
    ]
    assert len(set(signed)) == len(signed)
    assert confirmation_bytes(ONE, ONE, ["b", "a"], ["a"]) == signed[0]


def test_the_transcript() -> None:
    identities = [Identity.generate(name) for name in site_names(3)]

    def keys_of(identity: Identity) -> Advertisement:
        sharing, masking = new_key_pair().public, new_key_pair().public
        return advertise(identity, ONE, sharing, masking, new_secret())

    listed = [keys_of(identity) for identity in identities]
    members = PinnedMembers({one.name: one.public_key for one in identities})
    assert set(verify_advertisements(listed, ONE, members)) == set(site_names(3))
    transcript = transcript_of(listed, ONE)
    assert len(transcript) == 32
    assert transcript_of(reversed(listed), ONE) == transcript
    others = [transcript_of(listed, OTHER), transcript_of(listed[:2], ONE), transcript_of([], ONE)]
    changes: list[dict[str, object]] = [
        {"name": "site-09"},
        {"certificate": "text"},
        {"sharing_key": ONE},
        {"masking_key": ONE},
        {"commitment": ONE},
        {"signature": bytes(64)},
    ]
    for change in changes:
        changed = listed[1].model_copy(update=change)
        others.append(transcript_of([listed[0], changed, listed[2]], ONE))
    assert len({transcript, *others}) == len(others) + 1
