"""Image files to perceptual hashes: read once, kept in the feature cache.

Threads read, hash and decode a bounded number of images ahead; each result goes to the cache as it
comes, so that a kill loses about a second of work and a second start reads no unchanged file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermino_core.feature_cache import FeatureCache, Stamp, stamp_of
from dermino_core.features import DECODER_VERSION
from dermino_core.image_limits import DEFAULT_LIMITS, ImageError, ImageLimits
from dermino_core.images import decode_image, read_image_bytes
from dermino_core.perceptual_hash import CROPS, THUMBNAIL, WORDS, perceptual_hash
from dermino_core.progress import progress_bar

SIGNATURE_VERSION = 1
"""Raise it when a change gives other hashes: all are computed again."""

_MODEL = hashlib.sha256(f"perceptual hash {SIGNATURE_VERSION}".encode()).digest()
_PIECES = CROPS * WORDS * 4
_AHEAD = 8  # files in flight for each thread


@dataclass(frozen=True)
class Signatures:
    """What :func:`read_signatures` returns; one entry for each path.

    Attributes
    ----------
    digests
        Sha256 of the bytes; None where they could not be read.
    hashes
        uint64 [n, 6, 4], see :func:`dermino_core.perceptual_hash.perceptual_hash`; zero where
        there is none.
    usable
        bool [n]: decoded, and with enough contrast for the hash to mean anything.
    unreadable
        Index -> why that image could not be read, in a person's words.
    decoded
        Images decoded in this call; 0 when everything was in the cache.
    """

    digests: list[bytes | None]
    hashes: np.ndarray
    usable: np.ndarray
    unreadable: dict[int, str]
    decoded: int


@dataclass(frozen=True, slots=True)
class _Read:
    row: int
    digest: bytes | None
    stamp: Stamp | None = None
    read_ns: int = 0
    vector: np.ndarray | None = None
    reason: str | None = None
    decoded: bool = False
    lasting: bool = False


def read_signatures(
    paths: Sequence[Path],
    *,
    cache: Path,
    title: str = "hashing images",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Signatures:
    """Digest and perceptual hash of each file, from the cache where possible.

    Parameters
    ----------
    paths
        Image files. Unreadable and missing ones are entries of the result, never an error.
    cache
        Folder of the cache (:class:`dermino_core.feature_cache.FeatureCache`); several processes
        may share it.
    title
        Heads the progress bar.
    limits
        What an image may cost.

    Raises
    ------
    DerminoError
        CACHE_CORRUPT or CACHE_UNWRITABLE.
    """
    decoder = f"{DECODER_VERSION} {limits}"
    digests: list[bytes | None] = [None] * len(paths)
    vectors = np.zeros((len(paths), _PIECES + 1), dtype=np.float32)
    unreadable: dict[int, str] = {}
    decoded = 0
    with FeatureCache(cache) as store:
        todo = []
        for row, path in enumerate(paths):
            digest = _known_digest(store, path)
            if digest is None or not _from_cache(store, decoder, digest, row, vectors, unreadable):
                todo.append(row)
            digests[row] = digest
        if todo:
            with progress_bar(title, total=len(todo)) as bar:
                for read in _reads(store, decoder, paths, todo, limits):
                    row, digest = read.row, read.digest
                    digests[row] = digest
                    decoded += read.decoded
                    if digest is not None and read.stamp is not None:
                        key = os.fsencode(paths[row].absolute())
                        store.remember_file(key, read.stamp, digest, read.read_ns)
                    if read.reason is not None:
                        unreadable[row] = read.reason
                        if digest is not None and read.lasting:
                            store.put_unreadable(decoder, digest, read.reason)
                    elif digest is not None and read.vector is None:
                        _from_cache(store, decoder, digest, row, vectors, unreadable)
                    elif digest is not None and read.vector is not None:
                        vectors[row] = read.vector
                        store.put_vector(_MODEL, digest, read.vector)
                    store.commit_if_due()
                    bar.advance()
        store.commit()
    pieces = vectors[:, :_PIECES].astype("<u2")
    hashes = pieces.view("<u8").astype(np.uint64).reshape(-1, CROPS, WORDS)
    return Signatures(digests, hashes, vectors[:, _PIECES] > 0, unreadable, decoded)


def _known_digest(store: FeatureCache, path: Path) -> bytes | None:
    try:
        stamp = stamp_of(path.stat())
    except (OSError, ValueError):
        return None
    return store.digest_of(os.fsencode(path.absolute()), stamp)


def _from_cache(
    store: FeatureCache,
    decoder: str,
    digest: bytes,
    row: int,
    vectors: np.ndarray,
    unreadable: dict[int, str],
) -> bool:
    """Fill in what the cache knows of an image; whether it knows anything."""
    reason = store.unreadable(decoder, digest)
    if reason is not None:
        unreadable[row] = reason
        return True
    try:
        vectors[row] = store.vector(_MODEL, digest, vectors.shape[1])
    except KeyError:
        return False
    return True


def _reads(
    store: FeatureCache,
    decoder: str,
    paths: Sequence[Path],
    todo: Sequence[int],
    limits: ImageLimits,
) -> Iterator[_Read]:
    """`todo` read and decoded by threads, in order."""
    threads = os.cpu_count() or 1
    waiting: deque[Future[_Read]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="hash")
    try:
        for row in todo:
            waiting.append(pool.submit(_read, store, decoder, paths[row], row, limits))
            if len(waiting) >= _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(store: FeatureCache, decoder: str, path: Path, row: int, limits: ImageLimits) -> _Read:
    """Read one file, and hash it unless its content is known. Runs in a thread."""
    try:
        # The stamp is taken first: if the file changes now, it will not fit next time.
        stamp, read_ns = stamp_of(path.stat()), time.time_ns()
        data = read_image_bytes(path, limits=limits)
    except (OSError, ValueError) as error:
        return _Read(row, None, reason=_reason(error))
    digest = hashlib.sha256(data).digest()
    if store.has_vector(_MODEL, digest) or store.unreadable(decoder, digest) is not None:
        return _Read(row, digest, stamp, read_ns)
    try:
        hashes, usable = perceptual_hash(decode_image(data, limits=limits, short_side=THUMBNAIL))
    except ImageError as error:
        lasting = not isinstance(error.__cause__, MemoryError)
        return _Read(row, digest, stamp, read_ns, None, error.reason, decoded=True, lasting=lasting)
    # The cache holds float32: 16 bits at a time are exact.
    pieces = np.ascontiguousarray(hashes.astype("<u8")).view("<u2").ravel()
    vector = np.append(pieces, np.uint16(usable)).astype(np.float32)
    return _Read(row, digest, stamp, read_ns, vector, decoded=True)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror.lower()})"
    return "not a valid file name"
