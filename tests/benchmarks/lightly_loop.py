"""The yardstick of `bench-pretrain`: lightly's DINOv2 pieces in a plain loop, in good faith.

Written as lightly's own DINOv2 example has it: crops by its DINOTransform on PIL images in the
workers of a torch DataLoader, MaskedVisionTransformerTIMM on the same timm ViT, one forward pass
for each crop size, DINOv2ProjectionHead for the masked patches only, DINOLoss, IBOTPatchLoss and
KoLeoLoss, AdamW, update_momentum. What the example does not have and ours does is left out:
Sinkhorn-Knopp, gradient clipping, layer-wise learning rates, and scalars to watch. What was added
in its favour: bf16 autocast, pinned memory, and an epoch that never ends, so that its workers never
start anew.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss  # pyright: ignore[reportMissingImports]
from lightly.models.modules import (  # pyright: ignore[reportMissingImports]
    DINOv2ProjectionHead,
    MaskedVisionTransformerTIMM,
)
from lightly.models.utils import (  # pyright: ignore[reportMissingImports]
    random_block_mask,
    update_drop_path_rate,
    update_momentum,
)
from lightly.transforms.dino_transform import (  # pyright: ignore[reportMissingImports]
    DINOTransform,
)
from PIL import Image
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from dermino_core.backbone_card import Preprocessing
from dermino_core.precision import resolve_precision
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.views import local_size

ENOUGH = 10**9
"""Images until an epoch of the peer's loader would end."""

STRENGTH = 0.5
"""DINOTransform's own factor on its jitter, which its second global crop always has."""


class LightlyLoop:
    """Student, teacher, losses and optimiser.

    Parameters
    ----------
    vit
        Its weights are where student and teacher start.
    """

    def __init__(self, config: PretrainConfig, vit: VisionTransformer, device: str) -> None:
        self.config, self.device = config, device
        self.bf16 = resolve_precision(config.run.precision, device) == "bf16"
        heads = config.heads
        dynamic: Any = timm.create_model(
            config.model.architecture,
            num_classes=0,
            img_size=config.crops.global_size,
            dynamic_img_size=True,
        )
        dynamic.load_state_dict(vit.state_dict())
        backbone = MaskedVisionTransformerTIMM(
            vit=dynamic,
            antialias=False,
            weight_initialization="skip",
            pos_embed_initialization="skip",
        )
        self.patch_size = int(vit.patch_embed.patch_size[0])

        def head() -> nn.Module:
            return DINOv2ProjectionHead(
                input_dim=vit.num_features,
                hidden_dim=heads.hidden,
                bottleneck_dim=heads.bottleneck,
                output_dim=heads.prototypes,
            )

        student = {"backbone": backbone, "dino": head(), "ibot": head()}
        self.student: Any = nn.ModuleDict(student).to(device)
        # weight_norm keeps its product as a plain attribute, which deepcopy refuses.
        teacher = {"backbone": copy.deepcopy(backbone), "dino": head(), "ibot": head()}
        self.teacher: Any = nn.ModuleDict(teacher).to(device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(requires_grad=False).eval()
        update_drop_path_rate(
            self.student["backbone"].vit, drop_path_rate=config.model.drop_path, mode="linear"
        )
        self.student.train()
        self.dino_loss = DINOLoss(output_dim=heads.prototypes).to(device)
        self.ibot_loss = IBOTPatchLoss(output_dim=heads.prototypes).to(device)
        self.koleo_loss = KoLeoLoss()
        self.optimiser = torch.optim.AdamW(
            self.student.parameters(), lr=config.optimiser.learning_rate, weight_decay=0.04
        )

    def step(self, views: Sequence[Tensor]) -> Tensor:
        """One optimiser step on the views of a batch, two global ones first; the loss."""
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16):
            loss = self._loss(views)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        momentum = self.config.teacher.momentum[0]
        for name in ("backbone", "dino", "ibot"):
            update_momentum(self.student[name], self.teacher[name], m=momentum)
        return loss.detach()

    def _loss(self, views: Sequence[Tensor]) -> Tensor:
        global_views, local_views = torch.cat(list(views[:2])), torch.cat(list(views[2:]))
        crops, (rows, columns) = len(global_views), self._grid()
        block_mask = random_block_mask(size=(crops, rows, columns), device=global_views.device)
        mask = global_views.new_zeros((crops, rows * columns + 1), dtype=torch.bool)
        mask[:, 1:] = block_mask.flatten(start_dim=1)
        with torch.no_grad():
            features = self.teacher["backbone"].encode(global_views)
            teacher_cls = self.teacher["dino"](features[:, 0])
            teacher_patches = self.teacher["ibot"](features[mask])
        features = self.student["backbone"].encode(global_views, mask=mask)
        cls = features[:, 0]
        student_patches = self.student["ibot"](features[mask])
        local_cls = self.student["backbone"].encode(local_views)[:, 0]
        student_cls = torch.cat([self.student["dino"](cls), self.student["dino"](local_cls)])
        temperature = self.config.teacher.temperature[0]
        dino = self.dino_loss(
            teacher_out=teacher_cls.chunk(2),
            student_out=student_cls.chunk(len(views)),
            teacher_temp=temperature,
        )
        ibot = self.ibot_loss(
            teacher_out=teacher_patches,
            student_out=student_patches,
            mask=block_mask,
            teacher_temp=temperature,
        )
        koleo = sum(self.koleo_loss(part) for part in cls.chunk(2))
        return dino + ibot + self.config.loss.koleo * koleo

    def _grid(self) -> tuple[int, int]:
        side = self.config.crops.global_size // self.patch_size
        return side, side


class ReadyViews:
    """The same views for every step."""

    def __init__(self, views: list[Tensor]) -> None:
        self._views = views

    def take(self) -> list[Tensor]:
        """One tensor [B, 3, S, S] for each view."""
        return self._views

    def wait_seconds(self) -> float:
        """None are waited for."""
        return 0.0


class Pictures(Dataset):
    """The files of a folder, each as its views."""

    def __init__(self, folder: Path, transform: DINOTransform) -> None:
        self.files = sorted(folder.iterdir())
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Tensor]:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


class FileViews:
    """Views made from JPEG files by the workers of a DataLoader."""

    def __init__(self, folder: Path, transform: DINOTransform, config: PretrainConfig, device: str):
        pictures = Pictures(folder, transform)
        workers = config.data.workers
        self.device = device
        self._waited = 0.0
        self._batches: Iterator[list[Tensor]] = iter(
            DataLoader(
                pictures,
                batch_size=config.run.batch_size,
                sampler=RandomSampler(pictures, replacement=True, num_samples=ENOUGH),
                num_workers=workers,
                prefetch_factor=config.data.prefetch if workers else None,
                pin_memory=device.startswith("cuda"),
            )
        )

    def take(self) -> list[Tensor]:
        """One tensor [B, 3, S, S] for each view, on the device."""
        start = time.perf_counter()
        views = next(self._batches)
        self._waited += time.perf_counter() - start
        return [view.to(self.device, non_blocking=True) for view in views]

    def wait_seconds(self) -> float:
        """Seconds waited for data since last asked."""
        waited, self._waited = self._waited, 0.0
        return waited


def make_transform(
    config: PretrainConfig, preprocessing: Preprocessing, patch_size: int
) -> DINOTransform:
    """lightly's transform with our crops and our probabilities."""
    crops, augmentation = config.crops, config.augmentation
    return DINOTransform(
        global_crop_size=crops.global_size,
        global_crop_scale=crops.global_scale,
        local_crop_size=local_size(config, patch_size),
        local_crop_scale=crops.local_scale,
        n_local_views=crops.local_count,
        hf_prob=augmentation.horizontal_flip,
        vf_prob=augmentation.vertical_flip,
        rr_prob=augmentation.right_angles,
        cj_prob=augmentation.jitter,
        cj_strength=STRENGTH,
        cj_bright=augmentation.brightness / STRENGTH,
        cj_contrast=augmentation.contrast / STRENGTH,
        cj_sat=augmentation.saturation / STRENGTH,
        cj_hue=augmentation.hue / STRENGTH,
        random_gray_scale=augmentation.grayscale,
        gaussian_blur=augmentation.blur,
        sigmas=augmentation.blur_sigma,
        solarization_prob=augmentation.solarise,
        normalize={"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
    )
