"""Batches of decoded images: worker processes decode, the training process only waits.

What a batch holds depends on the seed and the step alone. Workers are started anew (spawn), never
forked: a fork copies the locks of torch's threads in whatever state they are.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dermino_core.errors import DerminoError
from dermino_core.image_limits import ImageError
from dermino_core.precision import resolve_device
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.image_list import ImageList
from dermino_core.pretraining.sampler import Sampler
from dermino_core.pretraining.vocabulary import Vocabulary

STAND_INS = 64
"""How many images may be tried in place of one that cannot be read; then the run stops."""

GRACE_SECONDS = 60
"""How long a worker goes on after SIGTERM, so that the run can end its step and save."""

log = logging.getLogger(__name__)


class BatchLoader:
    """The batches of one process.

    Parameters
    ----------
    config
        `[data]`, `[run]` and `prototypes.negatives`.
    images
        All images; the same in every process.
    vocabulary
        The diseases that labels are encoded by.
    rank, world_size
        This process among all: it takes its slice of each global batch.

    Attributes
    ----------
    unreadable
        Name of each image that could not be read so far -> why. Another image of the same source,
        and as far as possible of the same kind (labelled or not), stood in for it. Known only once
        its batch has been handed out.

    Raises
    ------
    DerminoError
        As :class:`~dermino_core.pretraining.sampler.Sampler`.

    Example
    -------
    >>> loader = BatchLoader(config, images, vocabulary)
    >>> batch = next(loader.batches(first_step=0))
    """

    def __init__(
        self,
        config: PretrainConfig,
        images: ImageList,
        vocabulary: Vocabulary,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._config, self._images = config, images
        self._rank, self._world_size = rank, world_size
        self._sampler = Sampler(config, images)
        targets, available = images.encode(vocabulary, config.prototypes.negatives)
        self._batches = _Batches(images, torch.from_numpy(targets), torch.from_numpy(available))
        self._waited = 0.0
        self._warned: set[int] = set()
        self.unreadable: dict[str, str] = {}

    @property
    def wait_seconds(self) -> float:
        """Seconds spent waiting for data since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Batches for ever: `run.accumulate` of `run.batch_size` images for each optimiser step.

        Parameters
        ----------
        first_step
            The optimiser step to begin with.

        Raises
        ------
        DerminoError
            IMAGE_UNREADABLE when neither an image nor :data:`STAND_INS` others can be read;
            RUN_FAILED when a worker dies.
        """
        loading: list[Iterator[dict[str, Any]]] = [iter(self._loader(first_step))]
        # A worker ignores SIGTERM for a while, so it must be told to end before Python asks it to.
        atexit.register(loading.clear)
        try:
            while True:
                started = time.perf_counter()
                # Not in a function of its own: an error's traceback would keep the workers alive.
                read = self._checked(next(loading[0]))
                self._waited += time.perf_counter() - started
                yield Batch(**read)
        finally:
            atexit.unregister(loading.clear)
            loading.clear()

    def _loader(self, first_step: int) -> DataLoader[dict[str, Any]]:
        data, workers = self._config.data, self._config.data.workers
        on_cuda = resolve_device(self._config.run.device).startswith("cuda")
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=_Order(self._sampler, self._config, first_step, self._rank, self._world_size),
            num_workers=workers,
            prefetch_factor=data.prefetch if workers else None,
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=_begin_worker if workers else None,
            pin_memory=on_cuda,
            # Its own, so that starting workers draws nothing from the run's.
            generator=torch.Generator(),
        )

    def _checked(self, read: dict[str, Any]) -> dict[str, Any]:
        if "failure" in read:
            raise read["failure"]
        for position, reason in read.pop("unreadable"):
            self._note(position, reason)
        return read

    def _note(self, position: int, reason: str) -> None:
        """Count an unreadable image; warn about the first of each source."""
        name, source = self._images.name(position), self._images.source_of(position)
        self.unreadable.setdefault(name, reason)
        if source not in self._warned:
            self._warned.add(source)
            log.warning(
                "An image of source %r cannot be read and another stands in for it: %s: %s. "
                "Further ones are counted, not shown; `dermino data check` lists all.",
                self._images.sources[source].name,
                name,
                reason,
            )


class _Order:
    """The positions of one process's batches, one after the other, for ever."""

    def __init__(
        self, sampler: Sampler, config: PretrainConfig, first_step: int, rank: int, world_size: int
    ) -> None:
        self._sampler, self._count = sampler, config.run.batch_size
        self._stride = self._count * world_size
        self._first = first_step * config.run.accumulate * self._stride + rank * self._count

    def __iter__(self) -> Iterator[list[int]]:
        first = self._first
        while True:
            yield self._sampler.positions(first, self._count).tolist()
            first += self._stride


class _Batches(Dataset[dict[str, Any]]):
    """Decodes a whole batch; lives in a worker."""

    def __init__(self, images: ImageList, targets: torch.Tensor, available: torch.Tensor) -> None:
        self._images, self._targets, self._available = images, targets, available

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """The batch of these positions: the fields of a Batch, and `unreadable`.

        An expected failure is returned as `failure`: raised, it would lose its words on the way.
        """
        bad: dict[int, str] = {}
        try:
            decoded = [self._read(position, bad) for position in index]
        except DerminoError as error:
            return {"failure": error}
        positions = torch.tensor([position for position, _ in decoded])
        sizes = torch.tensor([pixels.shape[:2] for _, pixels in decoded])
        height, width = sizes.amax(dim=0).tolist()
        canvas = torch.zeros((len(decoded), 3, height, width), dtype=torch.uint8)
        for place, (_, pixels) in zip(canvas, decoded, strict=True):
            high, wide = pixels.shape[:2]
            place[:, :high, :wide] = torch.from_numpy(pixels).permute(2, 0, 1)
        codes = torch.from_numpy(self._images.codes)[positions].long()
        return {
            "images": canvas,
            "sizes": sizes,
            "targets": self._targets[codes],
            "available": self._available[codes],
            "positions": positions,
            "unreadable": list(bad.items()),
        }

    def _read(self, position: int, bad: dict[int, str]) -> tuple[int, np.ndarray]:
        """Decode an image or, where that fails, another of its source."""
        try:
            return position, np.array(self._images.read(position))
        except ImageError as error:
            bad[position] = error.reason
        for other in _stand_ins(self._images, position):
            if other in bad:
                continue
            try:
                return other, np.array(self._images.read(other))
            except ImageError as error:
                bad[other] = error.reason
        raise DerminoError(
            "IMAGE_UNREADABLE",
            f"An image and all that could stand in for it cannot be read: {bad[position]}.",
            where=self._images.name(position),
            fix="See that the disk that holds the images is there, then --resume.",
        )


@contextmanager
def worker_deaths_named() -> Iterator[None]:
    """Turn torch's word of a dead worker, which may come at any time, into an error that helps.

    Raises
    ------
    DerminoError
        RUN_FAILED.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise DerminoError(
            "RUN_FAILED",
            f"A process that decodes images died: {' '.join(str(error).split())}",
            where="data.workers",
            fix="If memory or shared memory (/dev/shm) ran out, lower data.workers or "
            "data.prefetch, or enlarge it (docker run --shm-size=16g); then --resume.",
        ) from error


def _stand_ins(images: ImageList, position: int) -> list[int]:
    """The next images of the same source, those of its kind (labelled or not) first."""
    first, end = images.starts[images.source_of(position) :][:2].tolist()
    others = first + (np.arange(1, end - first) + position - first) % (end - first)
    alike = images.labelled[others] == images.labelled[position]
    return np.concatenate([others[alike], others[~alike]])[:STAND_INS].tolist()


def _begin_worker(_worker: int) -> None:
    """Ctrl-C and SIGTERM reach workers too; the training process decides what becomes of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    # Leave as a forked worker does: torch 2.15's own threads abort an ordinary end of a worker.
    atexit.register(os._exit, 0)
