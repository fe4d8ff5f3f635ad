"""Checkpoints: everything that a run needs to go on as if nothing had happened.

A checkpoint holds the trained module, what follows it (teacher, centres), the optimiser, and how
many images were seen. Schedules, random numbers and the sampler are functions of that count and of
the configuration, so nothing else is needed.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dermino_core.errors import DerminoError
from dermino_core.files import open_atomically
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.network import gather_no_more
from dermino_core.pretraining.processes import Processes

logger = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.pt")

WITHOUT_CONSEQUENCE: Mapping[str, frozenset[str]] = {
    "data": frozenset({"workers", "prefetch"}),
    "run": frozenset({"device", "checkpoint_every", "keep_checkpoints", "sharding"}),
    "model": frozenset({"compile", "activation_checkpointing"}),
    "monitor": frozenset({"log_every", "trackers"}),
}
"""Fields that may change between a checkpoint and the run that goes on from it."""


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes
    ----------
    step
        Optimiser steps done.
    images
        Images seen by all processes.
    images_in_all
        Images that the whole run will see.
    world_size
        Processes that made the checkpoint.
    """

    step: int
    images: int
    images_in_all: int
    world_size: int


def binding(config: PretrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values, without :data:`WITHOUT_CONSEQUENCE`."""
    values = json.loads(config.model_dump_json())
    for section, names in WITHOUT_CONSEQUENCE.items():
        for name in names:
            values[section].pop(name)
    return values


def save_checkpoint(
    folder: Path,
    position: Position,
    config: PretrainConfig,
    trained: nn.Module,
    untrained: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    processes: Processes,
) -> None:
    """Write `step-N.pt` atomically and remove all but the newest `run.keep_checkpoints`.

    All processes call this; the first writes. Sharded parameters are gathered.
    """
    weights, moments = _states(trained, optimiser)
    content = {
        "format": FORMAT,
        "position": vars(position),
        "config": binding(config),
        "trained": weights,
        "untrained": {name: gathered(module) for name, module in untrained.items()},
        "optimiser": moments,
    }
    if processes.leads:
        with open_atomically(folder / f"step-{position.step:08d}.pt") as file:
            torch.save(content, file)
        for _, old in checkpoints_in(folder)[: -config.run.keep_checkpoints]:
            old.unlink(missing_ok=True)
    processes.wait()


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Step and file of every checkpoint, oldest first."""
    found = [
        (int(match.group(1)), file)
        for file in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(file.name))
    ]
    return sorted(found)


def read_checkpoint(folder: Path, config: PretrainConfig) -> tuple[dict[str, Any], Position] | None:
    """The newest checkpoint that can be read, None if there is none.

    A damaged file is passed over with a warning as long as an older one is whole.

    Raises
    ------
    DerminoError
        CHECKPOINT_INVALID if it was made by another configuration (the fields are named), or every
        one is damaged.
    """
    found = checkpoints_in(folder)
    for _, file in reversed(found):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            position = Position(**content["position"])
            made_by = content["config"]
        except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as e:
            logger.warning("%s cannot be read (%s); trying an older one", file, str(e)[:200])
            continue
        if content.get("format") != FORMAT:
            raise DerminoError(
                "CHECKPOINT_INVALID",
                f"The checkpoint has format {content.get('format')}, not {FORMAT}.",
                where=file,
                fix="Go on with the version of dermino that wrote it, or use another --out.",
            )
        if different := sorted(_different(made_by, binding(config))):
            raise DerminoError(
                "CHECKPOINT_INVALID",
                "The checkpoint is from another configuration; these fields differ: "
                f"{', '.join(different)}.",
                where=file,
                fix="Use the configuration in run.json to go on, or another --out to start anew.",
            )
        return content, position
    if found:
        raise DerminoError(
            "CHECKPOINT_INVALID",
            "Every checkpoint here is damaged.",
            where=folder,
            fix="Remove the folder to start from the beginning.",
        )
    return None


def restore(
    content: Mapping[str, Any],
    trained: nn.Module,
    untrained: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Put a checkpoint's content into modules and optimiser, strictly."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_state_dict,
    )

    if _is_sharded(trained):
        options = StateDictOptions(full_state_dict=True)
        set_state_dict(
            trained,
            optimiser,
            model_state_dict=content["trained"],
            optim_state_dict=content["optimiser"],
            options=options,
        )
    else:
        trained.load_state_dict(content["trained"])
        optimiser.load_state_dict(content["optimiser"])
    for name, module in untrained.items():
        if _is_sharded(module):
            set_model_state_dict(
                module, content["untrained"][name], options=StateDictOptions(full_state_dict=True)
            )
        else:
            module.load_state_dict(content["untrained"][name])


def _states(
    trained: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Any]]:
    if not _is_sharded(trained):
        return trained.state_dict(), optimiser.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(trained, optimiser, options=options)
    return weights, moments  # pyright: ignore[reportReturnType]


def gathered(module: nn.Module) -> dict[str, Any]:
    """The state of a module with sharded parameters made whole; all processes must call it."""
    if not _is_sharded(module):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    gather_no_more(module)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(module, options=options)  # pyright: ignore[reportReturnType]


def _is_sharded(module: nn.Module) -> bool:
    return any(hasattr(parameter, "to_local") for parameter in module.parameters())


def _different(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            name
            for key in {*one, *other}
            for name in _different(
                one.get(key), other.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if one == other else [path]
