"""Shrink originals once: images of any manifests to shards that training reads fast.

Each image is decoded upright, shrunk to a shorter side of 512 pixels (never enlarged), cropped at
its centre to at most 2:1, as the loader would, and encoded as JPEG (quality 95, no chroma
subsampling). No metadata of the original file goes along. A shard appears whole or not at all, so
that a killed run goes on with the next one; the same images in the same order always give the same
bytes. :mod:`dermino_core.pretraining.shard_folder` describes the files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from dermino_core.errors import DerminoError
from dermino_core.files import open_atomically, write_atomically
from dermino_core.image_limits import ImageError
from dermino_core.images import decode_image
from dermino_core.pretraining.image_list import fit_image
from dermino_core.pretraining.shard_folder import (
    COLUMNS,
    FORMAT,
    LIST,
    Shard,
    check_shard,
    read_shard,
    write_list,
)
from dermino_core.pretraining.shard_plan import Row, about, fingerprint, plan_rows
from dermino_core.progress import Progress, progress_bar

QUALITY = 95
"""Of the JPEGs; chroma is not subsampled."""

PLAN = "plan.json"
DROPPED = "dropped.csv"


@dataclass(frozen=True)
class ShardReport:
    """What :func:`write_shards` left: images and bytes in the folder, what it dropped and made.

    `made`: shards written by this call. `repaired`: names of shards that were damaged and have
    been made anew. `dropped_file`: the table of dropped images.
    """

    images: int
    shards: int
    size: int
    dropped: int
    made: int
    repaired: tuple[str, ...]
    dropped_file: Path


@dataclass(frozen=True)
class _Encoded:
    row: Row
    jpeg: bytes = b""
    width: int = 0
    height: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class _Work:
    """One call of :func:`write_shards`."""

    out: Path
    rows: list[Row]
    plan: str
    side: int
    shard_bytes: int
    threads: int


def write_shards(
    manifests: Sequence[Path],
    out: Path,
    *,
    images: Path | None = None,
    columns: Mapping[str, str] | None = None,
    side: int = 512,
    shard_mb: int = 256,
    verify: bool = False,
    threads: int | None = None,
) -> ShardReport:
    """Write all images of some manifests as shards; go on where an earlier call stopped.

    Every row is taken, whatever its split: a run selects splits when it reads. The data set of a
    row is FOLDER/STEM of its manifest. Changed labels are another plan and need another folder.

    Parameters
    ----------
    manifests
        Tables of images.
    out
        Folder of the shards.
    images, columns
        As :func:`~dermino_core.manifest.read_manifest`, for all of them.
    side
        Shorter side, in pixels.
    shard_mb
        A shard ends after the image with which it reaches so many megabytes (10**6 bytes).
    verify
        Compare the checksum of every shard even if all are finished; otherwise only their sizes
        are then compared. Damaged ones are made anew.
    threads
        That decode; by default one per core.

    Raises
    ------
    DerminoError
        OUTPUT_EXISTS if the folder holds shards of other tables or settings, or another process
        writes to it; IMAGE_UNREADABLE if not one image can be read; as `read_manifest`.
    """
    rows = plan_rows(manifests, images, columns)
    work = _Work(
        out,
        rows,
        fingerprint(rows, FORMAT, QUALITY, side, shard_mb),
        side,
        shard_mb * 10**6,
        threads or os.cpu_count() or 1,
    )
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _claim(work, manifests)
        complete = (out / LIST).exists()
        kept, damaged = _finished(work, whole=verify or not complete)
        done = sum(shard.end - shard.first for shard in kept)
        if not complete or done < len(rows):
            (out / LIST).unlink(missing_ok=True)
            with progress_bar("shards", total=len(rows) - done) as bar:
                made = [*_remake(work, damaged, bar), *_write_rest(work, [*kept, *damaged], bar)]
            shards = sorted([*kept, *made], key=lambda shard: shard.first)
            _publish(work, shards)
        else:
            made, shards = [], kept
    return ShardReport(
        images=sum(shard.images for shard in shards),
        shards=len(shards),
        size=sum(shard.size for shard in shards),
        dropped=sum(len(shard.dropped) for shard in shards),
        made=len(made),
        repaired=tuple(f"{shard.name}.tar" for shard in damaged),
        dropped_file=out / DROPPED,
    )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends in any way."""
    import fcntl

    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DerminoError(
                "OUTPUT_EXISTS",
                "Another process is writing shards to this folder.",
                where=out,
                fix="Wait until it has finished, or give another --out.",
            ) from error
        yield


def _claim(work: _Work, manifests: Sequence[Path]) -> None:
    """Note whose shards these are, or see that they are ours; remove what a killed run left."""
    file = work.out / PLAN
    try:
        found = json.loads(file.read_bytes())["plan"]
    except FileNotFoundError:
        found = None if any(work.out.glob("[0-9]*.tar")) else work.plan
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != work.plan:
        raise DerminoError(
            "OUTPUT_EXISTS",
            "The folder holds shards of other tables or of other settings.",
            where=work.out,
            fix="Give the tables and options of the first run, or another --out.",
        )
    for rest in work.out.glob(".[0-9]*.*.*"):
        rest.unlink()
    if not file.exists():
        content = {
            "plan": work.plan,
            "side": work.side,
            "quality": QUALITY,
            "rows": len(work.rows),
            "manifests": [str(manifest) for manifest in manifests],
        }
        write_atomically(file, json.dumps(content, indent=1) + "\n")


def _finished(work: _Work, *, whole: bool) -> tuple[list[Shard], list[Shard]]:
    """Shards of earlier calls: those that are in order, and those that are damaged."""
    kept: list[Shard] = []
    damaged: list[Shard] = []
    end = 0
    for number in itertools.count():
        try:
            shard = read_shard(work.out / f"{number:06d}.json")
        except (OSError, ValueError, KeyError, TypeError):
            return kept, damaged
        if shard.first != end or shard.end > len(work.rows):
            return kept, damaged
        end = shard.end
        try:
            check_shard(work.out, shard, whole=whole)
            kept.append(shard)
        except DerminoError:
            damaged.append(shard)
    return kept, damaged


def _remake(work: _Work, damaged: Sequence[Shard], bar: Progress) -> Iterator[Shard]:
    for shard in damaged:
        with _encoded(work, shard.first, shard.end) as stream:
            yield _write_shard(work, shard.name, shard.first, stream, bar, limit=None)


def _write_rest(work: _Work, before: Sequence[Shard], bar: Progress) -> Iterator[Shard]:
    first = max((shard.end for shard in before), default=0)
    with _encoded(work, first, len(work.rows)) as stream:
        for number in itertools.count(len(before)):
            if first == len(work.rows):
                return
            shard = _write_shard(work, f"{number:06d}", first, stream, bar, limit=work.shard_bytes)
            first = shard.end
            yield shard


def _write_shard(
    work: _Work,
    name: str,
    first: int,
    stream: Iterator[_Encoded],
    bar: Progress,
    *,
    limit: int | None,
) -> Shard:
    """Write the next images of `stream` until `limit` bytes, or all of them."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    dropped: list[tuple[int, str]] = []
    seen = images = 0
    with open_atomically(work.out / f"{name}.tar") as file:
        target = _Hashed(file)
        with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
            for encoded in stream:
                seen += 1
                bar.advance()
                if encoded.reason is not None:
                    dropped.append((encoded.row.number, encoded.reason))
                    continue
                images += 1
                known = {**about(encoded.row), "width": encoded.width, "height": encoded.height}
                key = f"{encoded.row.number:09d}"
                offset = tar.offset + tarfile.BLOCKSIZE
                _add(tar, f"{key}.jpg", encoded.jpeg)
                _add(tar, f"{key}.json", json.dumps(known).encode())
                digest = hashlib.sha256(encoded.jpeg).hexdigest()
                writer.writerow((offset, len(encoded.jpeg), digest, *known.values()))
                if limit is not None and tar.offset >= limit:
                    break
    text = table.getvalue().encode("utf-8", "surrogatepass")
    write_atomically(work.out / f"{name}.csv", text)
    shard = Shard(
        name=name,
        first=first,
        end=first + seen,
        images=images,
        size=target.size,
        sha256=target.digest.hexdigest(),
        table_sha256=hashlib.sha256(text).hexdigest(),
        dropped=tuple(dropped),
    )
    write_atomically(work.out / f"{name}.json", json.dumps(asdict(shard)) + "\n")
    return shard


class _Hashed:
    """A file that is hashed and counted while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@contextmanager
def _encoded(work: _Work, first: int, end: int) -> Iterator[Iterator[_Encoded]]:
    """Rows first..end-1, prepared by threads a bounded number ahead, in order."""
    window: deque[Future[_Encoded]] = deque()
    rows = iter(work.rows[first:end])
    with ThreadPoolExecutor(work.threads, thread_name_prefix="shrink") as pool:

        def ahead() -> Iterator[_Encoded]:
            for row in itertools.islice(rows, 4 * work.threads):
                window.append(pool.submit(_encode, row, work.side))
            while window:
                yield window.popleft().result()
                window.extend(
                    pool.submit(_encode, row, work.side) for row in itertools.islice(rows, 1)
                )

        try:
            yield ahead()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _encode(row: Row, side: int) -> _Encoded:
    """Runs in a thread."""
    try:
        path = row.manifest.path_of(row.record)
        image = fit_image(decode_image(path, short_side=side), side)
    except ImageError as error:
        return _Encoded(row, reason=error.reason)
    except DerminoError:
        return _Encoded(row, reason="outside the image folder, or not a valid path")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return _Encoded(row, buffer.getvalue(), *image.size)


def _publish(work: _Work, shards: Sequence[Shard]) -> None:
    """Write the table of dropped images and, last, the list of shards."""
    dropped = [entry for shard in shards for entry in shard.dropped]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(("manifest", "row", "image", "reason"))
    for number, reason in dropped:
        row = work.rows[number]
        writer.writerow((row.manifest.file, row.line, row.record.image, reason))
    write_atomically(work.out / DROPPED, text.getvalue().encode("utf-8", "surrogatepass"))
    if not any(shard.images for shard in shards):
        for shard in shards:
            for kind in ("json", "csv", "tar"):
                (work.out / f"{shard.name}.{kind}").unlink()
        raise DerminoError(
            "IMAGE_UNREADABLE",
            f"None of {len(work.rows)} images can be read; the first: {dropped[0][1]}.",
            where=work.out / DROPPED,
            fix="Give the folder that the tables' entries are relative to: --images FOLDER.",
        )
    write_list(work.out, work.plan, shards)
