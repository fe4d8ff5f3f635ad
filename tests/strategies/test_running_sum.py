"""A sum in the order of names, whoever answers first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dermino_strategies.running_sum import RunningSum

NAMES = ["a", "b", "c", "d", "e"]
SUMMANDS = {
    name: {"x": np.array([[value, 1e-3]]), "n": np.array([1.0])}
    for name, value in zip(NAMES, (1e16, 3.14, -1e16, 2.72, 0.1), strict=True)
}


@given(order=st.permutations(NAMES), answered=st.sets(st.sampled_from(NAMES), min_size=1))
def test_any_order_gives_the_bits_of_the_order_of_names(
    order: list[str], answered: set[str]
) -> None:
    running = RunningSum(NAMES)
    for name in order:
        if name in answered:
            running.add(name, SUMMANDS[name])
    total = running.total()
    by_hand = np.zeros((1, 2))
    for name in sorted(answered):
        by_hand = by_hand + SUMMANDS[name]["x"]
    assert total["x"].tobytes() == by_hand.tobytes()
    assert total["n"][0] == len(answered)


def test_the_order_of_arrival_would_have_mattered() -> None:
    """What the class is for: the same summands, added as they come, differ."""
    forwards = sum(SUMMANDS[name]["x"][0, 0] for name in NAMES)
    backwards = sum(SUMMANDS[name]["x"][0, 0] for name in reversed(NAMES))
    assert forwards != backwards


def test_the_first_summand_is_not_changed() -> None:
    first = np.array([1.0])
    running = RunningSum(["a", "b"])
    running.add("a", {"x": first})
    running.add("b", {"x": np.array([2.0])})
    assert running.total()["x"][0] == 3.0
    assert first[0] == 1.0


def test_integers_are_added_as_float64() -> None:
    running = RunningSum(["a", "b"])
    running.add("a", {"x": np.array([2**62])})
    running.add("b", {"x": np.array([2**62])})
    assert running.total()["x"].dtype == np.float64
    assert running.total()["x"][0] == 2.0**63


def test_nobody_came() -> None:
    assert RunningSum(["a"]).total() == {}
