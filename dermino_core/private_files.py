"""Files of one user: folders 0700, keys 0600 that nobody overwrites, a lock between processes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dermino_core.errors import DerminoError

FOLDER_MODE = 0o700
KEY_MODE = 0o600


def private_folder(folder: Path) -> None:
    """Make `folder` with mode 0700, or give an existing one that mode."""
    folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    folder.chmod(FOLDER_MODE)


def refuse_existing(*files: Path) -> None:
    """Raise `OUTPUT_EXISTS` if one of `files` is there, be it only as a link to nowhere."""
    for file in files:
        if file.exists() or file.is_symlink():
            raise DerminoError(
                "OUTPUT_EXISTS",
                "the file is there already, and keys are never overwritten",
                where=file,
                fix="to replace it, move it away (with the file it belongs to) and run this again",
            )


def write_new(file: Path, content: bytes, *, mode: int = KEY_MODE) -> None:
    """Write a file that is whole or absent, never readable by others on the way, never replaced.

    Raises
    ------
    DerminoError
        `OUTPUT_EXISTS` if the file is there.
    """
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        try:
            os.link(name, file)
        except FileExistsError:
            refuse_existing(file)
            raise
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes that do the same; waits for them.

    The lock ends with the process, however it ends.
    """
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, KEY_MODE)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
