"""Private training as `dermino_core.privacy.sgd` does it, fast, for thousands of shadow runs.

For membership the attacked runs are trained by the real thing, with Opacus and random numbers that
nobody can foresee; an attacker's shadows only have to be drawn from the same distribution, which a
test compares. Algorithm 1 of Abadi et al.
2016 with Adam, in closed form for a linear layer, with numpy's generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from dermino_core.heads import LinearHead
from dermino_core.privacy import sgd
from dermino_core.privacy.plan import Mechanism
from dermino_core.privacy.units import choose_images
from tests.benchmarks.leaks.victims import Floats

_OPACUS_EPSILON = 1e-6


def fit_private_head(
    head: LinearHead,
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    units: npt.NDArray[np.intp],
    mechanism: Mechanism,
    *,
    learning_rate: float,
    clip: float,
    images_per_unit: int,
    centre: Floats | None = None,
    generator: np.random.Generator | None = None,
) -> LinearHead:
    """Arguments and result as of `dermino_core.privacy.sgd.fit_private_head`."""
    rng = generator or np.random.default_rng()
    chosen = choose_images(units, images_per_unit, rng.random(len(units)))
    middle = np.zeros(features.shape[1]) if centre is None else np.asarray(centre, np.float64)
    x = np.hstack([features - middle, np.ones((len(features), 1))])[chosen.rows]
    wanted = np.eye(len(head.bias))[labels][chosen.rows]
    weight = head.weight.astype(np.float64)
    parameters = np.hstack([weight, (head.bias + weight @ middle)[:, None]])
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(mechanism.steps):
        drawn = rng.random(len(x)) < mechanism.sampling_rate
        gradient = _clipped(x[drawn], wanted[drawn], chosen.shares[drawn], parameters, clip)
        gradient += mechanism.noise_multiplier * clip * rng.standard_normal(parameters.shape)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = learning_rate * 0.5 * (1 + np.cos(np.pi * step / mechanism.steps))
        size = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        parameters = parameters - rate * first / (1 - 0.9 ** (step + 1)) / size
    weight, bias = parameters[:, :-1], parameters[:, -1]
    bias = bias - weight @ middle
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))


def _clipped(x: Floats, wanted: Floats, shares: Floats, parameters: Floats, clip: float) -> Floats:
    """Sum over units of gradients shortened to `clip`, [C, D + 1]; x is [P, m, D + 1]."""
    logits = x @ parameters.T
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    residual = shares[:, :, None] * (odds / odds.sum(axis=2, keepdims=True) - wanted)
    if x.shape[1] == 1:
        size = np.linalg.norm(residual[:, 0], axis=1) * np.linalg.norm(x[:, 0], axis=1)
        return (residual[:, 0] * _factor(size, clip)[:, None]).T @ x[:, 0]
    each = np.einsum("pmc,pmd->pcd", residual, x)
    size = np.sqrt((each**2).sum(axis=(1, 2)))
    return np.einsum("p,pcd->cd", _factor(size, clip), each)


def _factor(size: Floats, clip: float) -> Floats:
    return np.minimum(1, clip / (size + _OPACUS_EPSILON))


@contextmanager
def fast_private_training() -> Iterator[None]:
    """Every private site half trains this way, while inside."""
    with patch.object(sgd, "fit_private_head", fit_private_head):
        yield
