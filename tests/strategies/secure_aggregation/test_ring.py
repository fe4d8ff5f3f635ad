"""Fixed point against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermino_core.errors import DerminoError
from dermino_strategies.fedavg import FedAvg
from dermino_strategies.secure_aggregation.ring import FixedPoint

LIMITS = st.floats(2.0**-40, 2.0**61, allow_nan=False)


def point(limit: float, participants: int, size: int = 3) -> FixedPoint:
    return FixedPoint({"x": limit}, {"x": np.zeros(size)}, participants)


def ring_sum(vectors: list[np.ndarray]) -> np.ndarray:
    """Modulo 2^64 by Python's own integers."""
    totals = [sum(map(int, column)) % 2**64 for column in zip(*vectors, strict=True)]
    return np.array(totals, np.uint64)


@given(LIMITS, st.integers(1, 1000))
def test_the_scale_is_the_largest_that_cannot_overflow(limit: float, participants: int) -> None:
    step = Fraction(point(limit, participants).resolution["x"])
    largest = participants * Fraction(limit) / step
    assert largest < 2**62
    assert largest >= 2**60  # 2^61, but for a product that rounds up to a power of two


@given(LIMITS, st.integers(1, 1000), st.sampled_from([-1.0, 1.0]))
def test_maximal_summands_do_not_overflow(limit: float, participants: int, sign: float) -> None:
    fixed = point(limit, participants, 2)
    one = fixed.flatten({"x": np.array([sign * limit, -sign * limit])})
    # K equal summands, added modulo 2^64.
    total = np.array([int(v) * participants % 2**64 for v in one], np.uint64)
    found = fixed.unflatten(total)["x"]
    most = participants * fixed.resolution["x"] / 2
    exact = participants * Fraction(limit)
    for value, wanted in zip(found, (sign * exact, -sign * exact), strict=True):
        assert abs(Fraction(value) - Fraction(wanted)) <= most + abs(exact) / 2**53


@settings(max_examples=60)
@given(LIMITS, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_error_of_a_sum(limit: float, participants: int, seed: int) -> None:
    """Half a step for each site, and one rounding to float64."""
    fixed = point(limit, participants)
    rng = np.random.default_rng(seed)
    summands = [
        rng.uniform(-limit, limit, 3) * 2.0 ** -rng.integers(0, 62, 3) for _ in range(participants)
    ]
    total = ring_sum([fixed.flatten({"x": summand}) for summand in summands])
    found = fixed.unflatten(total)["x"]
    half = participants * Fraction(fixed.resolution["x"]) / 2
    for i in range(3):
        wanted = sum(Fraction(float(summand[i])) for summand in summands)
        error = abs(Fraction(float(found[i])) - wanted)
        assert error <= half + (abs(wanted) + half) / 2**53


def test_values_go_to_the_nearest_step() -> None:
    fixed = point(2.0**59, 1, 6)
    assert fixed.resolution == {"x": 0.25}
    values = np.array([0.2, -0.2, 0.1, -0.1, 7.9, -7.9])
    found = fixed.unflatten(fixed.flatten({"x": values}))["x"]
    np.testing.assert_array_equal(found, [0.25, -0.25, 0, 0, 8, -8])


def test_whole_numbers_come_out_exactly() -> None:
    fixed = FixedPoint({"examples": 2.0**24}, {"examples": np.zeros(1)}, 10)
    counts = [16_777_216, 1, 0, 12_345_677, 3, 5, 7, 11, 13, 16_777_215]
    total = ring_sum([fixed.flatten({"examples": np.array([float(n)])}) for n in counts])
    assert fixed.unflatten(total)["examples"][0] == sum(counts)


def test_arrays_lie_in_the_order_of_their_names() -> None:
    like = {"b": np.zeros((2, 2)), "a": np.zeros(()), "c": np.zeros((0, 4))}
    fixed = FixedPoint({"a": 1.0, "b": 1.0, "c": 1.0}, like, 1)
    arrays = {"b": np.array([[0.25, -0.5], [0.0, 1.0]]), "a": np.array(-1.0), "c": like["c"]}
    vector = fixed.flatten(arrays)
    assert vector.dtype == np.uint64
    assert fixed.length == len(vector) == 5
    step = fixed.resolution["a"]
    assert [v if v < 2**63 else v - 2**64 for v in map(int, vector)] == [
        round(x / step) for x in (-1.0, 0.25, -0.5, 0.0, 1.0)
    ]
    back = fixed.unflatten(vector)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == np.float64
        assert back[name].shape == array.shape


def test_long_arrays_go_in_chunks() -> None:
    size = 3 * 2**16 + 5
    values = np.random.default_rng(0).uniform(-1, 1, size)
    fixed = point(1.0, 4, size)
    # Steps of 2^-59: exact for all doubles of that size but the smallest.
    np.testing.assert_allclose(
        fixed.unflatten(fixed.flatten({"x": values}))["x"], values, rtol=0, atol=2.0**-60
    )
    values[2**17 + 1] = 1.0000000001
    with pytest.raises(DerminoError, match="above 1"):
        fixed.flatten({"x": values})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.0000001, -1.0000001, 1e300])
def test_values_out_of_bounds_are_refused_not_clipped(bad: float) -> None:
    with pytest.raises(DerminoError) as caught:
        point(1.0, 3).flatten({"x": np.array([0.0, bad, 0.0])})
    assert caught.value.code == "SECURE_REFUSED"


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"y": np.zeros(3)},
        {"x": np.zeros(3), "y": np.zeros(3)},
        {"x": np.zeros(4)},
        {"x": np.zeros((3, 1))},
        {"x": np.zeros(3, np.complex128)},
        {"x": np.array(["a", "b", "c"])},
    ],
)
def test_other_arrays_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(DerminoError) as caught:
        point(1.0, 3).flatten(arrays)
    assert caught.value.code == "SECURE_REFUSED"


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan, np.inf, 1e-300, 1e300])
def test_limits_that_cannot_be_used(limit: float) -> None:
    with pytest.raises(DerminoError, match="limit"):
        point(limit, 3)


@pytest.mark.parametrize("participants", [0, -1, 1001])
def test_numbers_of_sites_that_cannot_be_summed(participants: int) -> None:
    with pytest.raises(DerminoError, match="sites"):
        point(1.0, participants)


def test_limits_and_arrays_have_the_same_names() -> None:
    with pytest.raises(DerminoError, match="Limits are for"):
        FixedPoint({"x": 1.0}, {"x": np.zeros(1), "y": np.zeros(1)}, 3)


def test_a_sum_with_a_mask_left_in_it_is_noticed() -> None:
    fixed = point(1.0, 3, 64)
    noise = np.random.default_rng(0).integers(0, 2**64, 64, dtype=np.uint64)
    with pytest.raises(DerminoError) as caught:
        fixed.unflatten(noise)
    assert caught.value.code == "SECURE_ABORTED"


@pytest.mark.parametrize("wrong", [np.zeros(2, np.uint64), np.zeros(3), np.zeros((3, 1), "<u8")])
def test_a_sum_of_another_shape(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="shape"):
        point(1.0, 3).unflatten(wrong)


def test_fedavg_fits_with_room() -> None:
    """The limits of FedAvg leave steps far below what float32 heads can show."""
    strategy = FedAvg()
    arrays = strategy.initial_arrays(2, 4, seed=0)
    fixed = FixedPoint(strategy.summand_limits(arrays), strategy.summand_like(arrays), 100)
    assert math.log2(fixed.resolution["weight"]) <= -20
    assert fixed.resolution["examples"] <= 2.0**-30
