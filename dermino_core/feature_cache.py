"""Features that are computed once: a content-addressed store in one SQLite file.

One file with real transactions survives a kill at any instruction and serves several processes at
once, where a folder of shard files would need its own locking, manifest and clean-up. Its rollback
journal (not WAL, which needs shared memory) also works on the network file systems that hospitals
keep caches on; `synchronous=FULL` costs two flushes a second here, because writes come in batches,
and makes a committed batch survive a power cut.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dermino_core.errors import DerminoError

FILE_NAME = "features.sqlite"
FORMAT = 1
BUSY_SECONDS = 120.0
"""How long to wait for another process's transaction, which takes milliseconds."""

COMMIT_ROWS = 256
COMMIT_SECONDS = 1.0
"""What is written is committed when so many rows or seconds have gathered."""

RACY_NANOSECONDS = 2_000_000_000
"""A file changed less than this before it was read may change again within the clock's tick."""

Stamp = tuple[int, int, int, int]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER,
    digest BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vectors (
    model BLOB NOT NULL, digest BLOB NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (model, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unreadable (
    decoder TEXT NOT NULL, digest BLOB NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (decoder, digest)
) WITHOUT ROWID;
"""


def stamp_of(stat: os.stat_result) -> Stamp:
    """What tells that a file is unchanged: size, both times (nanoseconds), inode."""
    # Unsigned 64-bit inodes exist; SQLite's integers are signed.
    inode = stat.st_ino & 0x7FFF_FFFF_FFFF_FFFF
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, inode


class FeatureCache:
    """The cache in `folder`. Use it in a `with` block; leaving it commits, even on an error.

    Reading is safe from several threads, writing is for one.

    Raises
    ------
    DerminoError
        CACHE_CORRUPT for a damaged file, naming what to delete; CACHE_UNWRITABLE where the folder
        is read-only or the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE_NAME
        self._lock = threading.RLock()
        self._files: dict[bytes, tuple[Stamp, bytes]] = {}
        self._vectors: dict[tuple[bytes, bytes], bytes] = {}
        self._unreadable: dict[tuple[str, bytes], str] = {}
        self._last = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error
        with self._translated():
            self._base = sqlite3.connect(
                self.file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._open()
            except BaseException:
                self._base.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(error, DerminoError):
                self.commit()
        finally:
            self._base.close()

    def digest_of(self, path: bytes, stamp: Stamp) -> bytes | None:
        """The sha256 of a file seen before, if its stamp is unchanged."""
        columns = "size, mtime_ns, ctime_ns, inode, digest"
        found = self._one(f"SELECT {columns} FROM files WHERE path = ?", path)  # noqa: S608
        return found[4] if found and tuple(found[:4]) == stamp else None

    def remember_file(self, path: bytes, stamp: Stamp, digest: bytes, read_ns: int) -> None:
        """Note what a file held when it was read, at `read_ns` (nanoseconds since the epoch)."""
        if max(stamp[1], stamp[2]) + RACY_NANOSECONDS < read_ns:
            with self._lock:
                self._files[path] = (stamp, digest)

    def has_vector(self, model: bytes, digest: bytes) -> bool:
        """Whether an image's features are there."""
        with self._lock:
            if (model, digest) in self._vectors:
                return True
        query = "SELECT 1 FROM vectors WHERE model = ? AND digest = ?"
        return self._one(query, model, digest) is not None

    def vector(self, model: bytes, digest: bytes, width: int) -> np.ndarray:
        """An image's features, float32 [width].

        Raises
        ------
        KeyError
            If they are not there.
        DerminoError
            CACHE_CORRUPT if they are damaged.
        """
        with self._lock:
            blob = self._vectors.get((model, digest))
        if blob is None:
            query = "SELECT vector FROM vectors WHERE model = ? AND digest = ?"
            found = self._one(query, model, digest)
            if found is None:
                raise KeyError(digest.hex())
            blob = found[0]
        body, check = blob[:-4], blob[-4:]
        if len(body) != 4 * width or zlib.crc32(body).to_bytes(4, "little") != check:
            raise self._corrupt("a feature vector fails its checksum")
        return np.frombuffer(body, dtype="<f4")

    def put_vector(self, model: bytes, digest: bytes, vector: np.ndarray) -> None:
        """Keep an image's features, float32 [width]."""
        body = vector.astype("<f4").tobytes()
        with self._lock:
            self._vectors[(model, digest)] = body + zlib.crc32(body).to_bytes(4, "little")

    def unreadable(self, decoder: str, digest: bytes) -> str | None:
        """Why `decoder` could not read an image, None if it was not found unreadable."""
        with self._lock:
            waiting = self._unreadable.get((decoder, digest))
        if waiting is not None:
            return waiting
        query = "SELECT reason FROM unreadable WHERE decoder = ? AND digest = ?"
        found = self._one(query, decoder, digest)
        return None if found is None else str(found[0])

    def put_unreadable(self, decoder: str, digest: bytes, reason: str) -> None:
        """Keep why an image cannot be read."""
        with self._lock:
            self._unreadable[(decoder, digest)] = reason

    def commit_if_due(self) -> None:
        """Commit when enough rows or time have gathered."""
        waiting = len(self._files) + len(self._vectors) + len(self._unreadable)
        if waiting >= COMMIT_ROWS or time.monotonic() - self._last >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what has gathered, in one transaction."""
        with self._lock:
            self._last = time.monotonic()
            if not (self._files or self._vectors or self._unreadable):
                return
            with self._translated():
                self._write()
            self.discard()

    def discard(self) -> None:
        """Forget what has gathered since the last commit."""
        with self._lock:
            self._files.clear()
            self._vectors.clear()
            self._unreadable.clear()

    def _write(self) -> None:
        base = self._base
        base.execute("BEGIN IMMEDIATE")
        try:
            base.executemany(
                "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)",
                [(model, digest, blob) for (model, digest), blob in self._vectors.items()],
            )
            base.executemany(
                "INSERT OR IGNORE INTO unreadable VALUES (?, ?, ?)",
                [(decoder, digest, why) for (decoder, digest), why in self._unreadable.items()],
            )
            base.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)",
                [(path, *stamp, digest) for path, (stamp, digest) in self._files.items()],
            )
            base.execute("COMMIT")
        except BaseException:
            if base.in_transaction:
                base.execute("ROLLBACK")
            raise

    def _open(self) -> None:
        base = self._base
        base.execute("PRAGMA journal_mode = DELETE")
        base.execute("PRAGMA synchronous = FULL")
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT):
            raise self._corrupt(f"it has format {version}, this version of dermino reads {FORMAT}")
        base.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            base.execute(statement)
        base.execute(f"PRAGMA user_version = {FORMAT}")
        base.execute("COMMIT")

    def _one(self, query: str, *values: object) -> tuple | None:
        with self._lock, self._translated():
            return self._base.execute(query, values).fetchone()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._corrupt(str(error)) from error
            if code in (sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH):
                raise self._corrupt(str(error)) from error
            raise self._unwritable(str(error)) from error

    def _corrupt(self, why: str) -> DerminoError:
        return DerminoError(
            "CACHE_CORRUPT",
            f"The feature cache is damaged: {why}.",
            where=self.file,
            fix=(
                f"Delete {self.file} (and {self.file.name}-journal, if there is one);"
                " features will be computed again."
            ),
        )

    def _unwritable(self, why: str) -> DerminoError:
        return DerminoError(
            "CACHE_UNWRITABLE",
            f"The feature cache cannot be written: {why}.",
            where=self.file,
            fix="Free disk space, correct the folder's permissions, or choose another cache.",
        )
