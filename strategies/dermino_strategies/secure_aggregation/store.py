"""Where a site keeps its records of secure aggregation, so that no two messages act on the same.

What the rules "mask once" and "confirm once" are worth depends on this memory. A site whose disk is
set back to an older state, or that runs twice on two disks, can be made to confirm twice.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from dermino_core.errors import DerminoError
from dermino_strategies.secure_aggregation.records import Record

ABANDONED_SECONDS = 7 * 86_400.0
"""An unfinished session's secrets and a finished one's reply are erased after this time."""

TOMBSTONE_SECONDS = 400 * 86_400.0
"""After this time it is forgotten that a round was confirmed."""

LOCK_SECONDS = 60.0
"""How long to wait for another process that answers a message."""

_PRUNE_SECONDS = 86_400.0


class Slot:
    """One record while nobody else can read or write it."""

    def __init__(
        self, read: Callable[[], str | bytes | None], write: Callable[[str], None]
    ) -> None:
        self._read = read
        self._write = write

    def read(self) -> Record | None:
        """The record, or None if there is none.

        Raises
        ------
        DerminoError
            `SECURE_REFUSED` if it is damaged.
        """
        text = self._read()
        if text is None:
            return None
        try:
            return Record.model_validate_json(text)
        except ValidationError:
            raise DerminoError(
                "SECURE_REFUSED",
                "This site's memory of a secure aggregation is damaged, so that it cannot tell "
                "what it has already sent.",
                fix="Let the coordinator start a new run; the file can be removed after that.",
            ) from None

    def write(self, record: Record) -> None:
        """Replace the record; it is on the disk when this returns."""
        self._write(record.model_dump_json())


class SessionStore(Protocol):
    """Records by the `round_key` of their session."""

    def locked(self, key: str) -> AbstractContextManager[Slot]:
        """The record of a key, alone: any other thread or process waits until the block ends."""
        ...

    def prune(self, now: float | None = None) -> None:
        """Erase what is old: see `ABANDONED_SECONDS` and `TOMBSTONE_SECONDS`."""
        ...


class MemoryStore:
    """For simulations in one process. Holds JSON, as files do."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def locked(self, key: str) -> Iterator[Slot]:
        """As :meth:`SessionStore.locked`."""
        with self._lock:
            yield self._slot(key)

    def prune(self, now: float | None = None) -> None:
        """As :meth:`SessionStore.prune`."""
        with self._lock:
            for key in list(self.texts):
                if _prune_slot(self._slot(key), time.time() if now is None else now):
                    del self.texts[key]

    def _slot(self, key: str) -> Slot:
        def write(text: str) -> None:
            self.texts[key] = text

        return Slot(lambda: self.texts.get(key), write)


class FileStore:
    """One JSON file per record in a folder that only its owner can enter.

    Erasing a secret means writing a new file without it over the old one. What the disk itself
    keeps of overwritten files is beyond this.

    Parameters
    ----------
    folder
        Made, with mode 0700, by the first use. Must be on a disk whose locks hold between all
        processes that answer for the site.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self, key: str) -> Iterator[Slot]:
        """As :meth:`SessionStore.locked`.

        Raises
        ------
        DerminoError
            `JOURNAL_UNWRITABLE` if the folder cannot be used, or is locked for a minute.
        """
        with self._lock():
            yield self._slot(self.folder / f"{key}.json")

    def prune(self, now: float | None = None) -> None:
        """As :meth:`SessionStore.prune`; does nothing within a day of the last time."""
        moment = time.time() if now is None else now
        stamp = self.folder / "pruned"
        with self._lock():
            try:
                last = float(stamp.read_text(encoding="ascii"))
            except (OSError, ValueError):
                last = 0.0
            if last <= moment < last + _PRUNE_SECONDS:
                return
            for file in sorted(self.folder.iterdir()):
                if file.name.startswith("."):
                    # Half written when a process died: nobody else writes under this lock.
                    file.unlink(missing_ok=True)
                elif file.suffix == ".json":
                    self._prune_file(file, moment)
            _write_private(stamp, f"{moment}\n")

    def _prune_file(self, file: Path, moment: float) -> None:
        # A damaged record stays, so that its round stays refused.
        with suppress(DerminoError):
            if _prune_slot(self._slot(file), moment):
                file.unlink(missing_ok=True)

    def _slot(self, file: Path) -> Slot:
        def read() -> bytes | None:
            try:
                return file.read_bytes()
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _unusable(file, error) from None

        return Slot(read, lambda text: _write_private(file, text))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.folder.stat().st_mode & 0o077:
                self.folder.chmod(0o700)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.folder, error) from None
        try:
            _wait_for(lock, self.folder)
            yield
        finally:
            os.close(lock)


def _wait_for(lock: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _unusable(folder, "another process does not let go of it") from None
        except OSError as error:
            raise _unusable(folder, error) from None
        time.sleep(0.002)


def _write_private(file: Path, text: str) -> None:
    """Whole or not at all, as `dermino_core.files` does, but never readable by others."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(text.encode("utf-8"))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _unusable(file, error) from None


def _prune_slot(slot: Slot, now: float) -> bool:
    """Make a tombstone of what is abandoned; True if even the tombstone is old."""
    record = slot.read()
    if record is None:
        return False
    age = now - record.touched
    if age > TOMBSTONE_SECONDS:
        return True
    if age > ABANDONED_SECONDS and record.state is not None:
        slot.write(record.tombstone())
    return False


def _unusable(where: Path, why: object) -> DerminoError:
    return DerminoError(
        "JOURNAL_UNWRITABLE",
        f"The memory of secure aggregation cannot be used: {why}.",
        where=where,
        fix="Nothing was sent. Check the disk and who owns the folder.",
    )
