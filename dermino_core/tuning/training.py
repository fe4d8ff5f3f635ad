"""One site's training of the last blocks in one round, read top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from dermino_core.errors import DerminoError
from dermino_core.progress import progress_bar
from dermino_core.tuning.network import Trained
from dermino_core.tuning.recipe import Recipe


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `steps` (from 0)."""
    rise = warmup * steps
    if step + 1 < rise:
        return (step + 1) / rise
    fraction = (step + 1 - rise) / max(1.0, steps - rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, fraction))))


def class_weights(labels: npt.NDArray[np.integer], n_classes: int) -> torch.Tensor:
    """`n / (classes present x images of the class)`; 0 where there are none. float32 [C]."""
    counts = np.bincount(labels, minlength=n_classes)
    present = int((counts > 0).sum())
    weights = len(labels) / (present * np.maximum(counts, 1))
    return torch.tensor(np.where(counts > 0, weights, 0.0), dtype=torch.float32)


def train(
    network: Trained,
    arrays: Mapping[str, npt.NDArray],
    tokens: npt.NDArray[np.float16],
    labels: npt.NDArray[np.integer],
    recipe: Recipe,
    *,
    seed: Sequence[int],
    bf16: bool = False,
    title: str = "tuning",
) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
    """Train from `arrays` for the epochs of one round.

    Cross-entropy, AdamW with a fresh state. Batches are drawn without replacement, and a view of
    each image, by numpy's generator from `seed`: what comes out depends on nothing that ran before.

    Parameters
    ----------
    tokens
        float16 [n, views, tokens, D], what the frozen blocks make of each view.
    labels
        [n].
    bf16
        Whether matrix products are computed in bf16.

    Returns
    -------
    The arrays after training, and the mean loss of the last epoch.

    Raises
    ------
    DerminoError
        RUN_FAILED if the loss is not finite.
    """
    rng = np.random.default_rng(list(seed))
    device = next(network.parameters()).device
    network.read(arrays)
    network.eval()
    weights = class_weights(labels, network.head.out_features) if recipe.balanced else None
    weights = None if weights is None else weights.to(device)
    groups = [
        {"params": network.block_parameters(), "peak": recipe.learning_rate},
        {"params": network.head_parameters(), "peak": recipe.head_learning_rate},
    ]
    optimiser = torch.optim.AdamW(groups, lr=0.0, weight_decay=recipe.weight_decay)
    n, views = tokens.shape[:2]
    per_epoch = math.ceil(n / recipe.batch_size)
    steps, step, total = recipe.epochs * per_epoch, 0, 0.0
    with progress_bar(title, total=recipe.epochs * n) as bar:
        for _ in range(recipe.epochs):
            total = 0.0
            order = rng.permutation(n)
            for batch in np.array_split(order, per_epoch):
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * rate_at(step, steps, recipe.warmup)
                chosen = rng.integers(views, size=len(batch))
                x = torch.from_numpy(tokens[batch, chosen]).to(device).float()
                y = torch.from_numpy(labels[batch].astype(np.int64)).to(device)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    features = network(x)
                loss = F.cross_entropy(
                    network.head(features.float()),
                    y,
                    weight=weights,
                    label_smoothing=recipe.label_smoothing,
                )
                optimiser.zero_grad()
                loss.backward()
                trained = [p for group in optimiser.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(trained, recipe.clip)
                optimiser.step()
                step += 1
                total += loss.item() * len(batch)
                bar.advance(len(batch))
    if not math.isfinite(total):
        raise DerminoError(
            "RUN_FAILED", "The loss is not finite.", fix="Ask for a smaller learning_rate."
        )
    return network.arrays(), total / n
