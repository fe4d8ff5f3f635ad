"""Rows of a large matrix made one long, a few at a time.

65,536 prototypes of 256 numbers are 64 MiB. The textbook w / |w| and its derivative read and write
that matrix a dozen times a step; here a block of rows goes through all of it while it is in the
processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-12

CPU_VALUES = 2**18
"""Numbers of one block on a processor: 1 MiB of float32."""


def unit_rows(weight: Tensor) -> Tensor:
    """w_k / max(|w_k|, 1e-12) for every row of [K, D].

    Under autocast the result has autocast's type, as the matrix product that follows would make it;
    lengths and derivatives are computed in the type of `weight`.
    """
    kind = weight.device.type
    cast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if cast else weight.dtype
    return _UnitRows.apply(weight, dtype)  # pyright: ignore


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        length = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        inverse = length.clamp(min=EPSILON).reciprocal()
        unit = torch.empty_like(weight, dtype=dtype)
        for part in _blocks(weight):
            unit[part] = weight[part] * inverse[part]
        ctx.save_for_backward(weight, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        weight, inverse = ctx.saved_tensors
        gradient = torch.empty_like(weight)
        for part in _blocks(weight):
            unit, slope = weight[part] * inverse[part], grad[part].to(weight.dtype)
            # (g - (g . u) u) / |w|: what is left of g along the sphere.
            along = torch.linalg.vecdot(slope, unit).unsqueeze(1)
            gradient[part] = (slope - unit.mul_(along)).mul_(inverse[part])
        return gradient, None


def _blocks(weight: Tensor) -> list[slice]:
    rows = len(weight)
    if weight.device.type == "cpu":
        rows = max(1, CPU_VALUES // max(1, weight.shape[1]))
    return [slice(first, first + rows) for first in range(0, len(weight), max(1, rows))]
