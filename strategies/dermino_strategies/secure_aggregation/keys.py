"""Key agreement, the keys derived from it, and the encryption of shares.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and AES-256-GCM, all from `cryptography`. No key serves
two ends: the session is the salt of every derivation, and purpose, names and public keys of both
parties are its info.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation.encoding import digest, encode

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16

_FIELD = 2**255 - 19


@dataclass(frozen=True)
class KeyPair:
    """An ephemeral X25519 key, both halves as 32 raw bytes."""

    private: bytes
    public: bytes

    def __repr__(self) -> str:
        """Without the private half, which must not end up in a log."""
        return f"KeyPair(public={self.public.hex()})"


@dataclass(frozen=True)
class Party:
    """One end of an agreement: a site's name and the public key it uses there."""

    name: str
    public: bytes


def new_key_pair() -> KeyPair:
    """A fresh key from the operating system's random numbers."""
    key = X25519PrivateKey.generate()
    return KeyPair(key.private_bytes_raw(), key.public_key().public_bytes_raw())


def new_secret() -> bytes:
    """32 fresh random bytes."""
    return os.urandom(KEY_BYTES)


def public_of(private: bytes) -> bytes:
    """The public half of a private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_canonical(public: bytes) -> bool:
    """Whether these 32 bytes are the one way to write this public key.

    X25519 itself ignores the highest bit and reduces the rest, so that one key could be
    advertised under several spellings and pass for several keys.
    """
    return len(public) == KEY_BYTES and int.from_bytes(public, "little") < _FIELD


def sharing_key(private: bytes, *, session_id: bytes, sender: Party, receiver: Party) -> bytes:
    """The AES key under which `sender` encrypts its one message to `receiver`, 32 bytes.

    `private` belongs to either of the two. Directed: the way back has another key.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` if the other one's public key is of low order.
    """
    return _agreed(private, "share encryption", session_id, sender, receiver)


def masking_key(private: bytes, *, session_id: bytes, one: Party, other: Party) -> bytes:
    """The key of the mask that a pair of sites share, 32 bytes, the same from both ends.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` if the other one's public key is of low order.
    """
    first, second = sorted((one, other), key=lambda party: party.name)
    return _agreed(private, "pairwise mask", session_id, first, second)


def self_mask_key(seed: bytes, *, session_id: bytes, name: str) -> bytes:
    """The key of the mask that a site adds on its own, 32 bytes, from its 32-byte seed b."""
    return _hkdf(seed, session_id, encode("self mask", name))


def commitment_to(seed: bytes, *, session_id: bytes, name: str) -> bytes:
    """What a site advertises of its seed b, 32 bytes, so that a wrong reconstruction is noticed.

    The hash hides b, because b is 256 random bits, and binds to it.
    """
    return digest("seed commitment", session_id, name, seed)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM: a random nonce of 12 bytes, the ciphertext, a tag of 16 bytes."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """What :func:`seal` encrypted under the same key and associated data.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` if it was not.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        raise DerminoError(
            "SECURE_REFUSED", "An encrypted share was changed or is for somebody else."
        ) from None


def _agreed(private: bytes, purpose: str, session_id: bytes, first: Party, second: Party) -> bytes:
    key = X25519PrivateKey.from_private_bytes(private)
    mine = key.public_key().public_bytes_raw()
    theirs = second.public if mine == first.public else first.public
    if mine not in (first.public, second.public) or not is_canonical(theirs):
        raise DerminoError("SECURE_REFUSED", "A public key is not the one that was advertised.")
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise DerminoError(
            "SECURE_REFUSED", "A public key is of low order: it agrees on nothing secret."
        ) from None
    info = encode(purpose, first.name, first.public, second.name, second.public)
    return _hkdf(shared, session_id, info)


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)
