"""Supervision by disease prototypes: DermINO, equations (5) and (6)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from dermino_core.losses.numerics import float32_island, mean_count


def supervised_loss(
    logits: Tensor,
    targets: Tensor,
    available: Tensor,
    *,
    mean_over: Literal["labelled_images", "all_images"] = "labelled_images",
) -> Tensor:
    """Binary cross-entropy over the labels that are known.

    Each crop is normalised by its own number of known labels, then crops are averaged. An image
    without a known label contributes nothing.

    Parameters
    ----------
    logits
        Prototype logits of the student's global crops, [N_g, B, C]: the sigmoid of equation (5) is
        applied here, where it is exact for large values too.
    targets
        y, [B, C], 0 or 1; anything where `available` is 0.
    available
        n, [B, C], 1 where the label is known.
    mean_over
        What the batch is divided by: `labelled_images` keeps the scale when few are labelled;
        `all_images` lets the loss fade with the labelled share.

    Returns
    -------
    A float32 scalar; 0 (with a gradient of 0) when nothing is labelled.

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    if targets.shape != logits.shape[1:] or available.shape != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)} and available "
            f"{tuple(available.shape)} do not fit [N_g, B, C], [B, C], [B, C]"
        )
    with float32_island(logits):
        known = available.float()
        wanted = targets.float().where(known > 0, known)
        terms = F.binary_cross_entropy_with_logits(
            logits.float(), wanted.expand_as(logits), reduction="none"
        )
        labels = known.sum(dim=1)
        per_image = (terms * known).sum(dim=2).mean(dim=0) / labels.clamp(min=1)
        if mean_over == "all_images":
            return per_image.sum() / max(len(labels), 1)
        return per_image.sum() / mean_count((labels > 0).sum())
