"""Whose update does not fit the others': too long, too short, or against the rest.

The coordinator sees how each site would change the model (`Strategy.change`). Of every change it
keeps an outline (length and direction), and after the round it compares each site's with those of
the others alone, so that a bad site takes no part in the yardstick it is held to:

- length: the logarithm's distance from the others' median, over their spread. Honest lengths
  differ too, with the number of images above all; on real features of 20 to 400 images they stayed
  within a factor of 5, so the spread is never taken as less than makes ten times the median a
  finding.
- direction: the cosine with the others' mean direction. The mean is robust (median of each
  coordinate of the unit vectors), and a finding needs three things: the site points against it,
  the others agree among themselves, and the gap is large beside their spread. Where hospitals
  pull apart honestly, as near convergence or with other shares of the classes, the others do not
  agree, and nobody is named.

Scores are robust z-scores: median and 1.4826 times the median absolute deviation in place of mean
and standard deviation (Rousseeuw & Croux 1993, equation 1.3), of the other sites.

What this cannot do. A finding is a reason to ask, not a proof: an honest hospital with reversed
shares of the classes looks like one whose labels are swapped. With two sites nobody can be named:
each is all that the other is compared with. With three the other two must agree, and who of two
against one is right stays open. Bad sites that agree among themselves, half of all or more, make
the honest ones stand out. Small lies (a share of the labels, a change within the honest range)
are not seen. Under secure aggregation there are no single updates to look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dermino_strategies.base import Arrays, SiteUpdate, Strategy

FEWEST_SITES = 3

LENGTH_SCORE = 6.0
LENGTH_FACTOR = 10.0
"""How many spreads from the median is a finding; the least factor that this stands for."""

DIRECTION_SCORE = 3.0
DIRECTION_SPREAD = 0.2
AGAINST = -0.5
"""The largest cosine of a site that points against the others; least spread of theirs."""

AGREEMENT, AGREEMENT_OF_TWO = 0.2, 0.5
"""Cosine that nine tenths of the other sites must exceed; the same where they are only two."""

LONGEST = 4096
"""Numbers kept of an update's direction; longer ones are folded."""

LEAVE_ONE_OUT = 30
"""Up to so many sites, each is left out of its own yardstick; of more it moves it by nothing."""

_TINY, _HUGE = 1e-300, 1e300

Vector = npt.NDArray[np.float64]
Reason = Literal["length", "direction"]


@dataclass(frozen=True)
class Outline:
    """What is kept of an update: its length, and its direction, a unit vector of at most 4096."""

    length: float
    direction: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """A site beside the others.

    `ratio` is its length over the others' median; `cosine` is with their mean direction. The
    scores count the others' spreads; positive: longer; negative: against.
    """

    length: float
    ratio: float
    length_score: float
    cosine: float


@dataclass(frozen=True)
class Finding:
    """A site that does not fit. `value` is the ratio or the cosine, `score` its robust z-score."""

    site: str
    reason: Reason
    value: float
    score: float
    sentence: str


def outline(strategy: Strategy, arrays: Arrays, update: SiteUpdate) -> Outline | None:
    """The outline of one update; None where the method says that it tells of no direction."""
    with np.errstate(over="ignore", invalid="ignore"):
        parts = strategy.change(arrays, update)
    return outline_of(np.concatenate([parts[n].ravel() for n in sorted(parts)])) if parts else None


def outline_of(change: Vector) -> Outline:
    """The outline of a change [n]; one that is too large for its numbers has no direction."""
    if not np.isfinite(change).all():
        return Outline(_HUGE, np.zeros(min(len(change), LONGEST), np.float32))
    largest = float(np.abs(change).max(initial=0.0))
    length = largest * float(np.linalg.norm(change / largest)) if largest > 0 else 0.0
    return Outline(
        min(length, _HUGE), _unit(_folded(change / max(largest, _TINY))).astype(np.float32)
    )


def _folded(change: Vector) -> Vector:
    """At most :data:`LONGEST` numbers that keep angles on average.

    Charikar, Chen & Farach-Colton 2002 (count sketch): each number is added to one place with a
    random sign. Places and signs depend on the length of `change` alone, so all sites' agree.
    """
    if len(change) <= LONGEST:
        return change
    rng = np.random.default_rng(len(change))
    places = rng.integers(0, LONGEST, len(change))
    signs = rng.choice([-1.0, 1.0], len(change))
    folded = np.zeros(LONGEST)
    np.add.at(folded, places, change * signs)
    return folded


def compare(outlines: Mapping[str, Outline]) -> dict[str, Comparison]:
    """Each site beside the others; nothing with fewer than three sites."""
    if len(outlines) < FEWEST_SITES:
        return {}
    sites = sorted(outlines)
    lengths = np.array([outlines[site].length for site in sites])
    logs = np.log(np.maximum(lengths, _TINY))
    units = np.stack([outlines[site].direction for site in sites]).astype(np.float64)
    cosines = _cosines(units)
    found = {}
    for k, site in enumerate(sites):
        others = np.delete(logs, k)
        middle, spread = _middle_and_spread(others)
        score = (logs[k] - middle) / max(spread, np.log(LENGTH_FACTOR) / LENGTH_SCORE)
        ratio = min(float(lengths[k] / max(float(np.exp(middle)), 1 / _HUGE)), _HUGE)
        found[site] = Comparison(float(lengths[k]), ratio, float(score), float(cosines[k]))
    return found


def suspicious(outlines: Mapping[str, Outline]) -> list[Finding]:
    """The sites whose update does not fit, by name; a site can have two findings."""
    compared = compare(outlines)
    findings = []
    for site, seen in compared.items():
        if abs(seen.length_score) > LENGTH_SCORE:
            findings.append(_length_finding(site, seen, len(compared)))
        if seen.cosine < AGAINST:
            finding = _direction_finding(site, seen.cosine, outlines)
            findings += [finding] if finding else []
    return findings


def _length_finding(site: str, seen: Comparison, sites: int) -> Finding:
    if seen.length == 0:
        what = f"{site} sent the model back as it was, while the other {sites - 1} sites changed it"
    elif seen.length_score > 0:
        what = (
            f"{site} changed the model {_times(seen.ratio)} times as far as the other {sites - 1} "
            "sites (their median)"
        )
    else:
        what = (
            f"{site} changed the model only 1/{_times(1 / seen.ratio)} as far as the other "
            f"{sites - 1} sites (their median)"
        )
    return Finding(site, "length", seen.ratio, seen.length_score, f"{what}.{_caveat(sites)}")


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.0e}"


def _direction_finding(site: str, cosine: float, outlines: Mapping[str, Outline]) -> Finding | None:
    """The finding, if the others agree among themselves and the gap is large beside theirs."""
    units = np.stack([outlines[name].direction for name in sorted(outlines) if name != site])
    agreement = _cosines(units.astype(np.float64))
    sites = len(outlines)
    low = float(np.quantile(agreement, 0.1))
    middle, spread = _middle_and_spread(agreement)
    score = (cosine - middle) / max(spread, DIRECTION_SPREAD)
    wanted = AGREEMENT_OF_TWO if sites == FEWEST_SITES else AGREEMENT
    if low <= wanted or score > -DIRECTION_SCORE:
        return None
    sentence = (
        f"{site} pulls the model against the other {sites - 1} sites (cosine {cosine:.2f} with "
        f"their mean direction), which agree among themselves (median {middle:.2f})."
        f"{_caveat(sites)}"
    )
    return Finding(site, "direction", cosine, float(score), sentence)


def _caveat(sites: int) -> str:
    return " With three sites this cannot tell who is right." if sites == FEWEST_SITES else ""


def _cosines(units: Vector) -> Vector:
    """Of each direction with the robust mean direction of the others; 2 sites: with each other."""
    count = len(units)
    if count > LEAVE_ONE_OUT:
        return units @ _unit(np.median(units, axis=0))
    means = [_unit(np.median(np.delete(units, k, axis=0), axis=0)) for k in range(count)]
    return np.array([unit @ mean for unit, mean in zip(units, means, strict=True)])


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def _middle_and_spread(values: Vector) -> tuple[float, float]:
    """Median, and the median absolute deviation on the scale of a standard deviation."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))
