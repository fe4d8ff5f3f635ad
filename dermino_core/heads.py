"""Linear heads on frozen features: start, fit, predict.

The recipe is the paper's (section 4.2.4): cross-entropy, Adam, a learning rate annealed by a
cosine to zero over the local epochs of a round, a fresh optimiser every round. What the paper
leaves open is an argument here: batch size, initial head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dermino_core.blas_threads import threads_for
from dermino_core.errors import DerminoError

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]

_STEPS = 500
"""Products with the features that a fit to convergence takes, about, per class."""


@dataclass(frozen=True)
class LinearHead:
    """`softmax(x W^T + b)`: weight [C, D] and bias [C], float32."""

    weight: Float32
    bias: Float32

    @classmethod
    def initial(
        cls, n_classes: int, width: int, *, how: Literal["uniform", "zeros"] = "uniform", seed: int
    ) -> LinearHead:
        """A head before training.

        `uniform` draws weight and bias from U(-1/sqrt(D), 1/sqrt(D)), the default start of
        `torch.nn.Linear`, with numpy's generator so that it does not depend on torch.
        """
        if how == "zeros":
            return cls(np.zeros((n_classes, width), np.float32), np.zeros(n_classes, np.float32))
        rng = np.random.default_rng([seed, n_classes, width])
        bound = 1 / np.sqrt(width)
        weight = rng.uniform(-bound, bound, size=(n_classes, width)).astype(np.float32)
        return cls(weight, rng.uniform(-bound, bound, size=n_classes).astype(np.float32))

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray]) -> LinearHead:
        """From `{"weight": ..., "bias": ...}`.

        Raises
        ------
        ValueError
            If an array is missing, superfluous, of a wrong shape or type, or not finite.
        """
        if set(arrays) != {"weight", "bias"}:
            raise ValueError(f"a linear head has weight and bias, not {sorted(arrays)}")
        weight, bias = arrays["weight"], arrays["bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"shapes do not fit: weight {weight.shape}, bias {bias.shape}")
        if weight.dtype != np.float32 or bias.dtype != np.float32:
            raise ValueError(f"not float32: weight {weight.dtype}, bias {bias.dtype}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("holds NaN or infinite values")
        return cls(weight, bias)

    @staticmethod
    def arrays_like(n_classes: int, width: int) -> dict[str, npt.NDArray]:
        """Names, shapes and types of :meth:`arrays`; values are 0."""
        return LinearHead.initial(n_classes, width, how="zeros", seed=0).arrays()

    def arrays(self) -> dict[str, npt.NDArray]:
        """`{"weight": [C, D], "bias": [C]}`."""
        return {"weight": self.weight, "bias": self.bias}

    def probabilities(self, features: Float32) -> npt.NDArray[np.float64]:
        """Class probabilities [n, C] of features [n, D]."""
        logits = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        return shares / shares.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class HeadRecipe:
    """How a head is trained in one round. Defaults: paper, section 4.2.4.

    `proximal` adds `proximal / 2 * ||w - start||^2` to the loss (Li et al. 2020, equation 2).
    """

    epochs: int = 2
    learning_rate: float = 2e-4
    batch_size: int = 32
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs and batch size from 1, learning rate above 0: {self}")
        if not self.proximal >= 0:
            raise ValueError(f"a proximal term from 0: {self}")


def fit_head(
    head: LinearHead,
    features: Float32,
    labels: Labels,
    recipe: HeadRecipe,
    *,
    seed: Sequence[int],
    device: str = "cpu",
) -> tuple[LinearHead, float]:
    """Train a head for one round and return it with the mean cross-entropy of its last epoch.

    Cross-entropy, Adam (betas 0.9, 0.999), learning rate annealed to zero by a cosine over all
    steps of the round. Batches are drawn without replacement, shuffled every epoch by numpy's
    generator from `seed`, so the result does not depend on what ran before. `head` is unchanged.

    Parameters
    ----------
    features, labels
        Shapes [n, D] and [n].
    device
        `cpu`, or a torch device such as `cuda`.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` without images, `DEVICE_UNAVAILABLE` without the device.
    """
    if not len(labels):
        raise DerminoError("DATA_TOO_FEW", "There are no images to train on.")
    x = np.ascontiguousarray(features, dtype=np.float32)
    y = np.ascontiguousarray(labels, dtype=np.int64)
    steps = recipe.epochs * -(-len(y) // recipe.batch_size)
    rates = recipe.learning_rate * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    rng = np.random.default_rng(list(seed))
    orders = [rng.permutation(len(y)) for _ in range(recipe.epochs)]
    fit = _fit_on_cpu if device == "cpu" else _fit_with_torch
    weight, bias, loss = fit(head, x, y, recipe, rates, orders, device)
    return LinearHead(weight, bias), loss


def _fit_on_cpu(
    head: LinearHead,
    x: Float32,
    y: Labels,
    recipe: HeadRecipe,
    rates: npt.NDArray[np.float64],
    orders: Sequence[npt.NDArray[np.intp]],
    device: str,
) -> tuple[Float32, Float32, float]:
    """Adam (Kingma & Ba 2015, Algorithm 1) on the closed-form gradient of cross-entropy.

    A linear head needs no autograd, and a process that answers one Flower message need not spend
    seconds on importing torch.
    """
    parameters = np.hstack([head.weight, head.bias[:, None]])
    begin = parameters.copy()
    ones = np.ones((len(x), 1), np.float32)
    x = np.hstack([x, ones])
    targets = np.eye(len(head.bias), dtype=np.float32)[y]
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    step, total = 0, 0.0
    for order in orders:
        total = 0.0
        for start in range(0, len(order), recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            logits = x[rows] @ parameters.T
            logits -= logits.max(axis=1, keepdims=True)
            shares = np.exp(logits)
            sums = shares.sum(axis=1, keepdims=True)
            total += float((np.log(sums[:, 0]) - logits[np.arange(len(rows)), y[rows]]).sum())
            gradient = (shares / sums - targets[rows]).T @ x[rows] / np.float32(len(rows))
            if recipe.proximal:
                gradient += np.float32(recipe.proximal) * (parameters - begin)
            rate = rates[step]
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient * gradient
            size = np.float32(rate / (1 - 0.9**step))
            parameters -= size * first / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    weight = np.ascontiguousarray(parameters[:, :-1])
    return weight, np.ascontiguousarray(parameters[:, -1]), total / len(y)


def _fit_with_torch(
    head: LinearHead,
    x: Float32,
    y: Labels,
    recipe: HeadRecipe,
    rates: npt.NDArray[np.float64],
    orders: Sequence[npt.NDArray[np.intp]],
    device: str,
) -> tuple[Float32, Float32, float]:
    """The same with `torch.optim.Adam`, for features that are on an accelerator."""
    import torch
    from torch.nn import functional as F

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DerminoError(
            "DEVICE_UNAVAILABLE", "This machine has no CUDA device.", fix="Use the device 'cpu'."
        )
    features, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
    weight = torch.tensor(head.weight, device=device, requires_grad=True)
    bias = torch.tensor(head.bias, device=device, requires_grad=True)
    begin = weight.detach().clone(), bias.detach().clone()
    optimizer = torch.optim.Adam([weight, bias])
    rate = iter(rates)
    total = torch.zeros((), device=device)
    for order in orders:
        total.zero_()
        for rows in torch.from_numpy(order).to(device).split(recipe.batch_size):
            optimizer.param_groups[0]["lr"] = float(next(rate))
            loss = F.cross_entropy(F.linear(features[rows], weight, bias), labels[rows])
            pull = (weight - begin[0]).square().sum() + (bias - begin[1]).square().sum()
            optimizer.zero_grad(set_to_none=True)
            (loss + recipe.proximal / 2 * pull).backward()
            optimizer.step()
            total += loss.detach() * len(rows)
    return weight.detach().cpu().numpy(), bias.detach().cpu().numpy(), float(total) / len(y)


def fit_converged(
    features: Float32, labels: Labels, n_classes: int, *, penalty: float
) -> LinearHead:
    """The regularised logistic regression on standardised features, solved to its optimum.

    A reference for what a linear head can reach, next to heads whose schedule stops early. The
    penalty is chosen beforehand, not on test data: `penalty / 2 * ||W||^2` on the mean loss per
    image of features standardised to mean 0, variance 1.

    Returns the head in the coordinates of the raw features. With a single class in `labels` the
    head always predicts it.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1
    present = np.unique(labels)
    weight = np.zeros((n_classes, features.shape[1]), np.float64)
    bias = np.full(n_classes, -30.0)
    if len(present) == 1:
        bias[present[0]] = 0.0
        return LinearHead(weight.astype(np.float32), bias.astype(np.float32))
    solver = LogisticRegression(C=1 / (penalty * len(labels)), max_iter=2000)
    with threads_for(_STEPS * features.size * len(present)):
        solver.fit((features - mean) / scale, labels)
    coefficients, intercepts = np.asarray(solver.coef_), np.asarray(solver.intercept_)
    if len(present) == 2:
        weight[present] = np.stack([-coefficients[0] / 2, coefficients[0] / 2])
        bias[present] = np.array([-intercepts[0] / 2, intercepts[0] / 2])
    else:
        weight[present], bias[present] = coefficients, intercepts
    weight /= scale
    bias = bias - weight @ mean
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))
