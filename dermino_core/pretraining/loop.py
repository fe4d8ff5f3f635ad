"""The training loop: read it top to bottom.

Nothing in a step waits for the accelerator: scalars are summed where they are and read one log
interval later. Everything random is a function of the seed and the step, so that a run that was
killed goes on as if it had not been.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dermino_core.allocator import freed_memory_kept
from dermino_core.errors import DerminoError
from dermino_core.precision import resolve_precision
from dermino_core.pretraining.checkpoint import (
    Identity,
    Position,
    read_checkpoint,
    remove_unfinished,
    restore,
    save_checkpoint,
)
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.loader import BatchLoader
from dermino_core.pretraining.method import Method, Moment
from dermino_core.pretraining.observer import Observer
from dermino_core.pretraining.optimiser import apply_settings, clip_gradients, make_optimiser
from dermino_core.pretraining.processes import Processes, shard
from dermino_core.pretraining.randomness import seed_torch
from dermino_core.pretraining.running_mean import RunningMean
from dermino_core.pretraining.schedules import is_head_warmup, settings_at
from dermino_core.progress import progress_bar

AGREE_SECONDS = 5.0
"""How long a process may go on after another one was told to stop. torchrun kills after 30."""


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes
    ----------
    first, steps
        Optimiser steps done before, and in all.
    images_per_step
        Of all processes.
    """

    first: int
    steps: int
    images_per_step: int


def length_of(
    config: PretrainConfig, n_images: int, world_size: int, done: Position | None
) -> Length:
    """The number of optimiser steps, and where to go on.

    After a change of the number of processes the run goes on from the same number of images, and
    still sees as many in all.
    """
    per_step = config.images_per_step * world_size
    if done is not None:
        return Length(done.images // per_step, -(-done.images_in_all // per_step), per_step)
    steps = config.run.steps
    if steps is None:
        steps = max(1, round((config.run.epochs or 1) * n_images / per_step))
    return Length(0, steps, per_step)


def train(
    identity: Identity,
    method: Method,
    loader: BatchLoader,
    n_images: int,
    out: Path,
    processes: Processes,
    observer: Callable[[Length, Position | None], Observer],
    *,
    resume: bool = False,
) -> bool:
    """Train until the end of the run, or until SIGTERM.

    Parameters
    ----------
    identity
        The configuration, and what a checkpoint must agree with.
    n_images
        Images in all sources: the length of an epoch.
    out
        Run folder; checkpoints go to its `checkpoints/`.
    observer
        Made once the length of the run is known; told of every logged step and asked to measure.
    resume
        Go on from the newest checkpoint, if there is one.

    Returns
    -------
    Whether the run is complete; False after SIGTERM, with a checkpoint of the last whole step.

    Raises
    ------
    DerminoError
        CHECKPOINT_INVALID, or RUN_FAILED when the loss is no longer finite.
    """
    config = identity.config
    depth = len(method.exported().blocks)  # pyright: ignore[reportArgumentType]
    _freeze_for_good(method, config)
    if processes.world_size > 1 and config.run.sharding == "fsdp":
        for module in (method.trained, *method.untrained().values()):
            if hasattr(module, "backbone"):
                shard(module)
    # Sharding makes new parameters, so they are listed only now.
    token = getattr(method.trained, "mask_token", None)
    tokens = [] if token is None else [token]
    hold = [*method.parts["backbone"].parameters(), *tokens]
    hold = [parameter for parameter in hold if parameter.requires_grad]
    optimiser = make_optimiser(method.trained, config.optimiser, method.last_layers, depth=depth)
    folder = out / "checkpoints"
    if processes.leads:
        remove_unfinished(folder)
    found = read_checkpoint(folder, identity) if resume else None
    done = None
    changed: list[str] = []
    if found is not None:
        content, done, changed = found
        restore(content, method.trained, method.untrained(), optimiser)
    length = length_of(config, n_images, processes.world_size, done)
    watch = observer(length, done)
    if done is None:
        watch.measure(0, method)
    else:
        watch.resumed(done, changed)
    _compile_blocks(method, config, processes.device)

    autocast = _autocast(config, processes.device)
    share = config.run.checkpoint_every
    every = max(1, round(share * length.steps)) if share > 0 else length.steps
    batches = loader.batches(length.first)
    mean = RunningMean()
    call = method.trained
    frozen: bool | None = None
    method.trained.train()
    started, seen, agree_every = time.monotonic(), length.first, 1
    kept = freed_memory_kept(processes.device)
    with kept, _told_to_stop() as stop, _bar(length, processes) as advance:
        for step in range(length.first, length.steps):
            settings = settings_at(config, step, length.steps, batch_of_all=length.images_per_step)
            if frozen != (now := is_head_warmup(config, step, length.steps)):
                frozen = now
                _freeze_backbone(method, hold, frozen=frozen)
                call = processes.wrap(method.trained, config.run.sharding)
            apply_settings(optimiser, settings)
            moment = Moment(step, length.steps, 0, processes.rank, settings)
            for micro in range(config.run.accumulate):
                moment = replace(moment, micro=micro)
                batch = next(batches).to(processes.device)
                seed_torch(config.run.seed, moment)
                last = micro == config.run.accumulate - 1
                with _averaging(call, last=last):
                    with autocast():
                        losses = method.losses(batch, moment, call)
                    (losses["loss"] / config.run.accumulate).backward()
                mean.add(losses)
            beside = {"backbone": tokens}
            mean.add(clip_gradients(method.parts, config.optimiser.clip, beside))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            method.after_step(moment)
            advance()

            ends = step + 1 == length.steps
            saves = (step + 1) % every == 0 or ends
            looks = (step + 1) % config.monitor.log_every == 0 or saves
            asks = looks or (step + 1) % agree_every == 0
            stopping = processes.largest(stop()) > 0 if asks else False
            if looks:
                seconds = time.monotonic() - started
                watch.step(step + 1, settings, mean.take(), seconds, loader.wait_seconds)
                pace = processes.largest(seconds) / max(1, step + 1 - seen)
                agree_every, seen = max(1, int(AGREE_SECONDS / max(pace, 1e-3))), step + 1
            if watch.is_due(step + 1):
                watch.measure(step + 1, method)
                method.trained.train()
            if saves or stopping:
                watch.flush()
                position = Position(
                    step=step + 1,
                    images=(step + 1) * length.images_per_step,
                    images_in_all=length.steps * length.images_per_step,
                    world_size=processes.world_size,
                )
                save_checkpoint(
                    folder,
                    position,
                    identity,
                    method.trained,
                    method.untrained(),
                    optimiser,
                    processes,
                )
            if looks or stopping:
                started = time.monotonic()
            if stopping and not ends:
                return False
    return True


def _freeze_for_good(method: Method, config: PretrainConfig) -> None:
    """Freeze the first `model.frozen_blocks` blocks and what comes before them.

    A mask token is among that: its gradient would have to pass through the frozen blocks.
    """
    vit: Any = method.parts["backbone"]
    vit = getattr(vit, "vit", vit)
    count = config.model.frozen_blocks
    if count >= len(vit.blocks):
        raise DerminoError(
            "CONFIG_INVALID",
            f"{count} blocks are to be frozen, and the ViT has {len(vit.blocks)}.",
            where="model.frozen_blocks",
            fix=f"Use at most {len(vit.blocks) - 1}.",
        )
    if count:
        vit.patch_embed.requires_grad_(requires_grad=False)
        vit.norm_pre.requires_grad_(requires_grad=False)
        for parameter in vit.parameters(recurse=False):
            parameter.requires_grad_(requires_grad=False)
        token = getattr(method.trained, "mask_token", None)
        if token is not None:
            token.requires_grad_(requires_grad=False)
        for block in vit.blocks[:count]:
            block.requires_grad_(requires_grad=False)


def _freeze_backbone(method: Method, trainable: list[nn.Parameter], *, frozen: bool) -> None:
    """Hold the backbone still, or let go."""
    for parameter in trainable:
        parameter.requires_grad_(not frozen)


def _compile_blocks(method: Method, config: PretrainConfig, device: str) -> None:
    wanted = config.model.compile == "on" or (
        config.model.compile == "auto" and device.startswith("cuda")
    )
    if not wanted:
        return
    for module in (method.trained, *method.untrained().values()):
        vit: Any = getattr(getattr(module, "backbone", None), "vit", None)
        for block in () if vit is None else vit.blocks:
            block.compile()


def _autocast(config: PretrainConfig, device: str) -> Callable[[], AbstractContextManager[Any]]:
    if resolve_precision(config.run.precision, device) == "fp32":
        return nullcontext
    kind = device.partition(":")[0]
    return lambda: torch.autocast(kind, torch.bfloat16)


@contextmanager
def _averaging(call: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients of several processes are averaged in a step's last pass only."""
    quiet: Any = getattr(call, "no_sync", None)
    sharded: Any = getattr(call, "set_requires_gradient_sync", None)
    if sharded is not None:
        sharded(last)
    with nullcontext() if last or quiet is None else quiet():
        yield


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT came. The first waits for the step to end, a second does not."""
    told: list[int] = []

    def note(number: int, _frame: object) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(length: Length, processes: Processes) -> Iterator[Callable[[], None]]:
    if not processes.leads:
        yield lambda: None
        return
    with progress_bar("pretraining", length.steps - length.first, unit="steps") as bar:
        yield lambda: bar.advance()
