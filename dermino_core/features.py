"""Images to features: one pass, streaming, kept for good.

Decoding threads run ahead of the forward pass by a bounded number of images; each vector goes to
the cache as it comes, so that a kill at any point loses about a second of work and memory does not
grow with the number of images. A second start reads no unchanged file, decodes nothing, and imports
neither torch nor timm.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dermino_core.backbone import (
    CPU_BATCH,
    CUDA_BATCH,
    Backbone,
    BackboneCard,
    describe_backbone,
    load_backbone,
)
from dermino_core.errors import DerminoError
from dermino_core.feature_cache import FeatureCache, Stamp, stamp_of
from dermino_core.image_limits import ImageError, ImageLimits
from dermino_core.images import decode_image, prepare_image, read_image_bytes
from dermino_core.precision import resolve_device, resolve_precision
from dermino_core.progress import Progress, progress_bar

PIPELINE_VERSION = 1
"""Raise it when decoding or preparing an image changes its pixels: features are computed again."""

DECODER_VERSION = 1
"""Raise it when decoding learns to read more: unreadable files are tried again."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that gave no features: its index in `paths`, and why in a person's words."""

    row: int
    reason: str


@dataclass(frozen=True)
class FeatureTable:
    """What :func:`extract_features` returns.

    Attributes
    ----------
    vectors
        float32 [n_readable, width]; mapped from disk, not held in memory.
    rows
        int64 [n_readable]: the index into `paths` of each vector.
    unreadable
        The other images.
    card, precision
        What computed the vectors.
    decoded
        Images decoded in this call; 0 when everything was in the cache.
    digests
        Sha256 (hex) of each path's bytes, None where they could not be read.
    """

    vectors: np.ndarray
    rows: np.ndarray
    unreadable: list[Unreadable]
    card: BackboneCard
    precision: str
    decoded: int
    digests: list[str | None]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a decoding thread found: pixels only where they are needed."""

    row: int
    digest: bytes | None
    stamp: Stamp | None = None
    read_ns: int = 0
    pixels: np.ndarray | None = None
    reason: str | None = None
    decoded: bool = False


@dataclass
class _Job:
    """One call of :func:`extract_features`."""

    paths: Sequence[Path]
    spec: str
    card: BackboneCard
    precision: str
    device: str
    image_size: int | None
    cache: FeatureCache
    model: bytes
    decoder: str
    limits: ImageLimits
    digests: list[bytes | None] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    decoded: int = 0
    claimed: set[bytes] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def extract_features(
    paths: Sequence[Path],
    spec: str,
    *,
    cache: Path,
    precision: str = "auto",
    device: str = "auto",
    title: str,
    limits: ImageLimits | None = None,
    image_size: int | None = None,
) -> FeatureTable:
    """Features of images, from the cache where possible.

    A vector belongs to an image's bytes, the backbone's fingerprint (weights and preprocessing)
    and the precision. It does not depend on the other images, beyond float noise in the last bits
    where a processor's matrix product depends on the batch size (on AVX-512 CPUs it does not: an
    interrupted extraction ends with the very values of an uninterrupted one).

    Parameters
    ----------
    paths
        Image files. The same bytes twice are embedded once.
    spec
        A backbone; see :data:`dermino_core.backbone_spec.SPEC_GRAMMAR`.
    cache
        Folder of the cache; several processes may share it.
    precision, device, image_size
        As :func:`dermino_core.backbone.load_backbone`.
    title
        Heads the progress bar.
    limits
        What an image may be; by default :class:`dermino_core.images.ImageLimits`.

    Raises
    ------
    DerminoError
        CACHE_CORRUPT, CACHE_UNWRITABLE, and what loading the backbone raises. An unreadable or
        missing image is an entry of the result, never an error.

    Example
    -------
    >>> table = extract_features(paths, "demo", cache=Path("cache"), title="mednode")
    >>> table.vectors.shape
    (170, 192)
    """
    place = resolve_device(device)
    arithmetic = resolve_precision(precision, place)
    bounds = limits or ImageLimits()
    card = describe_backbone(spec, image_size=image_size, cache_dir=cache)
    identity = f"{card.fingerprint} {arithmetic} {PIPELINE_VERSION}"
    with FeatureCache(cache) as store:
        job = _Job(
            paths=paths,
            spec=spec,
            card=card,
            precision=arithmetic,
            device=place,
            image_size=image_size,
            cache=store,
            model=hashlib.sha256(identity.encode()).digest(),
            decoder=f"{DECODER_VERSION} {bounds}",
            limits=bounds,
        )
        todo = _look_up(job)
        if todo:
            with progress_bar(f"embedding {title}", total=len(todo)) as bar:
                _compute(job, todo, bar)
        store.commit()
        return _table(job, cache)


def _look_up(job: _Job) -> list[int]:
    """Rows that have to be read: everything that the stat index and the cache do not settle."""
    todo: list[int] = []
    for row, path in enumerate(job.paths):
        digest = None
        try:
            found = path.stat()
        except (OSError, ValueError) as error:
            job.reasons[row] = _reason(error)
        else:
            digest = job.cache.digest_of(os.fsencode(path.absolute()), stamp_of(found))
            reason = job.cache.unreadable(job.decoder, digest) if digest else None
            if reason is not None:
                job.reasons[row] = reason
            elif digest is None or not job.cache.has_vector(job.model, digest):
                todo.append(row)
        job.digests.append(digest)
    return todo


def _compute(job: _Job, todo: Sequence[int], bar: Progress) -> None:
    """Read, decode and embed `todo`, in order, with decoding ahead of the forward pass."""
    backbone: Backbone | None = None
    batch: list[_Read] = []
    with _reads(job, todo) as reads:
        for read in reads:
            _note(job, read)
            if read.pixels is None:
                bar.advance()
            else:
                batch.append(read)
                if backbone is None:
                    backbone = _load(job, len(todo))
                if len(batch) == backbone.batch_size:
                    _embed(job, backbone, batch, bar)
            job.cache.commit_if_due()
        if backbone is not None and batch:
            _embed(job, backbone, batch, bar)


def _note(job: _Job, read: _Read) -> None:
    job.digests[read.row] = read.digest
    job.decoded += read.decoded
    if read.reason is not None:
        job.reasons[read.row] = read.reason
        if read.decoded and read.digest is not None:
            job.cache.put_unreadable(job.decoder, read.digest, read.reason)
    if read.stamp is not None and read.digest is not None:
        key = os.fsencode(job.paths[read.row].absolute())
        job.cache.remember_file(key, read.stamp, read.digest, read.read_ns)


def _embed(job: _Job, backbone: Backbone, batch: list[_Read], bar: Progress) -> None:
    pixels = np.stack([read.pixels for read in batch if read.pixels is not None])
    for read, vector in zip(batch, backbone.embed(pixels), strict=True):
        if read.digest is not None:
            job.cache.put_vector(job.model, read.digest, vector)
    bar.advance(len(batch))
    batch.clear()


@contextmanager
def _reads(job: _Job, todo: Sequence[int]) -> Iterator[Iterator[_Read]]:
    """`todo` read and decoded by threads, in order, a bounded number ahead of the consumer."""
    # One thread per core besides torch's own: the kernel shares the cores as work comes.
    threads = os.cpu_count() or 1
    window: deque[Future[_Read]] = deque()
    rows = iter(todo)
    ahead_of = 2 * (CUDA_BATCH if job.device.startswith("cuda") else CPU_BATCH)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:

        def ahead() -> Iterator[_Read]:
            window.extend(pool.submit(_read, job, row) for row in itertools.islice(rows, ahead_of))
            while window:
                yield window.popleft().result()
                window.extend(pool.submit(_read, job, row) for row in itertools.islice(rows, 1))

        try:
            yield ahead()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(job: _Job, row: int) -> _Read:
    """Read one file; decode and prepare it unless its content is known. Runs in a thread."""
    path = job.paths[row]
    try:
        # The stamp is taken first: if the file changes now, the stamp will not fit next time.
        stamp, read_ns = stamp_of(path.stat()), time.time_ns()
        data = read_image_bytes(path, limits=job.limits)
    except (OSError, ValueError) as error:
        return _Read(row, None, reason=_reason(error))
    digest = hashlib.sha256(data).digest()
    seen = _Read(row, digest, stamp, read_ns)
    reason = job.cache.unreadable(job.decoder, digest)
    if reason is not None:
        return replace(seen, reason=reason)
    with job.lock:
        known = digest in job.claimed
        job.claimed.add(digest)
    if known or job.cache.has_vector(job.model, digest):
        return seen
    wanted = job.card.preprocessing
    try:
        image = decode_image(
            data, limits=job.limits, short_side=round(wanted.image_size / wanted.crop_pct)
        )
        pixels = prepare_image(
            image,
            wanted.image_size,
            interpolation=wanted.interpolation,
            crop_pct=wanted.crop_pct,
        )
    except ImageError as error:
        if isinstance(error.__cause__, MemoryError):
            return replace(seen, digest=None, reason=error.reason, decoded=True)
        return replace(seen, reason=error.reason, decoded=True)
    return replace(seen, pixels=pixels, decoded=True)


def _load(job: _Job, n_images: int) -> Backbone:
    backbone = _loaded(job.spec, job.card.fingerprint, job.precision, job.device, job.image_size)
    backbone.compile_for(n_images)
    return backbone


@functools.lru_cache(maxsize=1)
def _loaded(
    spec: str, fingerprint: str, precision: str, device: str, image_size: int | None
) -> Backbone:
    """The last backbone stays loaded: a simulation embeds one site after the other with it."""
    backbone = load_backbone(spec, precision=precision, device=device, image_size=image_size)
    if backbone.card.fingerprint != fingerprint:
        raise DerminoError(
            "BACKBONE_MISMATCH",
            "The backbone's weights changed while they were being loaded.",
            where=spec,
            fix="Run again when nothing writes to them.",
        )
    return backbone


def _table(job: _Job, folder: Path) -> FeatureTable:
    """Collect the vectors into a file that only this process sees, and map it."""
    rows = array("q")
    width = job.card.width
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for row, digest in enumerate(job.digests):
                reason = job.reasons.get(row)
                if reason is None and digest is not None:
                    # A second copy of an unreadable image was not decoded again.
                    reason = job.cache.unreadable(job.decoder, digest)
                if reason is not None or digest is None:
                    job.reasons[row] = reason or "not read"
                    continue
                try:
                    vector = job.cache.vector(job.model, digest, width)
                except KeyError:
                    job.reasons[row] = (
                        "a copy of this image could not be decoded for lack of memory"
                    )
                    continue
                file.write(vector.data)
                rows.append(row)
            file.flush()
            vectors = np.empty((0, width), dtype=np.float32)
            if rows:
                vectors = np.memmap(file, dtype="<f4", mode="r", shape=(len(rows), width))
    except OSError as error:
        raise DerminoError(
            "CACHE_UNWRITABLE",
            f"The table of features cannot be written: {error.strerror or error}.",
            where=folder,
            fix="Free disk space, correct the folder's permissions, or choose another cache.",
        ) from error
    return FeatureTable(
        vectors=vectors,
        rows=np.array(rows, dtype=np.int64),
        unreadable=[Unreadable(row, reason) for row, reason in sorted(job.reasons.items())],
        card=job.card,
        precision=job.precision,
        decoded=job.decoded,
        digests=[None if digest is None else digest.hex() for digest in job.digests],
    )


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror.lower()})"
    return "not a valid file name"
