"""Shamir: any t of n, never t - 1."""

from __future__ import annotations

import itertools
import os

import pytest

from dermino_strategies.secure_aggregation.shares import combine_secret, split_secret

_FIELD = (1 << 128) | 0b10000111


def times(a: int, b: int) -> int:
    """In GF(2^128), by the school method."""
    product = 0
    for bit in range(128):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(255, 127, -1):
        if product >> bit & 1:
            product ^= _FIELD << (bit - 128)
    return product


def inverse(a: int) -> int:
    """a^(2^128 - 2), Fermat."""
    result, power = 1, a
    for _ in range(127):
        power = times(power, power)
        result = times(result, power)
    return result


def interpolated(points: dict[int, int], at: int) -> int:
    """The polynomial through the points, by Lagrange."""
    total = 0
    for x, y in points.items():
        term = y
        for other in points:
            if other != x:
                term = times(times(term, at ^ other), inverse(x ^ other))
        total ^= term
    return total


@pytest.mark.parametrize(("threshold", "count"), [(2, 2), (3, 5), (4, 5), (5, 7)])
def test_any_threshold_of_shares_is_enough(threshold: int, count: int) -> None:
    secret = os.urandom(32)
    shares = split_secret(secret, threshold, count)
    assert list(shares) == list(range(1, count + 1))
    assert {len(share) for share in shares.values()} == {32}
    for chosen in itertools.combinations(shares, threshold):
        assert combine_secret({i: shares[i] for i in chosen}, threshold) == secret
    assert combine_secret(shares, threshold) == secret


def test_shares_lie_on_a_polynomial_through_the_secret() -> None:
    secret = os.urandom(32)
    shares = split_secret(secret, 3, 5)
    for part in (slice(16), slice(16, None)):
        points = {i: int.from_bytes(shares[i][part], "big") for i in (1, 2, 5)}
        assert interpolated(points, 0) == int.from_bytes(secret[part], "big")
        assert interpolated(points, 4) == int.from_bytes(shares[4][part], "big")


def test_fewer_shares_fit_every_secret() -> None:
    """With t - 1 shares, any other secret is just as possible: there is a share that gives it."""
    secret, other = os.urandom(32), os.urandom(32)
    shares = split_secret(secret, 3, 5)
    forged = b""
    for part in (slice(16), slice(16, None)):
        points = {0: int.from_bytes(other[part], "big")}
        points |= {i: int.from_bytes(shares[i][part], "big") for i in (2, 4)}
        forged += interpolated(points, 5).to_bytes(16, "big")
    assert combine_secret({2: shares[2], 4: shares[4], 5: forged}, 3) == other
    assert combine_secret({2: shares[2], 4: shares[4]}, 2) != secret


def test_two_splits_share_nothing() -> None:
    secret = os.urandom(32)
    one, other = split_secret(secret, 3, 5), split_secret(secret, 3, 5)
    assert not set(one.values()) & set(other.values())
    halves = [share[:16] for share in one.values()] + [share[16:] for share in one.values()]
    assert len(set(halves)) == 10
    mixed = {1: one[1], 2: one[2], 3: other[3]}
    assert combine_secret(mixed, 3) != secret


def test_what_cannot_be_shared_or_combined() -> None:
    for secret, threshold, count in ((bytes(16), 3, 5), (bytes(32), 6, 5), (bytes(32), 1, 5)):
        with pytest.raises(ValueError, match="32 bytes"):
            split_secret(secret, threshold, count)
    shares = split_secret(bytes(32), 3, 5)
    with pytest.raises(ValueError, match="3 shares"):
        combine_secret({1: shares[1], 2: shares[2]}, 3)
    with pytest.raises(ValueError, match="32 bytes"):
        combine_secret({1: shares[1], 2: shares[2], 3: shares[3][:16]}, 3)
