"""Masks against AES itself."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from Crypto.Cipher import AES

from dermino_strategies.secure_aggregation.masks import add_mask, pair_sign

# NIST AESAVS, KeySbox 256, count 0: this key on a block of zeros, which is the first counter.
KEY = bytes.fromhex("c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558")
FIRST_BLOCK = bytes.fromhex("46f2fb342d6f0ab477476fc501242c5f")


def mask(key: bytes, size: int) -> np.ndarray:
    vector = np.zeros(size, np.uint64)
    add_mask(vector, key, 1)
    return vector


def by_blocks(key: bytes, size: int) -> np.ndarray:
    """Counter mode spelled out: the counters 0, 1, 2, ... encrypted one by one."""
    cipher = AES.new(key, AES.MODE_ECB)
    counters = b"".join(i.to_bytes(16, "big") for i in range((size + 1) // 2))
    return np.frombuffer(cipher.encrypt(counters), "<u8")[:size].astype(np.uint64)


def test_the_first_block_is_the_one_of_nist() -> None:
    assert mask(KEY, 2).astype("<u8").tobytes() == FIRST_BLOCK


@pytest.mark.parametrize("size", [0, 1, 2, 3, 2**15 - 1, 2**15, 2**15 + 1, 3 * 2**15 + 7])
def test_a_mask_is_the_keystream(size: int) -> None:
    key = os.urandom(32)
    np.testing.assert_array_equal(mask(key, size), by_blocks(key, size))


def test_adding_and_taking_away_cancel_modulo_2_to_the_64() -> None:
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 2**64, 70_001, dtype=np.uint64)
    vector = plain.copy()
    add_mask(vector, KEY, 1)
    wanted = [(int(a) + int(b)) % 2**64 for a, b in zip(plain, by_blocks(KEY, 70_001), strict=True)]
    np.testing.assert_array_equal(vector, np.array(wanted, np.uint64))
    add_mask(vector, KEY, -1)
    np.testing.assert_array_equal(vector, plain)


def test_memory_does_not_grow_with_the_vector() -> None:
    vector = np.zeros(4_000_000, np.uint64)
    tracemalloc.start()
    add_mask(vector, KEY, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


@pytest.mark.parametrize(("key", "sign"), [(bytes(16), 1), (bytes(32), 0), (bytes(32), 2)])
def test_short_keys_and_odd_signs(key: bytes, sign: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        add_mask(np.zeros(1, np.uint64), key, sign)


def test_signs_of_a_pair_cancel() -> None:
    """As in the protocol: plus for names before one's own, minus for names after it."""
    assert pair_sign("b", "a") == 1
    assert pair_sign("a", "b") == -1
