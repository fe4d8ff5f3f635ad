"""Units of privacy: who is protected, with how many images, and what so many can promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dermino_core.privacy.accounting import noise_multiplier

WEAK_EPSILON = 10.0
"""Above it a guarantee says little about any one patient (Ponomareva et al. 2023, "How to DP-fy
ML", arXiv:2303.00654, section 5.2: at most 10 as the lowest acceptable tier)."""


@dataclass(frozen=True)
class Chosen:
    """Images of each unit: rows [P, m] into the site's images, and their shares [P, m].

    The shares of a unit sum to 1; a place that stays empty has row 0 and share 0.
    """

    rows: npt.NDArray[np.intp]
    shares: npt.NDArray[np.float64]


def number_units(
    groups: Sequence[str], images: int, unit: Literal["patient", "image"]
) -> npt.NDArray[np.intp]:
    """The unit of each image as a number from 0, shape [images].

    Without groups every image is a unit of its own, also where patients are asked for.

    Raises
    ------
    ValueError
        If there are groups, but not one for each image.
    """
    if unit == "image" or not groups:
        return np.arange(images)
    if len(groups) != images:
        raise ValueError(f"{len(groups)} groups for {images} images")
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return numbers


def choose_images(units: npt.NDArray[np.intp], most: int, draws: npt.NDArray[np.float64]) -> Chosen:
    """At most `most` images of every unit: those with its smallest draws.

    Parameters
    ----------
    units
        Unit of each image, numbers from 0 without a gap, shape [n].
    draws
        A random number for each image, shape [n]. Which images of a unit are chosen depends on
        that unit alone: one unit more or less changes nothing for the others.
    """
    order = np.lexsort((draws, units))
    sizes = np.bincount(units)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.arange(len(units)) - np.repeat(first, sizes)
    kept = place < most
    taken = np.minimum(sizes, most)
    rows = np.zeros((len(sizes), int(taken.max(initial=1))), dtype=np.intp)
    rows[units[order[kept]], place[kept]] = order[kept]
    filled = np.arange(rows.shape[1]) < taken[:, None]
    return Chosen(rows, filled / taken[:, None])


def meaningful(epsilon: float, delta: float, units: int, *, numbers: int = 770) -> str | None:
    """A sentence about why (epsilon, delta) says little here, or None; None for an epsilon of 0.

    Parameters
    ----------
    units
        Patients or images at the site.
    numbers
        How many numbers the noise is added to: weights and biases of the head. The default is two
        classes on a small vision transformer.
    """
    if delta * units >= 1:
        return (
            f"Delta {delta:g} is not below one over the {units} units: a method that publishes one "
            f"of them at random would keep this promise. Ask for at most {0.1 / units:.0e}."
        )
    if epsilon > WEAK_EPSILON:
        return (
            f"Epsilon {epsilon:g} lets the odds that one unit took part change by a factor of "
            f"{_power_of_e(epsilon)}: it promises hardly anything. Ask for at most "
            f"{WEAK_EPSILON:g}."
        )
    if epsilon <= 0:
        return None
    swamped = noise_multiplier(epsilon, delta, 1.0, 1) * numbers**0.5
    if units < swamped:
        return (
            f"At epsilon {epsilon:g} even a single use of the data needs noise of length "
            f"{swamped:.0f}, more than what all {units} units can add up to: the model can learn "
            "next to nothing at this site. A larger epsilon or more patients would help."
        )
    return None


def _power_of_e(exponent: float) -> str:
    if exponent < 30:
        return f"{np.exp(exponent):,.0f}"
    return f"10^{exponent / np.log(10):.0f}"
