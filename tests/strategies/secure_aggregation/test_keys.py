"""Keys against RFC vectors and a second library; no key serves two ends."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation import keys
from dermino_strategies.secure_aggregation.encoding import digest, encode
from dermino_strategies.secure_aggregation.keys import Party

SESSION = bytes(range(32))
OTHER_SESSION = bytes(32)

# RFC 7748, section 6.1: Bob's private key, both public keys, and what they agree on.
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
AGREED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

LOW_ORDER = [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")]


def peer_hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    derived = HKDF(secret, 32, salt, SHA256, context=info)
    assert isinstance(derived, bytes)
    return derived


def test_agreement_is_x25519_then_hkdf() -> None:
    bob, alice = Party("bob", BOB_PUBLIC), Party("alice", ALICE_PUBLIC)
    key = keys.sharing_key(BOB, session_id=SESSION, sender=bob, receiver=alice)
    info = encode("share encryption", "bob", BOB_PUBLIC, "alice", ALICE_PUBLIC)
    assert key == peer_hkdf(AGREED, SESSION, info)
    key = keys.masking_key(BOB, session_id=SESSION, one=bob, other=alice)
    info = encode("pairwise mask", "alice", ALICE_PUBLIC, "bob", BOB_PUBLIC)
    assert key == peer_hkdf(AGREED, SESSION, info)


def test_own_mask_is_hkdf_of_the_seed() -> None:
    key = keys.self_mask_key(BOB, session_id=SESSION, name="bob")
    assert key == peer_hkdf(BOB, SESSION, encode("self mask", "bob"))


def test_commitment_is_a_hash_and_not_the_mask_key() -> None:
    found = keys.commitment_to(BOB, session_id=SESSION, name="bob")
    text = b"".join(
        len(part).to_bytes(8, "big") + part
        for part in (
            b"dermino secure aggregation 1",
            b"seed commitment",
            SESSION,
            b"bob",
            BOB,
        )
    )
    assert found == hashlib.sha256(text).digest()
    assert found != keys.self_mask_key(BOB, session_id=SESSION, name="bob")


def test_both_ends_agree() -> None:
    one, other = keys.new_key_pair(), keys.new_key_pair()
    a, b = Party("a", one.public), Party("b", other.public)
    for derive in (
        lambda private: keys.masking_key(private, session_id=SESSION, one=a, other=b),
        lambda private: keys.masking_key(private, session_id=SESSION, one=b, other=a),
        lambda private: keys.sharing_key(private, session_id=SESSION, sender=a, receiver=b),
    ):
        assert derive(one.private) == derive(other.private)


def test_every_end_has_a_key_of_its_own() -> None:
    """Purpose, direction, session, names and keys all change the key."""
    mine, other, third = keys.new_key_pair(), keys.new_key_pair(), keys.new_key_pair()
    me = Party("a", mine.public)
    found = []
    for session_id, public, name in itertools.product(
        (SESSION, OTHER_SESSION), (other.public, third.public), ("b", "c")
    ):
        you = Party(name, public)
        found += [
            keys.masking_key(mine.private, session_id=session_id, one=me, other=you),
            keys.sharing_key(mine.private, session_id=session_id, sender=me, receiver=you),
            keys.sharing_key(mine.private, session_id=session_id, sender=you, receiver=me),
        ]
    for session_id, name in itertools.product((SESSION, OTHER_SESSION), ("a", "b")):
        found.append(keys.self_mask_key(mine.private, session_id=session_id, name=name))
        found.append(keys.commitment_to(mine.private, session_id=session_id, name=name))
    assert len(found) == len(set(found)) == 32
    assert {len(key) for key in found} == {32}


@pytest.mark.parametrize("public", LOW_ORDER)
def test_keys_of_low_order_are_refused(public: bytes) -> None:
    mine = keys.new_key_pair()
    with pytest.raises(DerminoError, match="low order") as caught:
        keys.masking_key(
            mine.private, session_id=SESSION, one=Party("a", mine.public), other=Party("b", public)
        )
    assert caught.value.code == "SECURE_REFUSED"


def test_one_key_has_one_spelling() -> None:
    assert keys.is_canonical(ALICE_PUBLIC)
    spelled = bytearray(ALICE_PUBLIC)
    spelled[31] |= 0x80
    for other in (bytes(spelled), (2**255 - 19).to_bytes(32, "little"), b"\xff" * 32, b"short"):
        assert not keys.is_canonical(other)
    with pytest.raises(DerminoError):
        keys.masking_key(
            BOB,
            session_id=SESSION,
            one=Party("bob", BOB_PUBLIC),
            other=Party("alice", bytes(spelled)),
        )


def test_a_private_key_of_neither_party_is_refused() -> None:
    a, b = (Party(name, keys.new_key_pair().public) for name in "ab")
    with pytest.raises(DerminoError, match="not the one that was advertised"):
        keys.masking_key(keys.new_key_pair().private, session_id=SESSION, one=a, other=b)


def test_sealing_is_aes_gcm() -> None:
    key = keys.new_secret()
    sealed = keys.seal(key, b"plain", b"context")
    peer = AES.new(key, AES.MODE_GCM, nonce=sealed[:12])
    peer.update(b"context")
    assert peer.decrypt_and_verify(sealed[12:-16], sealed[-16:]) == b"plain"
    assert keys.unseal(key, sealed, b"context") == b"plain"
    assert keys.seal(key, b"plain", b"context") != sealed


def test_every_byte_of_a_sealed_share_counts() -> None:
    key = keys.new_secret()
    sealed = keys.seal(key, bytes(64), b"context")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(DerminoError) as caught:
            keys.unseal(key, bytes(changed), b"context")
        assert caught.value.code == "SECURE_REFUSED"
    for wrong_key, text, context in (
        (keys.new_secret(), sealed, b"context"),
        (key, sealed, b"another"),
        (key, sealed[:-1], b"context"),
        (key, b"", b"context"),
    ):
        with pytest.raises(DerminoError):
            keys.unseal(wrong_key, text, context)


def test_no_private_half_in_a_log() -> None:
    pair = keys.new_key_pair()
    assert pair.private.hex() not in repr(pair)
    assert repr(pair.private) not in repr(pair)
    assert keys.public_of(pair.private) == pair.public


def test_no_two_lists_are_encoded_alike() -> None:
    lists: list[tuple[bytes | str | int, ...]] = [
        (),
        ("",),
        ("", ""),
        ("ab",),
        ("a", "b"),
        ("b", "a"),
        ("a", "b", ""),
        (b"a\0b",),
        (1,),
        (256,),
        (1, 256),
    ]
    encoded = [encode("purpose", *fields) for fields in lists]
    encoded += [encode("purposea", "b"), encode("", "purpose", "a", "b")]
    assert len(set(encoded)) == len(encoded)
    assert digest("purpose", "a") == hashlib.sha256(encode("purpose", "a")).digest()
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError):
            encode("purpose", wrong)
