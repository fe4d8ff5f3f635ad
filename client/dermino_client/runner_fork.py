"""One process per message, without its imports: each is a copy of a process that has them."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from typing import NoReturn

_LOOK_SECONDS = 0.05
_PARENT_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_KILLED = 128


def next_copy(parent: int) -> None:
    """Return in a new process; return again, in another, when that one has ended well.

    The process that called it does nothing else any more. It must have one thread only, and have
    used nothing that holds a connection or a random state. On anything but Linux, where copying a
    process is not safe, it returns in the same one.

    Parameters
    ----------
    parent
        The parent's process id. When that has ended, however, they all end.

    Raises
    ------
    SystemExit
        With the status of a copy that did not end well; 128 and the signal's number if it was
        killed.
    """
    if sys.platform != "linux":
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
        return
    original = os.getpid()
    gc.collect()
    gc.freeze()  # else the first collection in a copy writes to, and so copies, all its memory
    while True:
        copy = os.fork()
        if copy == 0:
            _end_with(original)
            return
        code = _status(copy, parent)
        if code:
            sys.exit(code if code > 0 else _KILLED - code)


def leave() -> NoReturn:
    """End a copy that has done its work, without taking apart all that it is a copy of."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _status(copy: int, parent: int) -> int:
    """How a copy ended, as `subprocess` says it."""
    while True:
        ended, status = os.waitpid(copy, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if os.getppid() != parent:
            sys.exit(1)
        time.sleep(_LOOK_SECONDS)


def _end_with(original: int) -> None:
    """The kernel ends this copy when the process that it is a copy of has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != original:
        os._exit(1)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)
