"""Shamir's secret sharing of 32-byte secrets, by pycryptodome.

Shamir 1979, "How to Share a Secret", over GF(2^128): a secret goes in two halves of 16 bytes. Any
`threshold` shares give it back, fewer tell nothing about it. A wrong share gives a wrong secret
without a word, so whoever combines must hold the result against a public key or a commitment.
"""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

SECRET_BYTES = 32
_HALF = 16


def split_secret(secret: bytes, threshold: int, count: int) -> dict[int, bytes]:
    """`count` shares of 32 bytes by their indices 1 .. `count`, any `threshold` of them enough.

    Raises
    ------
    ValueError
        If the secret is not 32 bytes long, or 2 <= threshold <= count does not hold.
    """
    if len(secret) != SECRET_BYTES or not 2 <= threshold <= count:
        raise ValueError("a secret has 32 bytes, and 2 <= threshold <= count")
    halves = [
        dict(Shamir.split(threshold, count, half, ssss=False))
        for half in (secret[:_HALF], secret[_HALF:])
    ]
    return {index: halves[0][index] + halves[1][index] for index in range(1, count + 1)}


def combine_secret(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from `threshold` of its shares, those of the lowest indices.

    Raises
    ------
    ValueError
        If there are fewer, or one is not 32 bytes long.
    """
    chosen = sorted(shares)[:threshold]
    if len(chosen) < threshold or any(len(shares[i]) != SECRET_BYTES for i in chosen):
        raise ValueError(f"a secret needs {threshold} shares of 32 bytes")
    halves = [
        Shamir.combine([(index, shares[index][part]) for index in chosen], ssss=False)
        for part in (slice(_HALF), slice(_HALF, None))
    ]
    return halves[0] + halves[1]
