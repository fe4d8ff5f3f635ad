"""One way to turn a list of fields into bytes, for everything that is hashed, signed or bound."""

from __future__ import annotations

import hashlib

_PROTOCOL = "dermino secure aggregation 1"


def encode(purpose: str, *fields: bytes | str | int) -> bytes:
    """Protocol, purpose and fields, each behind its length: no two lists give the same bytes.

    Text is UTF-8, an integer 8 bytes, the highest first. What type a field has is fixed by the
    purpose, so that types are not encoded.

    Raises
    ------
    OverflowError
        For an integer below 0 or above 2^64 - 1.
    """
    parts = [_PROTOCOL.encode(), purpose.encode(), *map(_bytes_of, fields)]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def digest(purpose: str, *fields: bytes | str | int) -> bytes:
    """SHA-256 over :func:`encode`, 32 bytes."""
    return hashlib.sha256(encode(purpose, *fields)).digest()


def _bytes_of(field: bytes | str | int) -> bytes:
    if isinstance(field, int):
        return field.to_bytes(8, "big")
    return field.encode() if isinstance(field, str) else field
