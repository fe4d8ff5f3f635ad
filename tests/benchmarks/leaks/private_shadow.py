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
    x = np.hstack([features - middle, np.ones((len(features), 1))])[chosen.rows].astype(np.float32)
    inner = x @ x.transpose(0, 2, 1)
    shares = chosen.shares[:, :, None]
    wanted = np.eye(len(head.bias))[labels][chosen.rows]
    weight = head.weight.astype(np.float64)
    parameters = np.hstack([weight, (head.bias + weight @ middle)[:, None]])
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(mechanism.steps):
        drawn = rng.random(len(x)) < mechanism.sampling_rate
        residual = shares * (_softmax(x, parameters) - wanted)
        alike = np.einsum("pmc,pnc->pmn", residual, residual)
        size = np.sqrt(np.maximum(np.einsum("pmn,pmn->p", alike, inner), 0))
        factor = drawn * np.minimum(1, clip / (size + _OPACUS_EPSILON))
        weighted = (residual * factor[:, None, None]).reshape(-1, len(parameters))
        gradient = (weighted.T.astype(np.float32) @ x.reshape(-1, x.shape[2])).astype(np.float64)
        gradient += mechanism.noise_multiplier * clip * rng.standard_normal(parameters.shape)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = learning_rate * 0.5 * (1 + np.cos(np.pi * step / mechanism.steps))
        size = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        parameters = parameters - rate * first / (1 - 0.9 ** (step + 1)) / size
    weight, bias = parameters[:, :-1], parameters[:, -1]
    bias = bias - weight @ middle
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))


def _softmax(x: Floats, parameters: Floats) -> Floats:
    """Probabilities [P, m, C] of x [P, m, D + 1], as one product and not P of them."""
    logits = x.reshape(-1, x.shape[2]) @ parameters.T.astype(np.float32)
    logits = logits.reshape(*x.shape[:2], -1).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    return odds / odds.sum(axis=2, keepdims=True)


@contextmanager
def fast_private_training() -> Iterator[None]:
    """Every private site half trains this way, while inside."""
    with patch.object(sgd, "fit_private_head", fit_private_head):
        yield
