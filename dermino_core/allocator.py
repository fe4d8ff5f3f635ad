"""Keep freed memory in the process, for loops that ask for the same large tensors again and again.

glibc gives every block above 32 MiB back to the system when it is freed, and the next one of its
size is mapped, cleared and faulted in page by page. A step of pretraining on a processor spent a
quarter of its time so.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Numbers of glibc's malloc.h."""

_AFTER = ((_M_MMAP_MAX, 65536), (_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 64 << 20))
"""Where glibc's own adjustment of its thresholds ends in a process that uses large blocks."""

_lock = threading.Lock()
_users = 0


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Inside, what is freed stays in the process; at the end it goes back to the system.

    May be entered by several threads at once. Nothing happens if `device` is not `cpu` or the C
    library is not glibc.
    """
    libc = _glibc() if device == "cpu" else None
    if libc is None:
        yield
        return
    _change(libc, +1)
    try:
        yield
    finally:
        _change(libc, -1)


def _change(libc: Any, by: int) -> None:
    global _users
    with _lock:
        _users += by
        if by > 0 and _users == 1:
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, -1)
        elif _users == 0:
            for name, value in _AFTER:
                libc.mallopt(name, value)
            libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process, if it has glibc's functions."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
