"""Islands of float32, and sums over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def float32_island(tensor: Tensor) -> Iterator[None]:
    """Autocast is off inside: sums of exponentials and logarithms do not survive bfloat16."""
    import torch

    with torch.autocast(tensor.device.type, enabled=False):
        yield


def world_size() -> int:
    """Processes in the default group; 1 without a group."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, outside of autograd; itself without a group."""
    import torch.distributed as dist

    if world_size() > 1:
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


def mean_count(count: Tensor) -> Tensor:
    """A count averaged over the processes.

    DistributedDataParallel averages the ranks' gradients. A rank that divides its own sum by this
    gives, in that average, the sum of all divided by the count of all. At least 1 over the number
    of processes, so that nothing is divided by zero.
    """
    ranks = world_size()
    return sum_over_processes(count.float()).clamp(min=1.0) / ranks
