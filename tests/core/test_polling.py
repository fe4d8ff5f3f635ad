"""Pauses between two looks."""

from __future__ import annotations

import pytest

from dermino_core.polling import pause


@pytest.mark.parametrize(
    ("waited", "expected"), [(0, 0.1), (0.9, 0.1), (2, 0.2), (10, 1), (29, 2.9), (3600, 3)]
)
def test_a_tenth_of_the_waiting_and_at_most_the_longest(waited: float, expected: float) -> None:
    assert pause(waited, 3.0) == pytest.approx(expected)


def test_the_longest_may_be_short() -> None:
    assert pause(3600, 0.05) == 0.05


def test_an_hour_costs_few_looks() -> None:
    looks, waited = 0, 0.0
    while waited < 3600:
        waited += pause(waited, 2.0)
        looks += 1
    assert looks < 3600 / 2 + 50
