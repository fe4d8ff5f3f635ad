"""FedProx: federated averaging that keeps each hospital near the global model.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (MLSys), Algorithm 2: site k
minimises `F_k(w) + mu/2 ||w - w_t||^2` (equation 2) from the global head `w_t`; the coordinator
averages. With `mu = 0` it is FedAvg, bit for bit. The square is the paper's; it belongs to the
whole head, bias included.

What leaves the building, per round: as with FedAvg, the head's weights and biases after local
training, the number of training images, and the mean training loss (without the proximal term).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from dermino_core.errors import DerminoError
from dermino_core.heads import Float32, HeadRecipe, Labels, LinearHead, fit_head
from dermino_strategies.base import Arrays, SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvgSettings
from dermino_strategies.local_training import MeanTraining, head_arrays


class FedProxSettings(FedAvgSettings):
    """FedAvg's, and the weight of the proximal term."""

    mu: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="pull towards the global head; the paper tries 0.001 to 1, 0 is FedAvg",
    )


class FedProx(MeanTraining):
    """FedAvg with a proximal term in the local objective."""

    name = "fedprox"

    def __init__(self, settings: FedProxSettings | None = None) -> None:
        self.settings = settings or FedProxSettings()
        super().__init__(self.settings)

    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """FedAvg's local training on the proximal objective, same batches in the same order."""
        recipe = HeadRecipe(
            epochs=self.settings.local_epochs,
            learning_rate=self.settings.learning_rate,
            batch_size=self.settings.batch_size,
        )
        head, loss = fit_proximal(
            LinearHead.from_arrays(head_arrays(arrays)),
            data.features,
            data.labels,
            recipe,
            self.settings.mu,
            seed=(seed, round_, zlib.crc32(data.site.encode())),
            device=data.device,
        )
        return SiteUpdate(head.arrays(), examples=len(data.labels), metrics={"train-loss": loss})

    def server_step(self, arrays: Arrays, mean: Arrays) -> Arrays:
        """The mean is the next head."""
        del arrays
        return mean


def fit_proximal(
    head: LinearHead,
    features: Float32,
    labels: Labels,
    recipe: HeadRecipe,
    mu: float,
    *,
    seed: Sequence[int],
    device: str = "cpu",
) -> tuple[LinearHead, float]:
    """:func:`dermino_core.heads.fit_head` on `F(w) + mu/2 ||w - head||^2`.

    The gradient gains `mu (w - head)` before Adam sees it; batches, order and learning rates are
    the same. Without a term to add it is `fit_head` itself, on any device; with one it runs on
    the processor, where a linear head takes milliseconds.

    Returns
    -------
    The head, and the mean cross-entropy of the last epoch without the proximal term.

    Raises
    ------
    DerminoError
        As `fit_head`.
    """
    if mu == 0:
        return fit_head(head, features, labels, recipe, seed=seed, device=device)
    if not len(labels):
        raise DerminoError("DATA_TOO_FEW", "There are no images to train on.")
    x = np.hstack([features.astype(np.float32), np.ones((len(labels), 1), np.float32)])
    targets = np.eye(len(head.bias), dtype=np.float32)[labels]
    start = np.hstack([head.weight, head.bias[:, None]])
    parameters = start.copy()
    first, second = np.zeros_like(start), np.zeros_like(start)
    steps = recipe.epochs * -(-len(labels) // recipe.batch_size)
    rng = np.random.default_rng(list(seed))
    step, total = 0, 0.0
    for _ in range(recipe.epochs):
        order, total = rng.permutation(len(labels)), 0.0
        for low in range(0, len(order), recipe.batch_size):
            rows = order[low : low + recipe.batch_size]
            logits = x[rows] @ parameters.T
            logits -= logits.max(axis=1, keepdims=True)
            log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            total -= float((targets[rows] * log_shares).sum())
            gradient = (np.exp(log_shares) - targets[rows]).T @ x[rows] / np.float32(len(rows))
            gradient += np.float32(mu) * (parameters - start)
            rate = recipe.learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient * gradient
            size = np.float32(rate / (1 - 0.9**step))
            parameters -= size * first / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    weight = np.ascontiguousarray(parameters[:, :-1])
    return LinearHead(weight, np.ascontiguousarray(parameters[:, -1])), total / len(labels)
