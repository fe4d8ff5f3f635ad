"""What both sides of `bench-pretrain` are told: one configuration, images, and how long to run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermino_core.datasets.synthetic import SITES, write_site
from dermino_core.manifest import Record, read_manifest, write_manifest
from dermino_core.pretraining.config import PretrainConfig
from tests.benchmarks.step_cost import SHAPES

PICTURE_SIZE = (683, 512)
"""Width and height of the JPEG files: what `dermino data shards` makes of a 4:3 photograph."""

DRAWN = 40
"""Different drawings behind the files; the grain is each file's own."""

GRAIN = 4.0
"""Standard deviation of the noise of a camera, in gray levels; it fills the JPEG file as usual."""


@dataclass(frozen=True)
class Plan:
    """One measurement.

    Attributes
    ----------
    config
        Fields of the pretraining configuration.
    images
        Folder of JPEG files, for the loader that reads files.
    interval, intervals
        Steps of one interval, and how many are timed after the first, which warms up.
    """

    config: dict[str, Any]
    images: str
    interval: int
    intervals: int

    @property
    def resolved(self) -> PretrainConfig:
        """The configuration, checked."""
        return PretrainConfig.model_validate(self.config)

    @property
    def images_per_interval(self) -> int:
        """Images that pass in one interval."""
        return self.interval * self.resolved.images_per_step

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Plan:
        """What :meth:`write` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Timing:
    """What a side measured: seconds and seconds without data of each interval, memory in MiB."""

    seconds: list[float]
    waited: list[float]
    device_mib: float

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Timing:
        """What :meth:`write` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def configuration(
    architecture: str,
    *,
    batch: int,
    prototypes: int,
    precision: str,
    device: str,
    workers: int,
    steps: int,
    interval: int,
    source: dict[str, Any],
) -> dict[str, Any]:
    """The recommended recipe without supervision, every part of it trained from the first step.

    Each worker is one batch ahead, no more: a short measurement would be one of its stock.
    """
    return {
        "model": {"architecture": architecture, "start": "random", "export_size": 224},
        "heads": {"prototypes": prototypes},
        "crops": {"global_size": 224, "local_size": SHAPES[architecture].local},
        "loss": {"supervised": 0.0},
        "optimiser": {"head_warmup": 0.0, "freeze_last_layer": 0.0},
        "data": {"sources": [{"name": "pictures", **source}], "workers": workers, "prefetch": 1},
        "run": {
            "steps": steps,
            "batch_size": batch,
            "precision": precision,
            "device": device,
            "checkpoint_every": 1.0,
        },
        "monitor": {"log_every": interval, "probe_every": 0.0, "trackers": []},
    }


def write_pictures(folder: Path, count: int) -> Path:
    """JPEG files as a prepared data set has them, and their manifest `manifest.csv`."""
    site = max(SITES, key=lambda site: site.images).name
    drawn = read_manifest(write_site(folder / "drawn", site=site, images=DRAWN))
    pictures = []
    for record in drawn.records:
        with Image.open(drawn.path_of(record)) as image:
            large = image.convert("RGB").resize(PICTURE_SIZE, Image.Resampling.BICUBIC)
        pictures.append(np.asarray(large, dtype=np.float32))
    rng = np.random.default_rng(0)
    files = folder / "files"
    files.mkdir()
    for number in range(count):
        picture = pictures[number % len(pictures)]
        noisy = picture + GRAIN * rng.standard_normal(picture.shape, dtype=np.float32)
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        image.save(files / f"{number:05d}.jpg", quality=95, subsampling=0)
    names = sorted(file.name for file in files.iterdir())
    manifest = folder / "manifest.csv"
    write_manifest(manifest, (Record(name) for name in names))
    return manifest
