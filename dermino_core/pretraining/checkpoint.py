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
from dermino_core.pretraining.processes import Processes
from dermino_core.pretraining.whole_state import (
    optimiser_state,
    restore_optimiser,
    restore_state,
    whole_state,
)

logger = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"images-(\d+)\.pt")

FREE: Mapping[str, frozenset[str]] = {
    "data": frozenset({"workers", "prefetch", "sources"}),
    "run": frozenset({"device", "checkpoint_every", "keep_checkpoints", "sharding"}),
    "model": frozenset({"compile", "activation_checkpointing", "start"}),
    "prototypes": frozenset({"labels", "embeddings"}),
    "monitor": frozenset(
        {
            "log_every",
            "probe_every",
            "manifest",
            "images",
            "columns",
            "max_images",
            "neighbours",
            "trackers",
        }
    ),
}
"""Fields that may change between a checkpoint and the run that goes on from it.

Images and labels are held to by :attr:`Identity.data`, wherever they lie.
"""

SAID: Mapping[str, frozenset[str]] = {
    "optimiser": frozenset({"learning_rate", "head_learning_rate", "clip"}),
    "run": frozenset({"precision"}),
}
"""Fields that a person may change to save a run that went wrong; the change is logged."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must agree with.

    Attributes
    ----------
    config
        Of the run.
    data
        What the images and labels are: see
        :meth:`~dermino_core.pretraining.image_list.ImageList.identity`.
    """

    config: PretrainConfig
    data: Mapping[str, str | int]

    def values(self) -> dict[str, Any]:
        """As plain JSON values, without what may change."""
        values = json.loads(self.config.model_dump_json())
        for section, names in FREE.items():
            for name in names:
                values[section].pop(name)
        return {**values, "images and labels": dict(self.data)}


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


def save_checkpoint(
    folder: Path,
    position: Position,
    identity: Identity,
    trained: nn.Module,
    untrained: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    processes: Processes,
) -> None:
    """Write `images-N.pt` atomically and remove all but the newest `run.keep_checkpoints`.

    All processes call this; the first writes. Sharded parameters are gathered.
    """
    content = {
        "format": FORMAT,
        "position": vars(position),
        "identity": identity.values(),
        "trained": whole_state(trained),
        "untrained": {name: whole_state(module) for name, module in untrained.items()},
        "optimiser": optimiser_state(trained, optimiser),
    }
    if processes.leads:
        with open_atomically(folder / f"images-{position.images:012d}.pt") as file:
            torch.save(content, file)
        for _, old in checkpoints_in(folder)[: -identity.config.run.keep_checkpoints]:
            old.unlink(missing_ok=True)
    processes.wait()


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Images seen and file of every checkpoint, oldest first."""
    found = [
        (int(match.group(1)), file)
        for file in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(file.name))
    ]
    return sorted(found)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for file in folder.glob(".images-*"):
        file.unlink(missing_ok=True)


def read_checkpoint(
    folder: Path, identity: Identity
) -> tuple[dict[str, Any], Position, list[str]] | None:
    """The newest checkpoint that can be read, None if there is none.

    A damaged file is passed over with a warning as long as an older one is whole.

    Returns
    -------
    Its content, its position, and those fields of :data:`SAID` that have changed since.

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
            made_by = content["identity"]
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
        different = sorted(_different(made_by, identity.values()))
        said = {f"{section}.{name}" for section, names in SAID.items() for name in names}
        if refused := [name for name in different if name not in said]:
            raise DerminoError(
                "CHECKPOINT_INVALID",
                "The checkpoint is from another configuration; what differs: "
                f"{', '.join(refused)}.",
                where=file,
                fix="Use the configuration in run.json to go on, or another --out to start anew.",
            )
        return content, position, different
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
    restore_state(trained, content["trained"])
    restore_optimiser(trained, optimiser, content["optimiser"])
    for name, module in untrained.items():
        restore_state(module, content["untrained"][name])


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
