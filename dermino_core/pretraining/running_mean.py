"""Means of scalars that stay on the accelerator until someone has time to read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class RunningMean:
    """Sums scalars by name without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value of each name."""
        for name, value in values.items():
            detached = value.detach().float()
            self._sums[name] = self._sums[name] + detached if name in self._sums else detached
            self._counts[name] += 1

    def take(self) -> Callable[[], dict[str, float]]:
        """Start again from nothing; the returned function gives the means, waiting if need be."""
        names = list(self._sums)
        counts = [self._counts[name] for name in names]
        if not names:
            return dict
        sums = torch.stack([self._sums[name] for name in names])
        self._sums, self._counts = {}, Counter()
        there = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=sums.is_cuda)
        there.copy_(sums, non_blocking=True)
        arrived = None
        if sums.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()

        def read() -> dict[str, float]:
            if arrived is not None:
                arrived.synchronize()
            return {n: v / c for n, v, c in zip(names, there.tolist(), counts, strict=True)}

        return read
