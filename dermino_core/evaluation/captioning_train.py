"""Teach a captioner: the paper's recipe (section 4.2.2), each open point a field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dermino_core.errors import DerminoError
from dermino_core.evaluation.captioning_language import memory
from dermino_core.evaluation.captioning_model import Captioner, Float32, seeded
from dermino_core.progress import progress_bar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CaptioningRecipe:
    """How a captioner is trained.

    From the paper: AdamW, 2 epochs, learning rates of 4e-4 for the projection and 8e-5 for LoRA.
    It calls them initial rates and says no more: `schedule` anneals them to zero by a cosine, as
    the paper's other tasks do, or keeps them.

    Attributes
    ----------
    batch_size
        Captions that are in memory at once.
    accumulate
        Batches to a step: the step is that of one batch of `batch_size * accumulate`, up to
        rounding.
    weight_decay
        torch's default for AdamW.
    """

    projection_rate: float = 4e-4
    adapter_rate: float = 8e-5
    epochs: int = 2
    batch_size: int = 8
    accumulate: int = 1
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate) < 1:
            raise ValueError(f"epochs, batch size and accumulation are from 1: {self}")
        if not (self.projection_rate > 0 and self.adapter_rate > 0 and self.weight_decay >= 0):
            raise ValueError(f"rates are above 0, weight decay not below 0: {self}")


@dataclass(frozen=True)
class Training:
    """What came of it: the mean loss of a caption token in the last epoch, and how many captions
    were cut to the captioner's longest."""

    loss: float
    cut: int


def train_captioner(
    captioner: Captioner,
    features: Float32,
    captions: Sequence[str],
    recipe: CaptioningRecipe | None = None,
    *,
    seed: int,
) -> Training:
    """Train projection and LoRA on the caption tokens; the language model's weights stay.

    The loss of a step is the mean over all its caption tokens. Images are shuffled every epoch
    from the seed; on a CPU the same seed gives the same weights.

    Parameters
    ----------
    captioner
        Changed in place.
    features
        [n, k, D], or [n, D] where k is 1.
    captions
        n texts.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` without captions; `DEVICE_UNAVAILABLE` if the loss is not finite or the GPU
        too small.
    """
    import torch

    recipe = recipe or CaptioningRecipe()
    if not captions:
        raise DerminoError("DATA_TOO_FEW", "There are no captions to train on.")
    pairs = [captioner.tokens(caption) for caption in captions]
    ids = [tokens for tokens, _ in pairs]
    per_step = recipe.batch_size * recipe.accumulate
    steps = recipe.epochs * -(-len(ids) // per_step)
    optimizer = _optimizer(captioner, recipe)
    rates = [group["lr"] for group in optimizer.param_groups]
    order = np.random.default_rng([seed, len(ids)])
    step, total = 0, 0.0
    captioner.adapted.train()
    with (
        seeded(seed, captioner.language.device),
        progress_bar("training", recipe.epochs * len(ids), "captions") as bar,
    ):
        for _ in range(recipe.epochs):
            rows = order.permutation(len(ids))
            total = 0.0
            for first in range(0, len(rows), per_step):
                chosen = rows[first : first + per_step]
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * _share(step / steps, recipe)
                with memory():
                    total += _accumulate(captioner, features, ids, chosen, recipe.batch_size)
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                bar.advance(len(chosen))
    captioner.adapted.eval()
    finite = all(bool(torch.isfinite(value).all()) for value in captioner.matrices().values())
    if not (np.isfinite(total) and finite):
        raise DerminoError(
            "DEVICE_UNAVAILABLE",
            f"The loss is not finite with {captioner.language.weights} weights.",
            fix="Use fp32 weights, or lower learning rates.",
        )
    return Training(total / sum(map(len, ids)), sum(cut for _, cut in pairs))


def _optimizer(captioner: Captioner, recipe: CaptioningRecipe) -> torch.optim.AdamW:
    import torch

    parts = {"projection": recipe.projection_rate, "adapter": recipe.adapter_rate}
    matrices = captioner.matrices()
    groups = [
        {"params": [v for n, v in matrices.items() if n.startswith(f"{part}.")], "lr": rate}
        for part, rate in parts.items()
    ]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _share(done: float, recipe: CaptioningRecipe) -> float:
    """Of the initial learning rates, after a share of all steps."""
    return 1.0 if recipe.schedule == "constant" else 0.5 * (1 + float(np.cos(np.pi * done)))


def _accumulate(
    captioner: Captioner,
    features: Float32,
    ids: Sequence[list[int]],
    rows: np.ndarray,
    batch_size: int,
) -> float:
    """Add the gradients of one step, batch by batch; its loss, summed over tokens."""
    n_tokens = sum(len(ids[row]) for row in rows)
    total = 0.0
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        loss = captioner.loss(features[part], [ids[row] for row in part])
        (loss / n_tokens).backward()
        total += float(loss.detach())
    return total
