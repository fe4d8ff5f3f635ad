"""Fetch many files by HTTP, politely: few at a time, with retries, checksums and resume."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from dermino_core import __version__
from dermino_core.files import write_atomically
from dermino_core.progress import progress_bar

USER_AGENT = f"dermino/{__version__} (research data set download)"
_CHUNK = 1 << 16
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Wanted:
    """One file: where it comes from, where it goes, and its MD5 (hex)."""

    url: str
    file: Path
    md5: str


@dataclass(frozen=True)
class NotHad:
    """A file that could not be had, and why."""

    wanted: Wanted
    reason: str


@dataclass(frozen=True)
class Politeness:
    """How to treat the servers.

    `wait` (seconds) is the pause before the first retry; it doubles with each. `timeout`
    (seconds) is for connecting and for each read, `longest` (seconds) for one whole file.
    """

    workers: int = 4
    retries: int = 3
    wait: float = 1.0
    timeout: float = 30.0
    longest: float = 300.0
    max_bytes: int = 32 * 1024 * 1024


@dataclass
class DownloadReport:
    """What a call of :func:`fetch_all` did."""

    fetched: int = 0
    already_here: int = 0
    not_had: list[NotHad] = field(default_factory=list)


class _GiveUpError(Exception):
    """Trying again will not help."""


class _TryAgainError(Exception):
    """It may help; `after` is how many seconds the server asked to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def fetch_all(
    wanted: Sequence[Wanted],
    *,
    title: str,
    politeness: Politeness = Politeness(),
    sleep: Callable[[float], None] = time.sleep,
) -> DownloadReport:
    """Fetch what is not here yet. A file appears only whole and with the right checksum.

    Only `http` and `https` addresses are opened, also after a redirect. Server errors (5xx, 408,
    429), broken connections and timeouts are tried again; other answers are not. Files that are
    here with the right MD5 are not asked for.

    Parameters
    ----------
    title
        Of the progress bar.
    sleep
        Called with the seconds to wait before a retry.
    """
    report = DownloadReport()
    opener = _opener()
    pool = ThreadPoolExecutor(max(1, politeness.workers), thread_name_prefix="download")
    try:
        with progress_bar(title, total=len(wanted), unit="files") as bar:
            jobs = {pool.submit(_fetch, opener, one, politeness, sleep): one for one in wanted}
            for job in as_completed(jobs):
                bar.advance()
                try:
                    fresh = job.result()
                except (_GiveUpError, _TryAgainError) as error:
                    report.not_had.append(NotHad(jobs[job], str(error)))
                else:
                    report.fetched += fresh
                    report.already_here += not fresh
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    order = {one: place for place, one in enumerate(wanted)}
    report.not_had.sort(key=lambda entry: order[entry.wanted])
    return report


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows http and https and no other scheme."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _fetch(
    opener: urllib.request.OpenerDirector,
    wanted: Wanted,
    politeness: Politeness,
    sleep: Callable[[float], None],
) -> bool:
    """Fetch one file; `False` if it was here already."""
    if wanted.file.is_file() and _md5(wanted.file.read_bytes()) == wanted.md5.lower():
        return False
    if not wanted.url:
        raise _GiveUpError("no address in the table")
    body = _get_patiently(opener, _safe_address(wanted.url), politeness, sleep)
    digest = _md5(body)
    if digest != wanted.md5.lower():
        raise _GiveUpError(f"wrong checksum: got {digest}, {len(body)} bytes")
    write_atomically(wanted.file, body)
    return True


def _get_patiently(
    opener: urllib.request.OpenerDirector,
    address: str,
    politeness: Politeness,
    sleep: Callable[[float], None],
) -> bytes:
    attempt = 0
    while True:
        try:
            return _get(opener, address, politeness)
        except _TryAgainError as error:
            attempt += 1
            if attempt > politeness.retries:
                raise _GiveUpError(f"{error} ({attempt} attempts)") from error
            sleep(min(max(politeness.wait * 2 ** (attempt - 1), error.after), _LONGEST_WAIT))


def _get(opener: urllib.request.OpenerDirector, address: str, politeness: Politeness) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": USER_AGENT})  # noqa: S310
    try:
        with opener.open(request, timeout=politeness.timeout) as response:
            if response is None:
                raise _GiveUpError("not an http or https address")
            return _read(response, politeness)
    except urllib.error.HTTPError as error:
        with error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code in {408, 425, 429} or error.code >= 500:
                after = error.headers.get("Retry-After", "") if error.headers else ""
                raise _TryAgainError(reason, float(after) if after.isdecimal() else 0.0) from error
            raise _GiveUpError(reason) from error
    except urllib.error.URLError as error:
        if "unknown url type" in str(error.reason):
            raise _GiveUpError("redirected to an address that is not http or https") from error
        raise _TryAgainError(f"no connection: {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:
        raise _TryAgainError(f"connection broke: {error or type(error).__name__}") from error
    except ValueError as error:
        raise _GiveUpError(f"not a valid address: {error}") from error


def _read(response: http.client.HTTPResponse, politeness: Politeness) -> bytes:
    max_bytes, end = politeness.max_bytes, time.monotonic() + politeness.longest
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _GiveUpError(f"larger than {max_bytes} bytes")
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise _GiveUpError(f"larger than {max_bytes} bytes")
        if time.monotonic() > end:
            raise _TryAgainError(f"not complete after {politeness.longest:.0f} s")
    if announced.isdecimal() and len(body) < int(announced):
        raise _TryAgainError(f"cut off after {len(body)} of {announced} bytes")
    return bytes(body)


def _safe_address(url: str) -> str:
    """The address with spaces and letters beyond ASCII quoted.

    Raises
    ------
    _GiveUpError
        If it is not an http or https address.
    """
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host = parts.hostname
    except ValueError as error:
        raise _GiveUpError(f"not a valid address: {error}") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise _GiveUpError("not an http or https address")
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
