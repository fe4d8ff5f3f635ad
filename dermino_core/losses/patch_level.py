"""Masked-patch self-distillation: DermINO, equation (4); Zhou et al. 2022 (iBOT), equation (2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dermino_core.losses.numerics import float32_island, mean_count
from dermino_core.losses.soft_cross_entropy import soft_cross_entropy


def patch_level_loss(
    student: Tensor,
    teacher: Tensor,
    crop: Tensor,
    n_crops: int,
    *,
    temperature: float = 0.1,
    mean_over: Literal["masked_crops", "all_crops"] = "masked_crops",
) -> Tensor:
    """Cross-entropy over masked patches only, each crop weighted by 1 / its masked patches.

    The printed equation sums over all patches; its text and every implementation say masked ones.

    Parameters
    ----------
    student
        Student logits of the masked patches, [M, K]; M may be 0.
    teacher
        Targets of the same patches, [M, K].
    crop
        Which global crop each masked patch belongs to, int [M] in [0, n_crops).
    n_crops
        Global crops of this process, masked or not.
    mean_over
        `masked_crops`: mean over the crops that have a mask, so a uniform output gives ln K.
        `all_crops`: divided by all crops, as in DINOv2's code: half as much when half are masked.

    Returns
    -------
    A float32 scalar; 0 (with a gradient of 0) without masked patches.

    Raises
    ------
    ValueError
        If shapes do not fit or `n_crops` is below 1.
    """
    if student.shape != teacher.shape or crop.shape != student.shape[:1] or n_crops < 1:
        raise ValueError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}, crop "
            f"{tuple(crop.shape)} and {n_crops} crops do not fit"
        )
    with float32_island(student):
        # Not bincount: on a GPU it waits for everything before it.
        ones = torch.ones_like(crop, dtype=torch.float32)
        masked = torch.zeros(n_crops, device=crop.device).index_add_(0, crop, ones)
        if mean_over == "masked_crops":
            divisor = mean_count((masked > 0).sum())
        else:
            divisor = torch.full((), float(n_crops), device=student.device)
        weights = 1.0 / (masked[crop] * divisor)
        return soft_cross_entropy(student, teacher, weights, temperature=temperature)
