"""One side of `bench-pretrain` in a process of its own, so that neither disturbs the other.

python -m tests.benchmarks.pretraining_side dermino|lightly crops|decoded|files --plan F --out F
python -m tests.benchmarks.pretraining_side peak --plan F --out F

`crops`: crops made once before; `decoded`: decoded images on the device, cropped in every step;
`files`: from JPEG files. Our side is the product's own training loop.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dermino_core.backbone_card import Preprocessing
from dermino_core.precision import resolve_device, resolve_precision
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.checkpoint import Identity
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.hybrid import Hybrid
from dermino_core.pretraining.loop import Length, train
from dermino_core.pretraining.method import Method, Moment
from dermino_core.pretraining.processes import Processes
from dermino_core.pretraining.schedules import Settings
from dermino_core.pretraining.start import starting_vit
from dermino_core.pretraining.views import Views
from tests.benchmarks.extraction import gemm_peak
from tests.benchmarks.pretraining_plan import PICTURE_SIZE, Plan, Timing

MODES = ("crops", "decoded", "files")
PEAK_BATCH = 32
"""Images' worth of tokens in the matrix products that give the peak."""


class Stopwatch:
    """In place of the run's observer: the wall clock at every logged step, the device idle."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waited: list[float] = []
        self._last = time.perf_counter()

    def step(
        self,
        step: int,
        settings: Settings,
        means: Callable[[], dict[str, float]],
        seconds: float,
        waited: float,
    ) -> None:
        """End an interval. Reading the scalars waits for the device."""
        del step, settings, seconds
        loss = means()["loss"]
        if loss != loss:
            raise RuntimeError("the loss is not a number")
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.waited.append(waited)
        self._last = now

    def is_due(self, step: int) -> bool:
        """Nothing is measured on the way."""
        del step
        return False

    def measure(self, step: int, method: Method) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing is left to read."""


class Resident:
    """In place of the loader: one batch that is on the device already."""

    wait_seconds = 0.0

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The same batch for ever."""
        del first_step
        while True:
            yield self._batch


class ReadyCrops(Hybrid):
    """The method with the crops of its first batch for every batch."""

    ready: Views | None = None

    def _views(self, batch: Batch, moment: Moment) -> Views:
        if self.ready is None:
            self.ready = super()._views(batch, moment)
        return self.ready


def random_batch(config: PretrainConfig, device: str) -> Batch:
    """Decoded images of noise, on the device."""
    n, (width, height) = config.run.batch_size, PICTURE_SIZE
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    return Batch(
        images=images,
        sizes=torch.tensor([[height, width]] * n),
        targets=torch.zeros(n, 0),
        available=torch.zeros(n, 0),
        positions=torch.arange(n),
    ).to(device)


def measure_dermino(plan: Plan, mode: str) -> Timing:
    """The product's loop, with its observer, and for resident data its loader, exchanged."""
    config = plan.resolved
    device = resolve_device(config.run.device)
    vit, preprocessing = starting_vit(config.model, seed=config.run.seed)
    kind = ReadyCrops if mode == "crops" else Hybrid
    method = kind(config, vit, preprocessing, None, device=device)
    loader: Any
    if mode == "files":
        loader, n_images = _file_loader(config)
    else:
        loader, n_images = Resident(random_batch(config, device)), config.run.batch_size
    watch: Any = Stopwatch()

    def observer(length: Length, done: object) -> Any:
        del length, done
        return watch

    identity, alone = Identity(config, {}), Processes(0, 1, device)
    with tempfile.TemporaryDirectory(prefix="dermino-bench-") as out:
        train(identity, method, loader, n_images, Path(out), alone, observer)
    return Timing(watch.seconds[1:], watch.waited[1:], device_mib(device))


def _file_loader(config: PretrainConfig) -> tuple[Any, int]:
    from dermino_core.pretraining.loader import BatchLoader
    from dermino_core.pretraining.sources import open_sources
    from dermino_core.pretraining.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_labels(())
    images = open_sources(config.data, vocabulary)
    return BatchLoader(config, images, vocabulary), images.n_images


def measure_lightly(plan: Plan, mode: str) -> Timing:
    """The same recipe in the peer's loop."""
    from tests.benchmarks.lightly_loop import FileViews, LightlyLoop, ReadyViews, make_transform

    config = plan.resolved
    device = resolve_device(config.run.device)
    vit, preprocessing = starting_vit(config.model, seed=config.run.seed)
    loop = LightlyLoop(config, vit, device)
    if mode == "files":
        transform = make_transform(config, preprocessing, loop.patch_size)
        views = FileViews(Path(plan.images), transform, config, device)
    else:
        views = ReadyViews(_views(config, preprocessing, loop.patch_size, device))
    seconds, waited = [], []
    for _ in range(plan.intervals + 1):
        start = time.perf_counter()
        losses = [loop.step(views.take()) for _ in range(plan.interval)]
        if not torch.stack(losses).isfinite().all():
            raise RuntimeError("the loss is not finite")
        seconds.append(time.perf_counter() - start)
        waited.append(views.wait_seconds())
    return Timing(seconds[1:], waited[1:], device_mib(device))


def _views(
    config: PretrainConfig, preprocessing: Preprocessing, patch_size: int, device: str
) -> list[torch.Tensor]:
    from dermino_core.pretraining.views import make_views

    batch = random_batch(config, device)
    views = make_views(
        batch.images,
        batch.sizes,
        config,
        patch_size,
        torch.Generator().manual_seed(0),
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    local = [] if views.local_crops is None else list(views.local_crops)
    return [*views.global_crops, *local]


def device_mib(device: str) -> float:
    """The most memory of the GPU that tensors took, in MiB; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else 0.0


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(prog="pretraining_side")
    parser.add_argument("side", choices=("dermino", "lightly", "peak"))
    parser.add_argument("mode", nargs="?", choices=MODES, default="crops")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    plan = Plan.read(wanted.plan)
    if wanted.side == "peak":
        run = plan.resolved.run
        device = resolve_device(run.device)
        precision = resolve_precision(run.precision, device)
        peak = gemm_peak(precision, device, PEAK_BATCH)
        name = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
        found = {"gflops": peak, "precision": precision, "device": device, "name": name}
        wanted.out.write_text(json.dumps(found), encoding="utf-8")
        return
    measure = measure_dermino if wanted.side == "dermino" else measure_lightly
    measure(plan, wanted.mode).write(wanted.out)


if __name__ == "__main__":
    main()
