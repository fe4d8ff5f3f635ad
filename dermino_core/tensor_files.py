"""Tensors from checkpoint files, read without running anything that is in them."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermino_core.errors import DerminoError

if TYPE_CHECKING:
    import torch

CONTAINERS = ("model", "state_dict", "teacher")
"""Under these names training scripts keep the weights, beside optimiser and settings."""

_TORCH_FAILURES = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors or PyTorch file by name, on the CPU.

    The content decides the format: MedImageInsight's `.pt` is a safetensors file. A PyTorch file is
    opened with `weights_only`, so that no code in it runs; besides tensors and plain values it may
    hold `argparse.Namespace`, in which training scripts keep their settings. Of nested dictionaries
    (:data:`CONTAINERS`) the innermost is taken.

    Raises
    ------
    DerminoError
        BACKBONE_UNAVAILABLE if the file is damaged, holds other objects, or no tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix == ".safetensors" or _looks_like_safetensors(file):
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise damaged(file, error) from error
    stored = _innermost(_load_torch(file))
    if not stored:
        raise DerminoError(
            "BACKBONE_UNAVAILABLE",
            "The weights file holds no tensors.",
            where=file,
            fix="Save the model's state_dict() and use that file.",
        )
    return stored


def damaged(file: Path, error: Exception) -> DerminoError:
    """The error for a weights file that cannot be read."""
    return DerminoError(
        "BACKBONE_UNAVAILABLE",
        f"The weights file cannot be read: {next(iter(str(error).splitlines()), 'empty')}.",
        where=file,
        fix="Copy it again; its size or checksum will differ from the original's.",
    )


def _looks_like_safetensors(file: Path) -> bool:
    """Eight bytes of header length, then the header, which is JSON."""
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
        length = int.from_bytes(start[:8], "little")
        return start[8:] == b"{" and length < file.stat().st_size
    except OSError as error:
        raise damaged(file, error) from error


def _load_torch(file: Path) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped from disk: a checkpoint's optimiser is twice its weights, and stays there.
            return torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except OSError as error:
        raise damaged(file, error) from error
    except _TORCH_FAILURES as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            what = ValueError("it is no checkpoint of PyTorch, or only a part of one")
            raise damaged(file, what) from error
        raise DerminoError(
            "BACKBONE_UNAVAILABLE",
            f"The weights file holds objects besides tensors ({found.group(1)}), "
            "which could run code when opened.",
            where=file,
            fix="If you trust who made it, load it on a machine apart, and save its state_dict() "
            "alone with safetensors.torch.save_file.",
        ) from error


def _innermost(stored: object) -> dict[str, torch.Tensor]:
    import torch

    while isinstance(stored, Mapping):
        inner = next((v for k in CONTAINERS if isinstance(v := stored.get(k), Mapping)), None)
        if inner is None:
            return {str(k): v for k, v in stored.items() if isinstance(v, torch.Tensor)}
        stored = inner
    return {}
