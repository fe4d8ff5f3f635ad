"""Train a segmentation head on features of a frozen backbone, and predict with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from dermino_core.errors import DerminoError
from dermino_core.evaluation.segmentation_heads import Head, upsampled
from dermino_core.evaluation.segmentation_scores import Mask
from dermino_core.evaluation.segmentation_settings import SegmentationSettings
from dermino_core.progress import progress_bar

Batch = tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]
"""Features [B, L, h, w, D] and masks [B, S, S] of 0 and 1."""


def segmentation_loss(logits: Tensor, masks: Tensor, *, dice_weight: float = 1.0) -> Tensor:
    """Cross-entropy over pixels plus `dice_weight` times the mean of the images' Dice losses.

    The Dice loss of an image is 1 - (2 sum p m + 1) / (sum p + sum m + 1), with probabilities p and
    mask m (Milletari et al. 2016, without squares); the 1 makes it 0 where both are empty.

    Parameters
    ----------
    logits, masks
        [B, H, W]; masks hold 0 and 1.

    Returns
    -------
    A scalar.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, masks)
    chances = logits.sigmoid()
    both = (chances * masks).sum(dim=(1, 2))
    total = chances.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    return entropy + dice_weight * (1 - (2 * both + 1) / (total + 1)).mean()


def train_head(
    build: Callable[[], Head],
    batch_of: Callable[[npt.NDArray[np.integer]], Batch],
    n: int,
    settings: SegmentationSettings,
    *,
    seed: int,
    device: str = "cpu",
    title: str | None,
    part: tuple[int, int] = (0, 1),
    on_epoch: Callable[[float], None] | None = None,
) -> Head:
    """Build a head and train it on `n` images.

    Adam (betas 0.9, 0.999), a cosine over all steps to zero, every image once per epoch. On a CPU
    the same seed gives the same head; on a GPU up to the order in which it adds.

    Parameters
    ----------
    build
        Makes the head to start from; called under the seed.
    batch_of
        Features and masks of some of the images.
    title
        Of the progress bar; None for none.
    part
        (k, of): this call is part k, from 0, of a training in so many equal parts; the cosine
        goes over all of them.
    on_epoch
        Gets the mean loss of each epoch's steps.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` for fewer than two images (batch norm needs a spread); `RUN_FAILED` if the
        loss is no longer finite.
    """
    if n < 2:
        raise DerminoError(
            "DATA_TOO_FEW", f"{n} training images with a usable mask; two are needed."
        )
    rng = np.random.default_rng(seed)
    per_epoch = max(1, n // settings.batch_size)
    steps = settings.epochs * per_epoch
    done, whole = part[0] * steps + np.arange(steps), part[1] * steps
    rates = settings.learning_rate * 0.5 * (1 + np.cos(np.pi * done / whole))
    cards = [torch.device(device)] if device.startswith("cuda") else []
    with (
        torch.random.fork_rng(devices=cards),
        progress_bar(title, total=settings.epochs * n) if title else nullcontext() as bar,
    ):
        torch.manual_seed(seed)
        head = build().to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(head.parameters())
        rate = iter(rates)
        for _ in range(settings.epochs):
            total = torch.zeros((), device=device)
            for rows in np.array_split(rng.permutation(n), per_epoch):
                features, masks = batch_of(rows)
                targets = torch.from_numpy(masks).to(device).float()
                logits = upsampled(head(_on(features, device)), targets.shape[1:])
                loss = segmentation_loss(logits, targets, dice_weight=settings.dice_weight)
                optimizer.param_groups[0]["lr"] = float(next(rate))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach()
                if bar is not None:
                    bar.advance(len(rows))
            if not torch.isfinite(total):
                raise DerminoError(
                    "RUN_FAILED",
                    "Training of the segmentation head diverged: its loss is not finite.",
                    fix="Use a smaller learning rate.",
                )
            if on_epoch is not None:
                on_epoch(float(total) / per_epoch)
    return head.eval()


@torch.inference_mode()
def head_logits(head: Head, features: npt.NDArray[np.float16]) -> Tensor:
    """Logits [B, 1, h', w'] of features [B, L, h, w, D], on the head's device."""
    return head(_on(features, str(next(head.parameters()).device)))


@torch.inference_mode()
def masks_of(logits: Tensor, size: Sequence[int]) -> Mask:
    """Where the upsampled logits say lesion (probability above one half): bool [B, *size]."""
    return (upsampled(logits, size) > 0).cpu().numpy()


def _on(features: npt.NDArray[np.float16], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features)).to(device).float()
