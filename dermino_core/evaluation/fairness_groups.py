"""Who is on an image: skin type groups, sex and age bands out of a manifest's cells."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dermino_core.manifest import Record
from dermino_core.manifest_table import printable

SKIN_GROUPS = ("I-II", "III-IV", "V-VI")
"""Fitzpatrick types two by two, as the paper compares them (Fig. 6a)."""

AGE_EDGES = (40.0, 60.0)
"""Years at which a new age band begins."""

Booleans = npt.NDArray[np.bool_]

_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6}
_TWO_DIGITS = {"12": (1, 2), "34": (3, 4), "56": (5, 6)}
_SKIN_WORDS = re.compile(r"fitzpatrick|phototype|photo|scale|skin|type|fst|[\s:_()]+")
_SKIN_TYPE = r"(iii|ii|iv|i|vi|v|[1-6](?:\.0+)?)"
_ONE_OR_TWO = re.compile(rf"{_SKIN_TYPE}(?:(?:[-–—/,&+]|to|and|or){_SKIN_TYPE})?")
_SEXES = {
    "female": ("f", "female", "woman", "girl", "w", "weiblich", "femme", "femenino", "女"),
    "male": ("m", "male", "man", "boy", "männlich", "maennlich", "homme", "masculino", "男"),
    "other": ("other", "diverse", "divers", "intersex", "nonbinary", "non-binary"),
}
_SEX_OF = {word: sex for sex, words in _SEXES.items() for word in words}
_UNKNOWN = frozenset(
    {"", "-", "?", "-1", "-1.0", "na", "n/a", "nan", "none", "null", "unk", "unknown"}
    | {"missing", "not known", "not reported", "unspecified", "u"}
)


def skin_group(text: str | None) -> str | None:
    """The group of :data:`SKIN_GROUPS` that a cell names; None if none or more than one.

    Understood are 1 to 6, I to VI, two of one group (`12` as DDI writes it, `1-2`, `V/VI`), with
    or without words such as "Fitzpatrick type".

    Example
    -------
    >>> skin_group("Fitzpatrick III")
    'III-IV'
    """
    plain = _SKIN_WORDS.sub("", unicodedata.normalize("NFKC", text or "").casefold())
    types = _TWO_DIGITS.get(plain)
    if types is None:
        found = _ONE_OR_TWO.fullmatch(plain)
        if found is None:
            return None
        types = tuple(_ROMAN.get(part) or int(float(part)) for part in found.groups() if part)
    groups = {SKIN_GROUPS[(number - 1) // 2] for number in types}
    return groups.pop() if len(groups) == 1 else None


def sex_group(text: str | None) -> str | None:
    """`female`, `male` or `other`; None where a cell names none of them."""
    return _SEX_OF.get((text or "").strip().casefold())


def age_bands(edges: Sequence[float]) -> list[str]:
    """Names of the bands between `edges`: `below 40`, `40-59`, `60+`.

    Raises
    ------
    ValueError
        If there is no edge, or they do not rise.
    """
    if not edges or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"age edges must rise, and be one or more: {list(edges)}")
    inner = [f"{low:g}-{high - 1:g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:g}", *inner, f"{edges[-1]:g}+"]


@dataclass(frozen=True)
class Grouping:
    """One attribute, or two crossed.

    Attributes
    ----------
    name
        `sex`, or `sex & age`.
    members
        Group (`female`, or `female & 60+`) -> which images, bool [n]; in reading order, every
        group with at least one image.
    labels
        Group -> its full name, `sex=female & age=60+`.
    note
        About images that are in no group; empty if there are none.
    """

    name: str
    members: Mapping[str, Booleans]
    labels: Mapping[str, str]
    note: str = ""


def groupings(records: Sequence[Record], age_edges: Sequence[float] = AGE_EDGES) -> list[Grouping]:
    """Skin type, sex and age, as far as any image has them; then their crossings two by two."""
    bands = age_bands(age_edges)
    ages = [
        None
        if record.age is None
        else bands[int(np.searchsorted(age_edges, record.age, side="right"))]
        for record in records
    ]
    single = [
        _by_cell("skin_type", "skin type", [r.skin_type for r in records], skin_group, SKIN_GROUPS),
        _by_cell("sex", "sex", [r.sex for r in records], sex_group, tuple(_SEXES)),
        _by_cell("age", "age", ages, lambda band: band, bands),
    ]
    known = [one for one in single if one.members]
    crossed = [_cross(one, two) for i, one in enumerate(known) for two in known[i + 1 :]]
    return known + crossed


def _by_cell(
    name: str,
    title: str,
    cells: Sequence[str | None],
    parse: Callable[[str | None], str | None],
    order: Sequence[str],
) -> Grouping:
    groups = [parse(cell) for cell in cells]
    strange = [
        cell
        for cell, group in zip(cells, groups, strict=True)
        if group is None and (cell or "").strip().casefold() not in _UNKNOWN
    ]
    members = {
        group: mask for group in order if (mask := np.array([g == group for g in groups])).any()
    }
    note = ""
    if missing := groups.count(None):
        note = f"{missing} of {len(groups)} images have no {title}"
        if strange:
            note += (
                f" ({len(strange)} of them one that is not understood, "
                f"the first {printable(str(strange[0]))[:40]!r})"
            )
        note += "."
    return Grouping(name, members, {group: f"{name}={group}" for group in members}, note)


def _cross(first: Grouping, second: Grouping) -> Grouping:
    members: dict[str, Booleans] = {}
    labels: dict[str, str] = {}
    for one, in_one in first.members.items():
        for two, in_two in second.members.items():
            if (both := in_one & in_two).any():
                members[f"{one} & {two}"] = both
                labels[f"{one} & {two}"] = f"{first.labels[one]} & {second.labels[two]}"
    return Grouping(f"{first.name} & {second.name}", members, labels)
