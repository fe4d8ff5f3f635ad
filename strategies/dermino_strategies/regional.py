"""A hierarchy for methods that add: regions sum up their sites, and the top sums up the regions.

A coordinator of an :class:`~dermino_strategies.base.Additive` method needs no more than the sum of
the sites' summands, so a region can answer for all of its sites with one :class:`RegionalSum`, and
regions of regions can, too. The top then takes a message from each region and not from each site.

Floating-point addition is not associative: sums of sums would differ from the flat sum in the last
bits, and two ways to divide the same sites would give two models. Here the result has the same bits
however the sites are divided and whoever answers first. Each number is cut into three before
anything is added, on grids that the method's limits fix (the idea of reproducible summation,
Demmel & Nguyen, IEEE Trans. Computers 64, 2015): a part is a whole multiple of its grid's unit and
so small that the sum over 2^20 sites is still one that a double holds, so no addition ever rounds.
What is below the last grid, 2^-102 of the limit, is dropped. The total is rounded once, when the
three are put together: it is the sum of :func:`math.fsum`, to within its last bit.
(:class:`~dermino_strategies.running_sum.RunningSum` adds in the order of names and rounds at each
step: the same bits for the same sites, but not for sums of sums.)

A region sends three times what a site sends. It is believed: its sum is not seen to be that of its
sites, whose digests it names so that a site and an auditor can compare them with what was sent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from dermino_strategies.base import Additive, Arrays, check_arrays
from dermino_strategies.protocol import RegionalHeader, pack, read_arrays, unpack

PARTS = 3
MOST_SITES = 2**20
"""Largest number of sites of which no sum of parts can be rounded."""

_NAMED = 3
"""Names that a refusal shows."""


@dataclass(frozen=True)
class RegionalSum:
    """The summands of a region's sites, added up: arrays [3, ...] of parts."""

    header: RegionalHeader
    parts: Arrays

    @property
    def sites(self) -> list[str]:
        """The sites in the sum, sorted."""
        return sorted(self.header.digests)

    def pack(self) -> RecordDict:
        """The content of the one message that a region sends."""
        return pack(self.header, {"parts": self.parts})

    @classmethod
    def unpack(cls, content: RecordDict, like: Arrays) -> RegionalSum:
        """Read such a message; `like` are names and shapes of a summand.

        Raises
        ------
        DerminoError
            `REQUEST_INVALID` if it has no header of a sum.
        ValueError
            If its arrays are not like that.
        """
        header = unpack(content, RegionalHeader)
        return cls(header, read_arrays(content, "parts", _zeros(like)))


class Region:
    """A node of the tree: takes summands of sites, sums of regions, or both, in any order.

    Parameters
    ----------
    name
        Of the region.
    run_id, round_
        What is being summed; a sum of another run or round is refused.
    like
        Names and shapes of a summand (`Additive.summand_like`).
    limits
        Array name -> largest absolute value of one summand (`Additive.summand_limits`).
    members
        Sites that may be in the sum; None: any.

    Examples
    --------
    >>> like, limits = {"x": np.zeros(1)}, {"x": 8.0}
    >>> north = Region("north", run_id="0" * 32, round_=1, like=like, limits=limits)
    >>> north.add("a", {"x": np.array([0.1])})
    >>> top = Region("top", run_id="0" * 32, round_=1, like=like, limits=limits)
    >>> top.add_region(north.sum())
    >>> top.add("b", {"x": np.array([0.2])})
    >>> top.total()["x"]
    array([0.3])
    """

    def __init__(
        self,
        name: str,
        *,
        run_id: str,
        round_: int,
        like: Arrays,
        limits: Mapping[str, float],
        members: Collection[str] | None = None,
    ) -> None:
        self.name = name
        self._run_id, self._round = run_id, round_
        self._like = {key: np.zeros(array.shape) for key, array in like.items()}
        self._limits = {key: float(limits[key]) for key in like}
        self._units = {key: _units(limit) for key, limit in self._limits.items()}
        self._members = None if members is None else frozenset(members)
        self._digests: dict[str, str] = {}
        self._through: dict[str, str] = {}
        self._regions: set[str] = set()
        self._parts = _zeros(like)

    @classmethod
    def of(
        cls,
        name: str,
        strategy: Additive,
        arrays: Arrays,
        *,
        run_id: str,
        round_: int,
        members: Collection[str] | None = None,
    ) -> Region:
        """A region of a round of `strategy` whose global arrays are `arrays`."""
        return cls(
            name,
            run_id=run_id,
            round_=round_,
            like=strategy.summand_like(arrays),
            limits=strategy.summand_limits(arrays),
            members=members,
        )

    def add(self, site: str, summand: Arrays) -> None:
        """Take a site's summand, once.

        Raises
        ------
        ValueError
            In words that name the site and no path: if it is counted already or is no member, or
            names, shapes, types or values are wrong. Nothing is added then.
        """
        self._check_sites([site], self.name)
        try:
            check_arrays(self._like, summand)
        except ValueError as error:
            raise ValueError(f"{site} {error}") from None
        for key, array in summand.items():
            if array.size and np.abs(array).max() > self._limits[key]:
                raise ValueError(f"{site}: array '{key}' exceeds {self._limits[key]:g}")
        for key, array in summand.items():
            for part, cut in zip(self._parts[key], _cut(array, self._units[key]), strict=True):
                part += cut
        self._digests[site] = digest_of(summand)
        self._through[site] = self.name

    def add_region(self, other: RegionalSum) -> None:
        """Take the sum of another region, once.

        Raises
        ------
        ValueError
            In words that name the region: if it is of another run or round, a region or one of its
            sites is counted already or is no member, or its parts cannot be sums of so many
            summands. Nothing is added then.
        """
        header = other.header
        if (header.run_id, header.round) != (self._run_id, self._round):
            raise ValueError(
                f"the region {header.region} sent round {header.round} of the run "
                f"{header.run_id[:8]}, not round {self._round} of {self._run_id[:8]}"
            )
        if header.region in self._regions or header.region == self.name:
            raise ValueError(f"the region {header.region} is counted twice")
        if not header.digests:
            raise ValueError(f"the region {header.region} sent a sum of no sites")
        self._check_sites(other.sites, header.region)
        try:
            check_arrays(_zeros(self._like), other.parts)
        except ValueError as error:
            raise ValueError(f"the region {header.region} {error}") from None
        for key, parts in other.parts.items():
            if not _believable(parts, self._limits[key], self._units[key], len(header.digests)):
                raise ValueError(
                    f"the region {header.region}: array '{key}' is no sum of "
                    f"{len(header.digests)} summands within {self._limits[key]:g}"
                )
        for key, parts in other.parts.items():
            self._parts[key] += parts
        self._digests |= header.digests
        self._through |= dict.fromkeys(header.digests, header.region)
        self._regions.add(header.region)

    @property
    def sites(self) -> list[str]:
        """The sites that are in the sum, sorted."""
        return sorted(self._digests)

    def sum(self) -> RegionalSum:
        """What this region sends upwards. It does not change with what is added later.

        Raises
        ------
        ValueError
            If no site is in it.
        """
        if not self._digests:
            raise ValueError(f"no site of the region {self.name} is in its sum")
        header = RegionalHeader(
            region=self.name,
            run_id=self._run_id,
            round=self._round,
            digests={site: self._digests[site] for site in self.sites},
        )
        return RegionalSum(header, {key: parts.copy() for key, parts in self._parts.items()})

    def total(self) -> Arrays:
        """The sum over all sites, for `Additive.from_sum`: float64, shapes of a summand."""
        return {key: _joined(parts) for key, parts in self._parts.items()}

    def _check_sites(self, sites: Collection[str], through: str) -> None:
        if self._members is not None and (strange := sorted(set(sites) - self._members)):
            raise ValueError(f"{_listed(strange)}: no member of the region {self.name}")
        if twice := sorted(set(sites) & self._digests.keys()):
            where = ", ".join(sorted({self._through[site] for site in twice[:_NAMED]}))
            raise ValueError(f"{_listed(twice)}: counted twice, in {where} and in {through}")
        if len(self._digests) + len(sites) > MOST_SITES:
            raise ValueError(f"more than {MOST_SITES} sites")


def digest_of(summand: Arrays) -> str:
    """SHA-256 of a summand: its arrays' names, shapes and bytes in float64, by name."""
    result = hashlib.sha256()
    for key in sorted(summand):
        array = np.ascontiguousarray(summand[key], dtype="<f8")
        result.update(f"{key} {array.shape}\n".encode())
        result.update(array.tobytes())
    return result.hexdigest()


def _listed(sites: list[str]) -> str:
    more = f" and {len(sites) - _NAMED} more" if len(sites) > _NAMED else ""
    return ", ".join(sites[:_NAMED]) + more


def _zeros(like: Arrays) -> Arrays:
    return {key: np.zeros((PARTS, *array.shape)) for key, array in like.items()}


def _units(limit: float) -> list[float]:
    """The units of the three grids for numbers up to `limit`, the coarsest first.

    Sums over 2^20 sites of multiples of a unit u are below 2^53 u, all of which a double holds:
    for the first grid that makes u 2^-33 of the limit; what a grid leaves over is at most half its
    unit, so each further grid may be 2^34 times finer.
    """
    mantissa, exponent = math.frexp(limit)
    power = exponent - 1 if mantissa == 0.5 else exponent  # limit <= 2^power
    return [math.ldexp(1.0, power - 33 - 34 * part) for part in range(PARTS)]


def _cut(array: npt.NDArray, units: list[float]) -> Iterable[npt.NDArray]:
    """The parts of each number on the three grids, the coarsest first. Exact but for the rest."""
    rest = array
    for unit in units:
        part = np.rint(rest / unit) * unit
        yield part
        rest = rest - part


def _believable(parts: npt.NDArray, limit: float, units: list[float], sites: int) -> bool:
    """Whether parts are on their grids, and no larger than `sites` summands can make them."""
    largest = [limit + units[0], units[0] / 2, units[1] / 2]
    return all(
        bool((np.rint(part / unit) * unit == part).all() and (np.abs(part) <= sites * most).all())
        for part, unit, most in zip(parts, units, largest, strict=True)
    )


def _joined(parts: npt.NDArray) -> npt.NDArray[np.float64]:
    """The sum of the three parts; the first addition's own rounding error is carried along."""
    first, second, third = parts
    whole = first + second
    shadow = whole - first
    lost = (first - (whole - shadow)) + (second - shadow)  # Knuth's two-sum: exact
    return whole + (lost + third)
