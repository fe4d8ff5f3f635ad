"""Divide a site's images into training and test halves that share no patient.

The paper splits every data set in halves, stratified by class (section 4.2); images of one
patient or lesion must not end up on both sides, or the test measures memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from dermino_core.errors import DerminoError
from dermino_core.manifest import Record

_TRAIN, _TEST = "train", "test"


def split_records(
    records: Sequence[Record],
    labels: Sequence[str],
    *,
    seed: int = 0,
    train_share: float = 0.5,
    where: Path | None = None,
) -> list[str]:
    """Assign each record to "train", "val" or "test".

    If every record has a split of its own, those are returned, whatever the groups. Otherwise
    the records are divided into "train" and "test": a group (a record without one is a group of
    its own) stays together, and the share of each class in "train" is as close to `train_share`
    as the groups allow. For groups of a single class, a class's number of training images misses
    `train_share` of its images by at most its two largest groups, and every class with two groups
    or more is on both sides. Groups of mixed classes make the second impossible in some cases; it
    is then met for as many classes as moving one group at a time achieves.

    The result depends on the set of records, `labels`, `seed` and `train_share`, not on the order
    of the rows: groups are ordered by size, then by a hash of the seed and their name.

    Parameters
    ----------
    records
        The images.
    labels
        The class of each record, same length (classes of the task, not raw disease names).
    seed
        Chooses one of the possible divisions.
    train_share
        Wanted share of "train", in (0, 1).
    where
        The table, for error messages.

    Raises
    ------
    DerminoError
        `MANIFEST_INVALID` if some records have a split and others do not.
    ValueError
        If `labels` has another length than `records`, or `train_share` is outside (0, 1).
    """
    if len(labels) != len(records):
        raise ValueError(f"{len(records)} records but {len(labels)} labels")
    if not 0.0 < train_share < 1.0:
        raise ValueError(f"train_share must be between 0 and 1, not {train_share}")
    own = [record.split for record in records if record.split is not None]
    if own and len(own) == len(records):
        return own
    if own:
        raise DerminoError(
            "MANIFEST_INVALID",
            f"{len(records) - len(own)} of {len(records)} rows have no split, the others do.",
            where=where,
            fix="Fill the column split in every row, or remove it to have dermino divide them.",
        )
    keys = [_group_key(record) for record in records]
    contents: dict[str, Counter[str]] = defaultdict(Counter)
    for key, label in zip(keys, labels, strict=True):
        contents[key][label] += 1
    order = sorted(contents, key=lambda key: (-contents[key].total(), _shuffled(seed, key)))
    sides = _assign(order, contents, train_share)
    _put_classes_on_both_sides(order, contents, sides)
    return [sides[key] for key in keys]


def independent_units(records: Sequence[Record], digests: Sequence[str | None]) -> list[str]:
    """Name what may not be torn apart: records of one group, or with the same bytes, or both.

    Two groups that share an image become one unit, because the image would otherwise be in the
    training and in the test half.

    Parameters
    ----------
    records
        The images.
    digests
        SHA-256 of each image's bytes, same length; None where it could not be read.

    Returns
    -------
    A name for each record, equal within a unit; to be used as its group.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent.setdefault(above, above)
            key = above
        return key

    keys = [_group_key(record) for record in records]
    for key, digest in zip(keys, digests, strict=True):
        one, other = root(key), root(f"bytes {digest}" if digest else key)
        # The smaller name leads, so that the result does not depend on the order of the rows.
        parent[max(one, other)] = min(one, other)
    members: dict[str, str] = {}
    for key in keys:
        members[root(key)] = min(members.get(root(key), key), key)
    return [members[root(key)] for key in keys]


def torn_units(units: Sequence[str], split: Sequence[str]) -> list[str]:
    """The units, by name, that have records both in the test half and outside of it."""
    sides: dict[str, set[bool]] = defaultdict(set)
    for unit, side in zip(units, split, strict=True):
        sides[unit].add(side == _TEST)
    return sorted(unit for unit, those in sides.items() if len(those) > 1)


def _group_key(record: Record) -> str:
    # The prefix keeps a group "a.jpg" apart from an image "a.jpg".
    return f"image {record.image}" if record.group is None else f"group {record.group}"


def _shuffled(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogatepass")).digest()


def _assign(
    order: Sequence[str], contents: dict[str, Counter[str]], train_share: float
) -> dict[str, str]:
    """Large groups first, each to the side that keeps its classes nearest to their share."""
    excess: dict[str, float] = defaultdict(float)
    excess_in_all = 0.0
    sides: dict[str, str] = {}
    for key in order:
        group, size = contents[key], contents[key].total()
        costs: dict[str, tuple[float, float]] = {}
        for side, step in ((_TRAIN, 1.0 - train_share), (_TEST, -train_share)):
            per_class = sum((excess[name] + n * step) ** 2 for name, n in group.items())
            # Rounded, so that a tie within a class is decided by the whole, not by float noise.
            costs[side] = round(per_class, 6), round((excess_in_all + size * step) ** 2, 6)
        sides[key] = min(_TRAIN, _TEST, key=costs.__getitem__)
        step = 1.0 - train_share if sides[key] == _TRAIN else -train_share
        for name, n in group.items():
            excess[name] += n * step
        excess_in_all += size * step
    return sides


def _put_classes_on_both_sides(
    order: Sequence[str], contents: dict[str, Counter[str]], sides: dict[str, str]
) -> None:
    groups_of: dict[str, list[str]] = defaultdict(list)
    present: dict[str, Counter[str]] = {_TRAIN: Counter(), _TEST: Counter()}
    for key in order:
        for label in contents[key]:
            groups_of[label].append(key)
            present[sides[key]][label] += 1
    for label in sorted(groups_of, key=lambda label: (len(groups_of[label]), label)):
        for empty, full in ((_TRAIN, _TEST), (_TEST, _TRAIN)):
            if present[empty][label] or len(groups_of[label]) < 2:
                continue
            # Smallest first; one that takes no other class's last group away.
            for key in reversed(groups_of[label]):
                if all(present[full][other] > 1 for other in contents[key]):
                    sides[key] = empty
                    present[full].subtract(contents[key].keys())
                    present[empty].update(contents[key].keys())
                    break
