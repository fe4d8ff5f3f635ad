"""Real numbers as integers modulo 2^64, so that sums of masked values are exact.

Fixed point: the value x of an array with the scale s becomes round(x * 2^s), a signed integer
that wraps around modulo 2^64. Addition of such integers is exact, whatever the order, and masks
that cancel leave nothing behind.

Resolution: one step is 2^-s, the smallest power of two above K * limit / 2^62, where K is the
number of sites and `limit` the largest value one site may send. A value moves by at most half a
step when it is encoded; a sum of K values by at most K / 2 steps, and by one rounding to float64
(2^-53 of it) when it is decoded. For ten sites and values up to 1 a step is 9e-19. Integers come
out exactly for limits up to 2^62 / K.

No overflow: K sites together stay below 2^62 + K / 2, a quarter of the ring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_strategies.base import Arrays
from dermino_strategies.secure_aggregation.session import MOST_SITES

Vector = npt.NDArray[np.uint64]

_RING_BITS = 62
_LARGEST_EXPONENT = 500
_CHUNK = 2**16


@dataclass(frozen=True)
class _Field:
    name: str
    shape: tuple[int, ...]
    limit: float
    scale: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class FixedPoint:
    """How a summand becomes a vector of the ring, and the sum of such vectors becomes arrays.

    Parameters
    ----------
    limits
        Array name -> largest absolute value that one site may send, see
        `Additive.summand_limits`.
    like
        Names and shapes, see `Additive.summand_like`.
    participants
        Most sites that may add: K.

    Raises
    ------
    DerminoError
        `SECURE_REFUSED` if limits and arrays do not have the same names, or a limit is not
        a positive number between 2^-500 and 2^500.
    """

    def __init__(self, limits: Mapping[str, float], like: Arrays, participants: int) -> None:
        if set(limits) != set(like):
            raise _refused(f"Limits are for {sorted(limits)}, arrays are {sorted(like)}.")
        if not 1 <= participants <= MOST_SITES:
            raise _refused(f"{participants} sites cannot be summed; 1 to {MOST_SITES} can.")
        self.participants = participants
        self._fields = [
            _field(name, like[name].shape, float(limits[name]), participants)
            for name in sorted(like)
        ]
        self.length = sum(field.size for field in self._fields)

    @property
    def resolution(self) -> dict[str, float]:
        """Array name -> one step, in the array's own unit."""
        return {field.name: 2.0**-field.scale for field in self._fields}

    def flatten(self, arrays: Arrays) -> Vector:
        """One site's summand as a vector [length], arrays in sorted order of their names.

        Raises
        ------
        DerminoError
            `SECURE_REFUSED` for other names, other shapes, values above the limit and values
            that are not finite. Nothing is clipped.
        """
        if set(arrays) != {field.name for field in self._fields}:
            raise _refused(f"The summand holds the arrays {sorted(arrays)}.")
        vector = np.empty(self.length, np.uint64)
        start = 0
        for field in self._fields:
            array = np.asarray(arrays[field.name])
            if array.shape != field.shape or array.dtype.kind not in "fiu":
                raise _refused(
                    f"Array '{field.name}' has the shape {array.shape} and type {array.dtype}, "
                    f"not {field.shape} and real numbers."
                )
            _encode(field, array.reshape(-1), vector[start : start + field.size])
            start += field.size
        return vector

    def unflatten(self, total: Vector) -> Arrays:
        """The sum of up to `participants` vectors as float64 arrays.

        Raises
        ------
        DerminoError
            `SECURE_ABORTED` if a value is beyond what the sites together may send: then a mask
            is left in the sum, or a site did not keep to the protocol.
        ValueError
            If the vector has another length or type.
        """
        if total.shape != (self.length,) or total.dtype != np.uint64:
            raise ValueError(f"a sum has the shape ({self.length},) and type uint64")
        signed = total.view(np.int64)
        arrays: Arrays = {}
        start = 0
        for field in self._fields:
            part = signed[start : start + field.size]
            most = self._most(field)
            if field.size and (int(part.max()) > most or int(part.min()) < -most):
                raise DerminoError(
                    "SECURE_ABORTED",
                    f"The sum of '{field.name}' is larger than {self.participants} sites may send.",
                    fix="A site did not keep to the protocol; look at the sites' versions.",
                )
            values = part.astype(np.float64)
            values *= 2.0**-field.scale
            arrays[field.name] = values.reshape(field.shape)
            start += field.size
        return arrays

    def _most(self, field: _Field) -> int:
        return self.participants * _rounded(field)


def _rounded(field: _Field) -> int:
    """The largest integer that one site's value can become, exactly."""
    return int(np.rint(math.ldexp(field.limit, field.scale)))


def _encode(field: _Field, values: npt.NDArray, out: Vector) -> None:
    # In chunks: a temporary as long as the model would double what a site needs.
    factor = 2.0**field.scale
    signed = out.view(np.int64)
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK].astype(np.float64)
        # Written so that NaN fails as well.
        if not bool((np.abs(part) <= field.limit).all()):
            raise _refused(
                f"Array '{field.name}' holds values that are not finite or above {field.limit:g}.",
                fix="Nothing was sent. Check the training settings: the update is out of bounds.",
            )
        part *= factor
        signed[start : start + _CHUNK] = np.rint(part, out=part)


def _field(name: str, shape: tuple[int, ...], limit: float, participants: int) -> _Field:
    """With the largest scale s for which participants * limit * 2^s < 2^62."""
    if not (math.isfinite(limit) and 2.0**-_LARGEST_EXPONENT <= limit <= 2.0**_LARGEST_EXPONENT):
        raise _refused(f"The limit {limit!r} of array '{name}' cannot be used.")
    # frexp gives product < 2^exponent, also where the product was rounded: powers of two are
    # floats, so that rounding never takes a product from above one to below it.
    exponent = math.frexp(participants * limit)[1]
    return _Field(name, shape, limit, _RING_BITS - exponent)


def _refused(what: str, fix: str | None = None) -> DerminoError:
    return DerminoError("SECURE_REFUSED", what, fix=fix)
