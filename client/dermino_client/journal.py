"""A site's durable records: an append-only log that cannot be changed unnoticed.

One JSON object per line in `journal-000001.jsonl`, `journal-000002.jsonl`, ...; each line holds the
hash of the line before and its own, so that a changed, removed or swapped line breaks the chain.
`head.json` says how far the log is acknowledged, so that a log that ends too early is found too.

What a crash leaves is told apart from damage by the order of writing: first the line, then the
head. Whole valid lines after the head, and an unfinished one at the very end, come from a crash;
the next append takes the former in and cuts the latter off, since no append that wrote it ever
returned. All else is damage.

The chain shows tampering by someone who does not rewrite all of it. Against someone who does, or
who puts back an old copy of the whole folder, a hash that was written down elsewhere helps.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dermino_core.errors import DerminoError

GENESIS = "0" * 64
"""What the first line has in the place of the hash of the line before."""

LOCK_SECONDS = 60.0
"""How long to wait for other processes that write to the same journal."""

_HEAD = "head.json"
_NEW_HEAD = ".head.json.new"
_LOCK = "lock"
_FOREIGN = "is not what dermino wrote"


@dataclass(frozen=True)
class Entry:
    """One record with its place in the chain; the first has the sequence number 1."""

    seq: int
    record: dict[str, Any]
    hash: str


@dataclass(frozen=True)
class Verified:
    """A journal whose every line was checked; `head` is the hash of its last entry.

    `interrupted` says that a crash cut a write short; the next append mends that.
    """

    entries: int
    files: int
    head: str
    interrupted: bool


@dataclass(frozen=True)
class _Place:
    """Where an entry is: its number and hash, its file, its first byte and the one after it."""

    count: int = 0
    hash: str = GENESIS
    file: int = 1
    start: int = 0
    end: int = 0


_PLACE_TYPES = {key: type(value) for key, value in asdict(_Place()).items()}


class Journal:
    """An append-only log in a folder of its own, which many processes may write at once.

    Parameters
    ----------
    folder
        Made, private to its user, by the first append.
    rotate_bytes
        A file that would grow beyond this is followed by the next one.
    invalid
        Code of the error about a damaged journal.
    """

    def __init__(
        self, folder: Path, *, rotate_bytes: int = 8 * 2**20, invalid: str = "AUDIT_INVALID"
    ) -> None:
        self.folder = folder
        self._rotate_bytes = rotate_bytes
        self._invalid = invalid

    def append(self, record: Mapping[str, object]) -> Entry:
        """Add a record; when this returns, it is on the disk.

        Reads the head and the last entry, not the history.

        Raises
        ------
        DerminoError
            `JOURNAL_UNWRITABLE` if it cannot be written; the journal's own code if its end is
            damaged.
        ValueError
            If the record is not plain JSON.
        """
        with self.transaction() as transaction:
            return transaction.append(record)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Read and append while no other process does. Raises as :meth:`append`."""
        with ExitStack() as stack:
            with self._os_errors():
                self._make_folder()
                stack.enter_context(self._locked(fcntl.LOCK_EX))
                head = self._read_head()
                if head is None:
                    head = _Place()
                    self._write_head(head)
                    _fsync(self.folder)
                end, rest = self._find_end(head)
            transaction = Transaction(self, head, end, rest)
            try:
                yield transaction
            finally:
                transaction.usable = False

    def entries(self) -> Iterator[Entry]:
        """All entries, the oldest first, each checked against the one before.

        Holds no lock between entries; shows what was there at the first.

        Raises
        ------
        DerminoError
            The journal's own code at the first damaged line.
        """
        with self._os_errors(), self._locked(fcntl.LOCK_SH):
            head = self._read_head()
            end = _Place() if head is None else self._find_end(head)[0]
        yield from self._entries_until(end)

    def verify(self) -> Verified:
        """Check every line and the head.

        Raises
        ------
        DerminoError
            The journal's own code, naming file and line.
        """
        with self._os_errors(), self._locked(fcntl.LOCK_SH):
            head = self._read_head()
            if head is None:
                return Verified(0, 0, GENESIS, interrupted=False)
            files = self._files()
            for _ in self._read_on(_Place(), files):
                pass
            end, rest = self._find_end(head)
            return Verified(end.count, files, end.hash, interrupted=rest or end != head)

    def _entries_until(self, end: _Place) -> Iterator[Entry]:
        if end.count == 0:
            return
        with self._os_errors():
            for entry, at in self._read_on(_Place(), end.file):
                yield entry
                if at == end:
                    return

    def _file(self, number: int) -> Path:
        return self.folder / f"journal-{number:06d}.jsonl"

    def _files(self) -> int:
        """How many files there are; they are numbered without a gap."""
        found = {file.name for file in self.folder.glob("journal-*")}
        expected = {self._file(n).name for n in range(1, len(found) + 1)}
        if found != expected:
            missing, foreign = sorted(expected - found), sorted(found - expected)
            raise self._damaged(
                f"{missing[0]} is missing, or {foreign[0]} does not belong to it.", self.folder
            )
        return len(found)

    def _read_head(self) -> _Place | None:
        """The acknowledged end; None for a journal that was never written."""
        file = self.folder / _HEAD
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            if self._files() == 0:
                return None
            raise self._damaged(f"{_HEAD} is missing.", file) from None
        with suppress(ValueError):
            known = _decode(content)
            if {key: type(value) for key, value in known.items()} == _PLACE_TYPES:
                head = _Place(**known)
                whole = min(head.count, head.file) > 0 and 0 <= head.start < head.end
                if whole or head == _Place():
                    return head
        raise self._damaged(f"{_HEAD} {_FOREIGN}.", file)

    def _write_head(self, head: _Place) -> None:
        """Replace the head; the replacement is the last step, so an error means the old head."""
        new = self.folder / _NEW_HEAD
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(handle, _encode(asdict(head)))
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(new, self.folder / _HEAD)

    def _find_end(self, head: _Place) -> tuple[_Place, bool]:
        """The last whole entry, and whether an unfinished one or an empty file follows."""
        files = self._files()
        if head.count == 0 and files == 0:
            return head, False
        if head.file > files:
            raise self._bad_line(head.file, 0, "is missing with its file")
        if head.count > 0:
            try:
                entry, _ = _parse(self._last_line(head))
            except ValueError as error:
                raise self._bad_line(head.file, head.start, str(error)) from None
            if (entry.seq, entry.hash) != (head.count, head.hash):
                what = f"is not the one that {_HEAD} names"
                raise self._bad_line(head.file, head.start, what)
        end = head
        for _, place in self._read_on(head, files):
            end = place
        rest = end.file < files or self._file(end.file).stat().st_size > end.end
        return end, rest

    def _last_line(self, head: _Place) -> bytes:
        with self._file(head.file).open("rb") as file:
            if os.fstat(file.fileno()).st_size < head.end:
                raise ValueError(f"is cut off or missing: {_HEAD} counts {head.count} entries")
            file.seek(head.start)
            return file.read(head.end - head.start)

    def _read_on(self, at: _Place, files: int) -> Iterator[tuple[Entry, _Place]]:
        """Entries after a place with the place after each; ends at an unfinished last line."""
        for number in range(at.file, files + 1):
            offset = at.end if number == at.file else 0
            with self._file(number).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset)
                for line in file:
                    try:
                        entry, previous = _parse(line)
                        if (entry.seq, previous) != (at.count + 1, at.hash):
                            raise ValueError("does not follow the line before it")
                    except ValueError as error:
                        if number == files and offset + len(line) >= size and _unfinished(line):
                            return
                        raise self._bad_line(number, offset, str(error)) from None
                    at = _Place(entry.seq, entry.hash, number, offset, offset + len(line))
                    offset = at.end
                    yield entry, at

    def _bad_line(self, number: int, offset: int, what: str) -> DerminoError:
        """An error about the line of a file that holds the byte at `offset`."""
        file, line = self._file(number), 1
        with suppress(OSError), file.open("rb") as content:
            line += content.read(offset).count(b"\n")
        return self._damaged(f"Line {line} of {file.name} {what}.", f"{file}, line {line}")

    def _damaged(self, what: str, where: object) -> DerminoError:
        return DerminoError(
            self._invalid,
            f"The journal is damaged or was changed. {what}",
            where=where,
            fix=f"Do not mend it by hand: keep a copy of {self.folder} and find out what changed "
            "it. Then put the whole folder back from a backup, or move it away to begin a new "
            "one, which knows nothing of the past.",
        )

    def _unusable(self, why: str, where: object = None) -> DerminoError:
        return DerminoError(
            "JOURNAL_UNWRITABLE",
            f"The journal cannot be read or written: {why}.",
            where=where or self.folder,
            fix="Free disk space or mend the permissions of the folder, then try again. What was "
            "recorded before is still there.",
        )

    def _make_folder(self) -> None:
        missing = [f for f in (self.folder, *self.folder.parents) if not f.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
            _fsync(folder.parent)
        if self.folder.stat().st_mode & 0o077:
            self.folder.chmod(0o700)

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT if kind == fcntl.LOCK_EX else os.O_RDONLY
        try:
            lock = os.open(self.folder / _LOCK, flags, 0o600)
        except FileNotFoundError:  # never written, or a copy to be read
            yield
            return
        deadline = time.monotonic() + LOCK_SECONDS
        try:
            while not _try_lock(lock, kind):
                if time.monotonic() > deadline:
                    raise self._unusable("another process does not let go of it")
                time.sleep(0.002)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unusable(error.strerror or str(error), error.filename) from error


class Transaction:
    """A journal that no other process writes to; made by :meth:`Journal.transaction`."""

    def __init__(self, journal: Journal, head: _Place, end: _Place, rest: bool) -> None:
        self.usable = True
        self._journal = journal
        self._head = head
        self._end = end
        self._rest = rest

    def entries(self) -> Iterator[Entry]:
        """As :meth:`Journal.entries`."""
        return self._journal._entries_until(self._end)

    def append(self, record: Mapping[str, object]) -> Entry:
        """As :meth:`Journal.append`. After a failure the transaction takes nothing more."""
        entry, line = _make_line(self._end.count + 1, self._end.hash, record)
        if not self.usable:
            raise self._journal._unusable("its transaction is over")
        self.usable = False
        with self._journal._os_errors():
            self._mend()
            self._head = self._end = self._write(entry, line)
        self.usable = True
        return entry

    def _write(self, entry: Entry, line: bytes) -> _Place:
        journal, number, start = self._journal, self._end.file, self._end.end
        if start and start + len(line) > journal._rotate_bytes:
            number, start = number + 1, 0
        end = _Place(entry.seq, entry.hash, number, start, start + len(line))
        handle = os.open(journal._file(number), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.lseek(handle, start, os.SEEK_SET)
            _write_all(handle, line)
            os.fsync(handle)
            if start == 0:
                _fsync(journal.folder)
            journal._write_head(end)
        except OSError:
            # The head still names the entry before. Where this fails too, the next append mends.
            with suppress(OSError):
                os.ftruncate(handle, start)
                if start == 0:
                    os.unlink(journal._file(number))
            raise
        finally:
            os.close(handle)
        return end

    def _mend(self) -> None:
        """Cut off what a crash left unfinished, and let the head cover what it left whole."""
        journal, end = self._journal, self._end
        if not self._rest and end == self._head:
            return
        for number in range(journal._files(), end.file, -1):
            os.unlink(journal._file(number))
        os.truncate(journal._file(end.file), end.end)
        for number in range(self._head.file, end.file + 1):
            _fsync(journal._file(number))
        _fsync(journal.folder)
        if end != self._head:
            journal._write_head(end)


def _encode(content: object) -> bytes:
    """Canonical JSON on one line: the same content gives the same bytes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"


def _decode(line: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        content = json.loads(line)
        if isinstance(content, dict) and _encode(content) == line:
            return content
    raise ValueError(_FOREIGN)


def _make_line(seq: int, previous: str, record: Mapping[str, object]) -> tuple[Entry, bytes]:
    body: dict[str, Any] = {"prev": previous, "record": dict(record), "seq": seq}
    try:
        line = _encode({**body, "hash": hashlib.sha256(_encode(body)).hexdigest()})
        return _parse(line)[0], line
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The record is not plain JSON: {error}") from None


def _parse(line: bytes) -> tuple[Entry, str]:
    """The entry of a line, and the hash of the line before as this line has it."""
    content = _decode(line)
    if set(content) != {"hash", "prev", "record", "seq"} or not isinstance(content["record"], dict):
        raise ValueError(_FOREIGN)
    claimed = content.pop("hash")
    if claimed != hashlib.sha256(_encode(content)).hexdigest():
        raise ValueError("was changed: its hash does not fit its content")
    return Entry(content["seq"], content["record"], claimed), content["prev"]


def _unfinished(line: bytes) -> bool:
    """Whether a crash can have left it: no end, or pages that never reached the disk (zeros)."""
    return not line.endswith(b"\n") or b"\0" in line


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
