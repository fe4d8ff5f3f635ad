"""Progress that people see: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

PLAIN_LINE_SECONDS = 10.0
"""Without a terminal, one line about this often (seconds)."""


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, count: int = 1) -> None:
        """Report that `count` more items are done."""
        ...


class _PlainProgress:
    def __init__(self, title: str, total: int, unit: str, stream: TextIO) -> None:
        self.title, self.total, self.unit, self.stream = title, total, unit, stream
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= PLAIN_LINE_SECONDS and self.done < self.total:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate if rate else float("inf")
            self._write(f"{rate:.1f} {self.unit}/s, about {left:.0f} s left")

    def finish(self) -> None:
        elapsed = time.monotonic() - self.start
        self._write(f"{self.done / elapsed if elapsed else 0.0:.1f} {self.unit}/s, {elapsed:.1f} s")

    def _write(self, tail: str) -> None:
        self.stream.write(f"{self.title}: {self.done}/{self.total} {self.unit}, {tail}\n")
        self.stream.flush()


@contextmanager
def progress_bar(title: str, total: int, unit: str = "images") -> Iterator[Progress]:
    """Show the progress of `total` items on standard error.

    On a terminal: a bar with rate and time left. Elsewhere: a plain line about every
    :data:`PLAIN_LINE_SECONDS` seconds and one at the end.

    Example
    -------
    >>> with progress_bar("mednode", total=2) as bar:
    ...     bar.advance(2)
    """
    if not sys.stderr.isatty():
        plain = _PlainProgress(title, total, unit, sys.stderr)
        yield plain
        plain.finish()
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0.0:.1f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total)

        class _Rich:
            def advance(self, count: int = 1) -> None:
                bars.advance(task, count)

        yield _Rich()
