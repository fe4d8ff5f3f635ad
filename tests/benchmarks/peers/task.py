"""The job as a peer's user writes it: torch, timm, Pillow and scikit-learn; nothing of dermino.

A torch Dataset decodes the images, a DataLoader batches them, a frozen timm ViT runs over them in
every epoch, a linear head is trained on top. In good faith: the ViT is loaded once per process,
runs without gradients, loader workers decode ahead, only the head is handed to the framework. With
`features` in the job, a site keeps its vectors in a file after the first pass, as a careful user
of a frozen encoder does.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

ARCHITECTURE = "vit_small_patch14_dinov2"
IMAGE_SIZE = 224
LOADER_WORKERS = 2
BYTES_PER_NUMBER = 8
JOB_VARIABLE = "PEERS_JOB"
"""Tells processes that a framework starts where the job is."""


@dataclass(frozen=True)
class Job:
    """What `job_file` wrote, and one contestant's settings."""

    folder: Path
    backbone: str
    classes: int
    width: int
    initial: str
    seed: int
    sites: list[dict[str, Any]]
    rounds: int
    epochs: int
    rate: float
    batch: int
    precision: str = "fp32"
    features: str = ""
    threads: int = 2

    @classmethod
    def read(cls, file: str | Path = "") -> Job:
        """From a file, or from the one that the environment names."""
        content = json.loads(Path(file or os.environ[JOB_VARIABLE]).read_text(encoding="utf-8"))
        job = cls(**content | {"folder": Path(content["folder"])})
        torch.set_num_threads(job.threads)
        return job

    @property
    def site_names(self) -> list[str]:
        """In order."""
        return [str(site["name"]) for site in self.sites]

    def initial_head(self) -> nn.Linear:
        """The head that everybody starts from."""
        head = nn.Linear(self.width, self.classes)
        head.load_state_dict(load_file(self.initial))
        return head

    def save_head(self, state: Mapping[str, torch.Tensor]) -> None:
        """The job's result."""
        save_file(
            {name: t.contiguous() for name, t in state.items()}, self.folder / "head.safetensors"
        )


class SkinImages(Dataset[tuple[torch.Tensor, int]]):
    """Image files with class indices."""

    def __init__(self, paths: list[str], labels: list[int], transform: Any) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]


class FrozenViT:
    """The encoder: timm's ViT-S/14, frozen, in fp32 or under bf16 autocast.

    timm is imported only here: who has all vectors is spared it.
    """

    def __init__(self, backbone: str, precision: str) -> None:
        import timm
        from timm.data.config import resolve_data_config
        from timm.data.transforms_factory import create_transform

        model = timm.create_model(
            ARCHITECTURE,
            pretrained=True,
            pretrained_cfg_overlay={"file": backbone},
            num_classes=0,
            img_size=IMAGE_SIZE,
        )
        config = resolve_data_config({"input_size": (3, IMAGE_SIZE, IMAGE_SIZE)}, model=model)
        self.transform = create_transform(**config, is_training=False)
        self.bf16 = precision == "bf16"
        self.model = model.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.model(images).float()


@cache
def frozen_vit(backbone: str, precision: str) -> FrozenViT:
    """Loaded once per process."""
    return FrozenViT(backbone, precision)


class Hospital:
    """One site: trains a head on its own images and tests it on its own."""

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.name = job, name
        self.site = next(site for site in job.sites if site["name"] == name)

    def __len__(self) -> int:
        return len(self.site["train"]["labels"])

    def batches(
        self, half: str, order: torch.Generator | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Vectors [B, D] and classes [B]; in random order if a generator is given."""
        shuffle, size = order is not None, self.job.batch
        if self.job.features:
            dataset = TensorDataset(*self.vectors(half))
            yield from DataLoader(dataset, size, shuffle=shuffle, generator=order)
            return
        vit = frozen_vit(self.job.backbone, self.job.precision)
        for images, labels in DataLoader(
            self.images(half, vit),
            size,
            shuffle=shuffle,
            generator=order,
            num_workers=LOADER_WORKERS,
        ):
            yield vit(images), labels

    def images(self, half: str, vit: FrozenViT) -> SkinImages:
        """One half."""
        rows = self.site[half]
        return SkinImages(rows["paths"], rows["labels"], vit.transform)

    def vectors(self, half: str) -> tuple[torch.Tensor, torch.Tensor]:
        """All vectors and classes of a half: from the site's file, or embedded once and kept."""
        file = Path(self.job.features) / f"{self.name}-{half}.safetensors"
        if not file.exists():
            vit = frozen_vit(self.job.backbone, self.job.precision)
            loader = DataLoader(self.images(half, vit), self.job.batch, num_workers=LOADER_WORKERS)
            vectors = torch.cat([vit(images) for images, _ in loader])
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"vectors": vectors}, file)
        return load_file(file)["vectors"], torch.tensor(self.site[half]["labels"])

    def train(self, head: nn.Linear, round_: int) -> float:
        """The local epochs of Adam with a cosine; the mean loss of the last. `round_` from 1."""
        job = self.job
        order = torch.Generator().manual_seed(1000 * job.seed + round_)
        optimizer = torch.optim.Adam(head.parameters(), lr=job.rate)
        steps = job.epochs * -(-len(self) // job.batch)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        criterion = nn.CrossEntropyLoss()
        head.train()
        total = 0.0
        for _ in range(job.epochs):
            total = 0.0
            for vectors, labels in self.batches("train", order):
                optimizer.zero_grad()
                loss = criterion(head(vectors), labels)
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.item() * len(labels)
        return total / len(self)

    @torch.no_grad()
    def auroc(self, head: nn.Linear) -> float:
        """AUROC of the last class on the test half; NaN if only one class is there."""
        from sklearn.metrics import roc_auc_score

        head.eval()
        scores = [head(vectors).softmax(dim=1)[:, -1] for vectors, _ in self.batches("test")]
        labels = np.array(self.site["test"]["labels"]) == self.job.classes - 1
        if labels.all() or not labels.any():
            return float("nan")
        return float(roc_auc_score(labels, torch.cat(scores).numpy()))


def payload(arrays: Mapping[str, Any], numbers: int = 0) -> int:
    """Bytes of a message: its arrays as `.npy` files, and 8 for every number beside them."""
    total = numbers * BYTES_PER_NUMBER
    for array in arrays.values():
        file = io.BytesIO()
        np.save(file, np.asarray(array))
        total += file.tell()
    return total


def log_traffic(job: Job, site: str, *, down: int, up: int, test: bool = False) -> None:
    """Note one exchange with a site, a round or a test; the benchmark adds them up."""
    with (job.folder / f"traffic-{site}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"down": down, "up": up, "test": test}) + "\n")


def log_job_seconds(job: Job, seconds: float) -> None:
    """Of the job alone, where services had to be started before it."""
    (job.folder / "job_seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
