"""Masks: a key stretched to one 64-bit number per parameter, with AES-256 in counter mode.

The counter starts at zero, without a nonce, because every key masks exactly one vector: a pair's
key is derived from keys that live for one session, in which a site masks once, and a site's own
from a seed that it draws for the session. A nonce has to differ only between uses of the same key.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dermino_strategies.secure_aggregation.ring import Vector

_CHUNK = 2**15
_CHUNK_BYTES = 8 * _CHUNK


def add_mask(vector: Vector, key: bytes, sign: int) -> None:
    """Add `sign` times the mask of a key to a vector [n] in place, modulo 2^64.

    Goes in steps of 256 KiB, which stay in the processor's cache: memory does not grow with n.

    Parameters
    ----------
    key
        32 bytes that mask no other vector.
    sign
        1 or -1.
    """
    if len(key) != 32 or sign not in (1, -1):
        raise ValueError("a mask needs a key of 32 bytes and a sign of 1 or -1")
    combine = np.add if sign == 1 else np.subtract
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(_CHUNK_BYTES)
    buffer = bytearray(_CHUNK_BYTES)
    # Little-endian on every machine, so that all sites read the same numbers.
    numbers = np.frombuffer(buffer, "<u8")
    for start in range(0, vector.size, _CHUNK):
        part = vector[start : start + _CHUNK]
        stream.update_into(memoryview(zeros)[: 8 * part.size], buffer)
        combine(part, numbers[: part.size], out=part)


def pair_sign(mine: str, other: str) -> int:
    """With which sign `mine` adds the mask it shares with `other`: the two signs cancel."""
    return 1 if other < mine else -1
