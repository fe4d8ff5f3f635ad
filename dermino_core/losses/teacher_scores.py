"""From the teacher's logits to targets: Sinkhorn-Knopp, or softmax with a moving centre.

Caron et al. 2020 (SwAV), appendix A.1, for Sinkhorn-Knopp; Caron et al. 2021 (DINO), equation (4),
for centering. DermINO section 4.1.2 says "an additional Sinkhorn-Knopp normalization after the
softmax operation"; DINOv2's code goes from the logits straight to Sinkhorn-Knopp.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dermino_core.losses.numerics import float32_island, sum_over_processes, world_size


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor,
    temperature: float,
    *,
    iterations: int = 3,
    after: Literal["logits", "softmax"] = "logits",
) -> Tensor:
    """Targets whose prototypes are used equally often over the batch.

    Alternates dividing each prototype by its sum over the batch and each sample by its sum over the
    prototypes. The largest logit of all processes is subtracted first, which changes nothing
    and prevents overflow.

    Parameters
    ----------
    logits
        Shape [B, K]; B may differ between processes (masked patches), and be 0 on some.
    temperature
        Above 0.
    after
        `logits`: exp(logits / temperature), as in DINOv2's code. `softmax`: the same of
        softmax(logits / temperature) as the paper's text reads; the row sums it divides out are
        restored by the last iteration, so only the first one starts elsewhere.

    Returns
    -------
    float32 [B, K], every row sums to 1.

    Raises
    ------
    ValueError
        If `temperature` is not above 0, `iterations` below 1, or `logits` is not a matrix.
    """
    if temperature <= 0 or iterations < 1:
        raise ValueError(f"temperature above 0, iterations from 1: {temperature}, {iterations}")
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [B, K], not {tuple(logits.shape)}")
    with float32_island(logits):
        # [B, K] is the largest tensor of a step: one copy, changed in place.
        scores = logits.to(torch.float32, copy=True).div_(temperature)
        if after == "softmax":
            scores = scores.log_softmax(dim=1)
        q = scores.sub_(_largest(scores)).exp_()
        rows = sum_over_processes(torch.full((), float(len(q)), device=q.device))
        # Every division scales whole rows or whole columns, so two vectors are all that changes.
        row = torch.ones(len(q), dtype=q.dtype, device=q.device)
        column = torch.ones(q.shape[1], dtype=q.dtype, device=q.device)
        for _ in range(iterations):
            column = _reciprocal(sum_over_processes(row @ q) * q.shape[1])
            row = _reciprocal((q @ column) * rows)
        return q.mul_((row * rows).unsqueeze(1)).mul_(column)


def _reciprocal(sums: Tensor) -> Tensor:
    """1 / sums; 0 where a sum underflowed, so that 0 stays 0 and nothing becomes infinite."""
    lost = sums < torch.finfo(sums.dtype).tiny
    return sums.masked_fill(lost, 1.0).reciprocal().masked_fill(lost, 0.0)


def _largest(scores: Tensor) -> Tensor:
    import torch.distributed as dist

    largest = scores.max() if scores.numel() else torch.full((), -torch.inf, device=scores.device)
    if world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


class SoftmaxCentering(nn.Module):
    """Softmax of the logits minus a centre, their exponential moving average over batches.

    Example
    -------
    >>> centering = SoftmaxCentering(n_prototypes=4)
    >>> targets = centering(torch.zeros(2, 4), temperature=0.07)
    >>> centering.update(torch.zeros(2, 4))
    """

    centre: Tensor

    def __init__(self, n_prototypes: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(1, n_prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Targets float32 [B, K] of logits [B, K]."""
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        with float32_island(logits):
            return ((logits.float() - self.centre) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move the centre towards the mean of the logits [B, K] of all processes."""
        with float32_island(logits):
            total = sum_over_processes(logits.float().sum(dim=0, keepdim=True))
            rows = sum_over_processes(torch.full((), float(len(logits)), device=logits.device))
            # Without rows the weight is 0; a condition would wait for the device.
            weight = (1 - self.momentum) * (rows > 0).float()
            self.centre.lerp_(total / rows.clamp(min=1), weight)
