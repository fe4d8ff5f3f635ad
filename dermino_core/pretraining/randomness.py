"""Random numbers as a pure function of the seed and the moment.

Nothing random is carried from step to step, so there is no state to save: a run that resumes at a
step draws what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from dermino_core.pretraining.method import Moment


def derived_seed(seed: int, *words: object) -> int:
    """63 bits that depend on the seed and on every word."""
    text = " ".join(map(str, ("dermino", seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, purpose: str, moment: Moment) -> torch.Generator:
    """A CPU generator for one purpose of one pass of one process."""
    return torch.Generator().manual_seed(_seed_of(seed, purpose, moment))


def numpy_generator(seed: int, purpose: str, moment: Moment) -> np.random.Generator:
    """As :func:`torch_generator`, for numpy."""
    return np.random.default_rng(_seed_of(seed, purpose, moment))


def seed_torch(seed: int, moment: Moment) -> None:
    """Seed torch's own generators, which stochastic depth and dropout draw from."""
    torch.manual_seed(_seed_of(seed, "torch", moment))


def _seed_of(seed: int, purpose: str, moment: Moment) -> int:
    return derived_seed(seed, purpose, moment.step, moment.micro, moment.rank)
