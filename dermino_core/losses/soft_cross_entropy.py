"""Cross-entropy with dense targets, a few rows at a time.

With K = 65,536 prototypes every intermediate of the textbook formula is a matrix of hundreds of
megabytes. Here a block of rows goes through all of it while it is in the processor's cache, and
the gradient is made on the way, so that the scores are read once and written once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CPU_VALUES = 2**19
"""Numbers of one block on a processor: 2 MiB of float32."""

GPU_VALUES = 2**28
"""Numbers of one block on a GPU: 1 GiB of float32."""


def soft_cross_entropy(
    scores: Tensor, targets: Tensor, weights: Tensor, *, temperature: float
) -> Tensor:
    """sum_m w_m sum_k t_mk (-log softmax(s_m / T))_k, in float32.

    Parameters
    ----------
    scores
        Logits s, [M, K], in any floating type; the gradient has the same.
    targets
        t, [M, K], constant; rows may sum to anything.
    weights
        w, float32 [M], constant.
    temperature
        T, above 0.

    Returns
    -------
    A float32 scalar; 0 (with a gradient of 0) without rows.
    """
    return _SoftCrossEntropy.apply(scores, targets, weights, temperature)  # pyright: ignore


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, scores: Tensor, targets: Tensor, weights: Tensor, temperature: float
    ) -> Tensor:
        total = torch.zeros((), device=scores.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(scores) if wanted else None
        values = CPU_VALUES if scores.device.type == "cpu" else GPU_VALUES
        rows = max(1, values // max(1, scores.shape[1]))
        for first in range(0, len(scores), rows):
            part = slice(first, first + rows)
            scaled = scores[part].float() / temperature
            wish, weight = targets[part].float(), weights[part]
            mass = wish.sum(dim=1)
            largest = scaled.amax(dim=1, keepdim=True)
            agreement = torch.linalg.vecdot(wish, scaled)
            exponent = scaled.sub_(largest).exp_()
            normaliser = exponent.sum(dim=1)
            level = normaliser.log() + largest.squeeze(1)
            total += (weight * (mass * level - agreement)).sum()
            if gradient is not None:
                # w / T (mass softmax - t)
                slope = exponent.mul_((mass / normaliser).unsqueeze(1)).sub_(wish)
                gradient[part] = slope.mul_((weight / temperature).unsqueeze(1))
        ctx.save_for_backward(*([] if gradient is None else [gradient]))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None
