"""What the coordinator sees looks like noise until it is all there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from in_process import Federation
from scipy.stats import chi2

from dermino_strategies.secure_aggregation.messages import MaskedRequest
from dermino_strategies.secure_aggregation.ring import FixedPoint

SIZE = 40_000
LIKE = {"w": np.zeros(SIZE)}
LIMITS = {"w": 1.0}
RARE = 1e-9
"""How often such a test may fail by chance."""


def byte_statistic(vector: np.ndarray) -> float:
    """Chi-square of the 256 byte values, 255 degrees of freedom."""
    counts = np.bincount(vector.astype("<u8").view(np.uint8), minlength=256)
    expected = 8 * len(vector) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def looks_uniform(vector: np.ndarray) -> bool:
    low, high = chi2.ppf([RARE, 1 - RARE], 255)
    return bool(low < byte_statistic(vector) < high)


def correlation(masked: np.ndarray, plain: np.ndarray) -> float:
    return float(np.corrcoef(masked.view(np.int64).astype(np.float64), plain)[0, 1])


@pytest.fixture(scope="module")
def federation() -> Federation:
    federation = Federation(4, like=LIKE, limits=LIMITS)
    rng = np.random.default_rng(7)
    for name in federation.names:
        # As updates are: small, smooth, far from uniform, alike at all sites.
        federation.summands[name] = {"w": np.clip(rng.normal(0.1, 0.2, SIZE), -1, 1)}
    return federation


@pytest.fixture(scope="module")
def masked(federation: Federation) -> dict[str, np.ndarray]:
    requests = federation.until("masked").requests()
    found = {}
    for name, request in requests.items():
        assert isinstance(request, MaskedRequest)
        _, vector = federation.answer(name, request)
        assert vector is not None
        found[name] = vector
    return found


def ring_sum(vectors: Iterable[np.ndarray]) -> np.ndarray:
    return np.add.reduce(list(vectors), axis=0, dtype=np.uint64)


def subsets(names: list[str]) -> list[tuple[str, ...]]:
    return [s for k in range(1, len(names) + 1) for s in itertools.combinations(names, k)]


def test_the_measure_sees_what_is_not_masked(federation: Federation) -> None:
    plain = FixedPoint(LIMITS, LIKE, 4).flatten(federation.summands["site-01"])
    assert not looks_uniform(plain)
    assert correlation(plain, federation.summands["site-01"]["w"]) > 0.999


def test_no_sum_of_masked_vectors_tells_anything(
    federation: Federation, masked: dict[str, np.ndarray]
) -> None:
    """Of one, of two, of three sites; and of all four, whose own masks are still on it."""
    bound = 6.1 / np.sqrt(SIZE)  # about RARE
    for names in subsets(federation.names):
        total = ring_sum(masked[name] for name in names)
        assert looks_uniform(total), names
        for name in federation.names:
            assert abs(correlation(total, federation.summands[name]["w"])) < bound, names
        plain = np.sum([federation.summands[name]["w"] for name in names], axis=0)
        assert abs(correlation(total, plain)) < bound, names


def test_no_difference_of_masked_vectors_tells_anything(
    federation: Federation, masked: dict[str, np.ndarray]
) -> None:
    """Masks of two sites are not the same up to the sign, either."""
    for one, other in itertools.combinations(federation.names, 2):
        assert looks_uniform(masked[one] - masked[other])
        assert looks_uniform(masked[one] + masked[other])
        assert not (masked[one] == masked[other]).any()


def test_the_same_values_are_masked_anew(federation: Federation) -> None:
    """In another attempt and another round nothing of a mask comes back."""
    vectors = []
    for round_ in (5, 6):
        for attempt in (1, 2):
            session = federation.session(round_=round_, attempt=attempt)
            request = federation.until("masked", session).requests()["site-01"]
            vectors.append(federation.answer("site-01", request)[1])
    for one, other in itertools.combinations(vectors, 2):
        assert one is not None
        assert other is not None
        assert looks_uniform(one - other)


def test_with_all_masks_off_the_sum_is_there(
    federation: Federation, masked: dict[str, np.ndarray]
) -> None:
    """The control: what is noise above is masked values, and not noise."""
    assert set(masked) == set(federation.names)
    total = federation.until("done", federation.session(round_=9)).total()
    plain = federation.expected(federation.names)["w"]
    np.testing.assert_allclose(total["w"], plain, rtol=0, atol=1e-12)
