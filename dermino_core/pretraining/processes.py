"""One process or several, started by torchrun: their group, wrapping, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from dermino_core.errors import DerminoError
from dermino_core.precision import resolve_device


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes
    ----------
    rank, world_size
        Its number, and how many there are.
    device
        Where it computes.
    """

    rank: int
    world_size: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def wrap(self, module: nn.Module, sharding: Literal["ddp", "fsdp"]) -> nn.Module:
        """The module to call, whose backward pass averages gradients over all processes.

        `fsdp` shards `module` in place and returns it; `ddp` returns a wrapper around it.
        """
        if self.world_size == 1 or sharding == "fsdp":
            return module
        on_gpu = self.device.startswith("cuda")
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[torch.device(self.device).index or 0] if on_gpu else None,
            gradient_as_bucket_view=True,
            # Keeps the buckets of the first backward pass, so that a CPU adds up in the same order
            # before and after a resume.
            find_unused_parameters=not on_gpu,
        )

    def largest(self, value: float) -> float:
        """The largest of all processes' values; all of them must ask."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(float(value), device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return float(shared.item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the group that torchrun announces in the environment; alone without one.

    Raises
    ------
    DerminoError
        DEVICE_UNAVAILABLE for a device that is not there.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    place = resolve_device(device)
    if world_size == 1:
        yield Processes(0, 1, place)
        return
    if place == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise DerminoError(
                "DEVICE_UNAVAILABLE",
                f"Process {local} has no GPU: there are {torch.cuda.device_count()}.",
                fix="Start as many processes as GPUs: torchrun --nproc-per-node gpu ...",
            )
        place = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if place.startswith("cuda") else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, place)
    finally:
        dist.destroy_process_group()


def shard(encoder: nn.Module) -> None:
    """Shard a student or a teacher over all processes: blocks, backbone, heads, then the rest.

    FSDP2 (`fully_shard`). Backbone and heads are units of their own, because the teacher's are
    called apart.
    """
    from torch.distributed.fsdp import fully_shard

    parts: Any = encoder
    for block in parts.backbone.vit.blocks:
        fully_shard(block)
    fully_shard(parts.backbone)
    for name in ("image_head", "patch_head"):
        if getattr(parts, name) is not None:
            fully_shard(getattr(parts, name))
    if any(True for _ in encoder.parameters(recurse=False)) or hasattr(parts, "prototypes"):
        fully_shard(encoder)
