"""Units of privacy: who counts as one, which images speak for him, and warnings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermino_core.privacy.units import choose_images, meaningful, number_units


def test_patients_are_numbered_without_gaps() -> None:
    numbers = number_units(["b", "a", "b", "c"], 4, "patient")
    assert numbers[0] == numbers[2]
    assert sorted(set(numbers.tolist())) == [0, 1, 2]


@pytest.mark.parametrize(("groups", "unit"), [((), "patient"), (("a", "a", "a"), "image")])
def test_every_image_alone(groups: tuple[str, ...], unit: str) -> None:
    assert number_units(groups, 3, unit).tolist() == [0, 1, 2]  # type: ignore[arg-type]


def test_groups_must_be_complete() -> None:
    with pytest.raises(ValueError, match="2 groups for 3 images"):
        number_units(["a", "b"], 3, "patient")


owners = st.lists(st.integers(0, 7), min_size=1, max_size=30)


@given(owners, st.integers(1, 5), st.integers(0, 2**32))
def test_choice_is_what_a_loop_chooses(whose: list[int], most: int, seed: int) -> None:
    units = number_units([str(w) for w in whose], len(whose), "patient")
    draws = np.random.default_rng(seed).random(len(units))
    chosen = choose_images(units, most, draws)
    assert chosen.rows.shape == chosen.shares.shape
    assert chosen.rows.shape[1] <= most
    for unit in range(units.max() + 1):
        images = np.flatnonzero(units == unit)
        expected = images[np.argsort(draws[images])][:most]
        filled = chosen.shares[unit] > 0
        assert set(chosen.rows[unit][filled].tolist()) == set(expected.tolist())
        np.testing.assert_allclose(chosen.shares[unit][filled], 1 / len(expected))
        assert (chosen.rows[unit][~filled] == 0).all()
    assert len(chosen.rows) == units.max() + 1


def test_a_unit_s_images_do_not_depend_on_other_units() -> None:
    units = np.repeat(np.arange(6), 5)
    draws = np.random.default_rng(0).random(30)
    whole = choose_images(units, 2, draws)
    without = choose_images(units[:25], 2, draws[:25])
    np.testing.assert_array_equal(whole.rows[:5], without.rows)


def test_every_image_has_the_same_chance() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(5)
    for _ in range(2000):
        counts[choose_images(np.zeros(5, int), 2, rng.random(5)).rows[0]] += 1
    assert np.abs(counts / 2000 - 0.4).max() < 6 * np.sqrt(0.24 / 2000)


@pytest.mark.parametrize(
    ("epsilon", "delta", "units", "word"),
    [
        (3.0, 1e-2, 100, "Delta"),
        (3.0, 1e-2, 5000, "Delta"),
        (10.5, 1e-5, 1000, "36,316"),
        (700.0, 1e-5, 1000, r"10\^304"),
        (1.0, 1e-5, 100, "noise"),
        (8.0, 1e-5, 10, "noise"),
        (8.0, 1e-5, 100, None),
        (1.0, 1e-5, 400, None),
        (0.0, 1e-5, 400, None),
    ],
)
def test_warnings(epsilon: float, delta: float, units: int, word: str | None) -> None:
    sentence = meaningful(epsilon, delta, units)
    if word is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert sentence.endswith(".")
        with pytest.raises(AssertionError, match=word):
            raise AssertionError(sentence)


def test_more_numbers_need_more_patients() -> None:
    """A single Gaussian of noise s on d numbers has length s sqrt(d); d units add up to no more
    than their number. At epsilon 3 and delta 1e-5, s is 1.4932."""
    assert meaningful(3.0, 1e-5, 150, numbers=10_000) is None
    sentence = meaningful(3.0, 1e-5, 149, numbers=10_000)
    assert sentence is not None
    assert "149 units" in sentence
