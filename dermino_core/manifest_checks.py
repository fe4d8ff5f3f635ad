"""Check a table of images before anything is computed from it.

One pass over the files, in a few threads; memory holds one digest per file, never the images.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dermino_core.errors import DerminoError
from dermino_core.image_limits import DEFAULT_LIMITS, ImageError, ImageLimits
from dermino_core.images import decode_image, read_image_bytes
from dermino_core.manifest import Manifest, Record, row_number
from dermino_core.manifest_table import printable
from dermino_core.progress import progress_bar

Severity = Literal["error", "warning"]

KINDS: dict[str, Severity] = {
    "missing_file": "error",
    "not_regular_file": "error",
    "outside_folder": "error",
    "unreadable": "error",
    "missing_mask": "error",
    "unreadable_mask": "error",
    "group_across_splits": "error",
    "duplicate_content_across_splits": "error",
    "partial_split": "error",
    "duplicate_content": "warning",
    "duplicate_row": "warning",
    "empty_label": "warning",
    "no_labels": "warning",
    "note": "warning",
}
"""Every kind of problem, and whether it makes the table unusable as it is."""

WORKERS = 4
"""Threads that read, hash and decode; each holds one image at a time."""

_CHECK_SHORT_SIDE = 64  # JPEG is read to its end at any scale; an eighth is the cheapest.


@dataclass(frozen=True)
class Problem:
    """Something wrong with the table or with one of its files.

    `kind`: one of :data:`KINDS`. `row`: as a spreadsheet shows it (header: 1), None where the
    whole table is meant. `image`: as written in the table. `str()` is safe to print.
    """

    kind: str
    row: int | None
    image: str | None
    detail: str
    severity: Severity

    def __str__(self) -> str:
        row = "" if self.row is None else f"row {self.row}: "
        image = "" if self.image is None else f"{printable(self.image)[:200]}: "
        return f"{self.severity}: {row}{image}{printable(self.detail)} [{self.kind}]"


@dataclass
class ManifestCounts:
    """How many of what. `readable`: images that passed every check of their own file;
    `groups`: distinct ones; "" among labels and splits counts empty cells."""

    images: int = 0
    readable: int = 0
    groups: int = 0
    masks: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ManifestReport:
    """What :func:`check_manifest` found, in the order of the rows."""

    problems: list[Problem]
    counts: ManifestCounts

    @property
    def ok(self) -> bool:
        """Whether there is no problem of severity "error"."""
        return not any(problem.severity == "error" for problem in self.problems)


@dataclass(frozen=True)
class _FileCheck:
    path: Path | None
    digest: bytes | None
    failures: tuple[tuple[str, str], ...]
    image_is_good: bool


def check_manifest(
    manifest: Manifest,
    *,
    decode: bool = True,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: bool = True,
) -> ManifestReport:
    """Check every file of a table, and the table as a whole.

    Parameters
    ----------
    manifest
        The table.
    decode
        Whether to decode each image (JPEG at an eighth of its scale, which still reads the file
        to its end). Without it files are only read and hashed.
    limits
        What an image may cost.
    progress
        Whether to show a progress bar.

    Returns
    -------
    ManifestReport
        Never raises for what a table or a file may hold.
    """
    records = manifest.records
    counts = _count(records)
    problems = [_table_problem("note", note) for note in manifest.notes]
    problems += _across_rows(records)
    by_path: dict[Path, int] = {}
    by_digest: dict[bytes, int] = {}
    copies: dict[int, list[int]] = defaultdict(list)
    bar = progress_bar("checking images", len(records)) if progress else nullcontext(None)
    with bar as shown:
        checked = _in_threads(manifest, decode=decode, limits=limits)
        for index, (record, check) in enumerate(zip(records, checked, strict=True)):
            problems += [_problem(kind, index, record, detail) for kind, detail in check.failures]
            counts.readable += check.image_is_good
            if check.path is not None:
                first = by_path.setdefault(check.path, index)
                if first != index:
                    problems.append(_duplicate_row(records, first, index))
                elif check.digest is not None:
                    same = by_digest.setdefault(check.digest, index)
                    if same != index:
                        copies[same].append(index)
            if shown is not None:
                shown.advance()
    for first, others in copies.items():
        problems += [_duplicate_content(records, [first, *others], later) for later in others]
    return ManifestReport(sorted(problems, key=lambda problem: problem.row or 0), counts)


def _in_threads(manifest: Manifest, *, decode: bool, limits: ImageLimits) -> Iterator[_FileCheck]:
    """Results in the order of the rows, with only a few files in flight."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="check")
    waiting: deque[Future[_FileCheck]] = deque()
    try:
        for record in manifest.records:
            waiting.append(pool.submit(_check_files, manifest, record, limits, decode=decode))
            if len(waiting) >= 4 * WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check_files(
    manifest: Manifest, record: Record, limits: ImageLimits, *, decode: bool
) -> _FileCheck:
    path, digest, failure = _check_file(manifest, record.image, limits, decode=decode)
    failures = [] if failure is None else [failure]
    if record.mask is not None:
        _, _, mask_failure = _check_file(manifest, record.mask, limits, decode=decode)
        if mask_failure is not None:
            failures.append(_as_mask_failure(record.mask, *mask_failure))
    return _FileCheck(path, digest, tuple(failures), image_is_good=failure is None)


def _check_file(
    manifest: Manifest, name: str, limits: ImageLimits, *, decode: bool
) -> tuple[Path | None, bytes | None, tuple[str, str] | None]:
    """Its real path, its SHA-256, and what is wrong with it (kind, detail)."""
    try:
        path = manifest.inside(name)
    except DerminoError:
        return None, None, ("outside_folder", "outside the image folder")
    try:
        data = read_image_bytes(path, limits=limits)
    except ImageError as error:
        return path, None, _why_not_read(path, name, error)
    digest = hashlib.sha256(data).digest()
    if decode:
        try:
            decode_image(data, limits=limits, short_side=_CHECK_SHORT_SIDE)
        except ImageError as error:
            return path, digest, ("unreadable", error.reason)
    return path, digest, None


def _why_not_read(path: Path, name: str, error: ImageError) -> tuple[str, str]:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        hint = " (its name has backslashes: write / between folders)" if "\\" in name else ""
        return "missing_file", f"no such file in the image folder{hint}"
    except (OSError, ValueError):
        return "unreadable", error.reason
    return ("unreadable" if regular else "not_regular_file"), error.reason


def _as_mask_failure(mask: str, kind: str, detail: str) -> tuple[str, str]:
    kinds = {"missing_file": "missing_mask", "outside_folder": "outside_folder"}
    return kinds.get(kind, "unreadable_mask"), f"mask {printable(mask)[:200]}: {detail}"


def _duplicate_row(records: list[Record], first: int, later: int) -> Problem:
    return _problem(
        "duplicate_row",
        later,
        records[later],
        f"the same file as row {row_number(first)}{_disagreement(records[first], records[later])}",
        severity="error" if records[first].split != records[later].split else "warning",
    )


def _duplicate_content(records: list[Record], same: list[int], later: int) -> Problem:
    """`same`: every row with this content; the row shown is one in another split if there is."""
    mine = records[later].split
    other = next((index for index in same if records[index].split != mine), same[0])
    across = records[other].split != mine
    return _problem(
        "duplicate_content_across_splits" if across else "duplicate_content",
        later,
        records[later],
        f"the same content as row {row_number(other)}"
        f"{_disagreement(records[other], records[later])}",
    )


def _disagreement(one: Record, other: Record) -> str:
    names = [
        name for name in ("split", "label", "group") if getattr(one, name) != getattr(other, name)
    ]
    return f", with another {' and '.join(names)}" if names else ""


def _across_rows(records: list[Record]) -> Iterator[Problem]:
    labelled = sum(record.label is not None for record in records)
    if records and not labelled:
        yield _table_problem("no_labels", "no row has a label")
    placed = sum(record.split is not None for record in records)
    if 0 < placed < len(records):
        yield _table_problem(
            "partial_split", f"{len(records) - placed} of {len(records)} rows have no split"
        )
    split_of: dict[str, tuple[str | None, int]] = {}
    told: set[str] = set()
    for index, record in enumerate(records):
        if labelled and record.label is None:
            yield _problem("empty_label", index, record, "no label")
        if record.group is None or record.group in told:
            continue
        split, first = split_of.setdefault(record.group, (record.split, index))
        if split != record.split:
            told.add(record.group)
            detail = (
                f"group {record.group[:100]!r} is in {record.split or 'no split'} here "
                f"and in {split or 'no split'} in row {row_number(first)}"
            )
            yield _problem("group_across_splits", index, record, detail)


def _count(records: list[Record]) -> ManifestCounts:
    return ManifestCounts(
        images=len(records),
        groups=len({record.group for record in records if record.group is not None}),
        masks=sum(record.mask is not None for record in records),
        labels=_tally(record.label for record in records),
        splits=_tally(record.split for record in records),
    )


def _tally(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value or "" for value in values).items()))


def _problem(
    kind: str, index: int, record: Record, detail: str, *, severity: Severity | None = None
) -> Problem:
    return Problem(kind, row_number(index), record.image, detail, severity or KINDS[kind])


def _table_problem(kind: str, detail: str) -> Problem:
    return Problem(kind, None, None, detail, KINDS[kind])
